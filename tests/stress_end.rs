//! Everything in everything else, and an end at any moment: polls, drops, wakers, closures and the destructors of threads that
//! spawn, block, block on tasks and on other runtimes, panic and abort. Whatever they were in when the runtime is dropped, that
//! comes back, and no thread and no future is left.
//!
//! Where a runtime may have few threads, what they do may well wait for each other for ever: the end is what ends it. The seed
//! is printed; `GOPARK_SEED` repeats one (as far as threads can be repeated), `GOPARK_STRESS_SECS` sets how long all of it takes
//! (3 unless set).

mod support;

use gopark::time::{Sleep, sleep};
use gopark::{Builder, Handle, block_in_place};
use std::cell::RefCell;
use std::future::{Future, pending};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::{Random, watchdog};

/// So deep do acts lie in each other.
const DEPTH: u32 = 4;

/// Futures that were made and not dropped.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What a thread does at its end.
    static LAST: RefCell<Option<OnDrop>> = const { RefCell::new(None) };
}

/// Who acts: what he does is drawn by lot.
struct Actor {
    random: Random,
    runtime: Handle,
    depth: u32,
}

impl Actor {
    /// One who acts within what this one does.
    fn next(&mut self) -> Actor {
        Actor { random: self.random.fork(), runtime: self.runtime.clone(), depth: self.depth.saturating_sub(1) }
    }

    fn micros(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.random.below(below))
    }

    fn act(&mut self) {
        if self.depth == 0 {
            return;
        }
        let runtime = self.runtime.clone();
        let mut next = self.next();
        match self.random.below(15) {
            0 => drop(runtime.spawn(Play::new(next))),
            1 => drop(runtime.spawn_blocking(move || next.act())),
            2 => drop(runtime.block_on(runtime.spawn(Play::new(next)))),
            3 => block_in_place(|| next.act()),
            4 => block_in_place(|| thread::sleep(self.micros(3000))),
            5 => thread::sleep(self.micros(7000)),
            6 => self.sleep_with_a_waker_that_acts(),
            7 if self.random.below(4) == 0 => self.act_in_another_runtime(),
            8 => {
                let task = runtime.spawn(Play::new(next));
                task.abort();
                if self.random.below(2) == 0 {
                    drop(runtime.block_on(task));
                }
            }
            9 => {
                // The thread may be at its end.
                let _ = LAST.try_with(|last| {
                    last.borrow_mut().get_or_insert_with(|| OnDrop(next));
                });
            }
            10 => {
                let panics = AssertUnwindSafe(|| {
                    block_in_place(|| {
                        next.act();
                        panic!("a part of the play")
                    })
                });
                drop(catch_unwind(panics));
            }
            _ => {}
        }
    }

    fn sleep_with_a_waker_that_acts(&mut self) {
        let waker = Waker::from(Arc::new(Acts(Mutex::new(self.next()))));
        let time = self.micros(3000);
        let mut sleep = {
            let _entered = self.runtime.enter();
            Box::pin(sleep(time))
        };
        // A runtime that has ended makes it panic.
        let poll = AssertUnwindSafe(|| sleep.as_mut().poll(&mut Context::from_waker(&waker)));
        drop(catch_unwind(poll));
        if self.random.below(2) == 0 {
            std::mem::forget(sleep);
            return;
        }
        let mut next = self.next();
        drop(self.runtime.spawn(async move {
            let _sleep = sleep;
            next.act();
            pending::<()>().await;
        }));
    }

    fn act_in_another_runtime(&mut self) {
        let rt = Builder::new().workers(1).thread_name(OTHER).build().unwrap();
        let mut next = self.next();
        let task = rt.spawn(async move { next.act() });
        match self.random.below(3) {
            0 => drop(rt.block_on(task)),
            1 => rt.shutdown_background(),
            _ => drop(rt),
        }
    }
}

struct OnDrop(Actor);

impl Drop for OnDrop {
    fn drop(&mut self) {
        // A panic in a destructor of a thread would end the process.
        drop(catch_unwind(AssertUnwindSafe(|| self.0.act())));
    }
}

struct Acts(Mutex<Actor>);

impl Wake for Acts {
    fn wake(self: Arc<Self>) {
        let mut next = self.0.lock().unwrap().next();
        next.act();
    }
}

/// A future that acts in each poll, in its drop and in that of its output.
struct Play {
    actor: Actor,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Play {
    fn new(actor: Actor) -> Play {
        ALIVE.fetch_add(1, SeqCst);
        Play { actor, sleep: None }
    }
}

impl Future for Play {
    type Output = OnDrop;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OnDrop> {
        self.actor.act();
        match self.actor.random.below(6) {
            0 => cx.waker().wake_by_ref(),
            1 => {
                let mut sleep = Box::pin(sleep(self.actor.micros(3000)));
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                self.sleep = Some(sleep);
            }
            2 if self.actor.random.below(4) == 0 => panic!("a part of the play"),
            _ => return Poll::Ready(OnDrop(self.actor.next())),
        }
        Poll::Pending
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, SeqCst);
        self.actor.act();
    }
}

/// The names of the threads.
const ONE: &str = "stress-end";
const OTHER: &str = "stress-other";

/// Threads of any runtime here.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(ONE) || comm.starts_with(OTHER)).count()
}

fn round(mut random: Random) {
    let mut builder = Builder::new().workers(1 + random.below(3) as usize).thread_name(ONE).on_task_panic(|_, _| {});
    if random.below(3) == 0 {
        builder = builder.on_thread_stop(|| block_in_place(|| {}));
    }
    if random.below(3) == 0 {
        builder = builder.on_stuck_task(|_| {});
    }
    if random.below(2) == 0 {
        builder = builder.max_threads(random.below(4) as usize);
    }
    let rt = builder.retake(random.below(4) > 0).build().unwrap();
    for _ in 0..random.below(30) {
        let actor = Actor { random: random.fork(), runtime: rt.handle().clone(), depth: DEPTH };
        drop(rt.spawn(Play::new(actor)));
    }
    thread::sleep(Duration::from_micros(random.below(8000)));
    drop(rt);
    // What it is in at its end, such as another runtime, a thread may leave to others.
    while threads() > 0 || ALIVE.load(SeqCst) > 0 {
        thread::yield_now();
    }
}

#[test]
fn everything_and_an_end_at_any_moment() {
    let parse = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = parse("GOPARK_SEED").unwrap_or(clock);
    let secs = parse("GOPARK_STRESS_SECS").unwrap_or(3);
    let _watchdog = watchdog(secs + 60);
    let say = |text: String| writeln!(std::io::stderr(), "{text}").unwrap();
    say(format!("stress_end: GOPARK_SEED={seed} for {secs} s"));
    // Hundreds of panics belong to the play.
    std::panic::set_hook(Box::new(|_| {}));
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_secs(secs);
    let mut rounds = 0;
    while Instant::now() < end {
        round(random.fork());
        rounds += 1;
    }
    say(format!("stress_end: {rounds} rounds"));
    assert!(rounds > 0);
}
