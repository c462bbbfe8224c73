//! A random tree of tasks that do everything at once, and an account of each of them at the end.
//!
//! The seed is printed; `GOPARK_SEED` repeats one (as far as threads can be repeated), `GOPARK_STRESS_SECS` sets how
//! long all of it takes (3 unless set).

mod support;

use futures::future::{BoxFuture, FutureExt};
use futures::task::AtomicWaker;
use gopark::{Builder, Handle, JoinError, JoinHandle};
use std::any::Any;
use std::future::{pending, poll_fn};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::Random;

/// What all tasks of one round share.
struct World {
    handle: Handle,
    /// Futures and closures made, and dropped.
    made: AtomicUsize,
    dropped: AtomicUsize,
    /// Results that were waited for, by what they were.
    outputs: AtomicUsize,
    panics: AtomicUsize,
    cancels: AtomicUsize,
    /// Those that the hook was told of instead; and those that nobody planned.
    told: Arc<(AtomicUsize, AtomicUsize)>,
    thrown: AtomicUsize,
    /// The runtime will be shut down in the midst of it: any task may be cancelled.
    early: bool,
    left: AtomicUsize,
    /// Anybody wakes anybody here, for no reason.
    board: Vec<AtomicWaker>,
    /// To a thread of no runtime, which wakes what it gets.
    outside: Sender<Waker>,
}

/// Counts one future's end.
struct Tally(Arc<World>);

impl Tally {
    fn new(world: &Arc<World>) -> Tally {
        world.made.fetch_add(1, SeqCst);
        Tally(world.clone())
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
        // A drop may do what it likes; waking somebody is the least.
        self.0.board[self.0.dropped.load(SeqCst) % self.0.board.len()].wake();
    }
}

struct Planned(u64);

/// What a poll that goes on after the shutdown may meet.
fn is_late_sleep(payload: &(dyn Any + Send)) -> bool {
    payload.downcast_ref::<&str>().is_some_and(|text| text.contains("a sleep outlived its runtime"))
}

struct AbortOnDrop(gopark::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a task's end has to be.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Output,
    Panic,
    Aborted,
}

fn check(world: &World, id: u64, fate: Fate, result: Result<u64, JoinError>) {
    match result {
        Ok(output) => {
            assert_eq!(output, id);
            assert!(fate != Fate::Panic, "it should have panicked");
            world.outputs.fetch_add(1, SeqCst);
        }
        Err(error) if error.is_panic() => {
            let payload = error.into_panic();
            if world.early && is_late_sleep(&*payload) {
                return;
            }
            let planned = payload.downcast::<Planned>().expect("a planned panic");
            assert_eq!(planned.0, id);
            assert!(fate == Fate::Panic);
            world.panics.fetch_add(1, SeqCst);
        }
        Err(_) => {
            assert!(fate == Fate::Aborted || world.early, "cancelled, though nobody did");
            world.cancels.fetch_add(1, SeqCst);
        }
    }
}

/// One task: a few random steps, then its fate. Gives its id.
fn node(world: Arc<World>, mut random: Random, id: u64, fate: Fate) -> BoxFuture<'static, u64> {
    let tally = Tally::new(&world);
    async move {
        let _tally = tally;
        for _ in 0..random.below(6) {
            step(&world, &mut random).await;
        }
        match fate {
            Fate::Panic => {
                world.thrown.fetch_add(1, SeqCst);
                std::panic::panic_any(Planned(id))
            }
            Fate::Aborted if random.below(2) == 0 => pending().await,
            _ => id,
        }
    }
    .boxed()
}

fn child(world: &Arc<World>, random: &mut Random, fate: Fate) -> Option<(u64, JoinHandle<u64>)> {
    world.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).ok()?;
    let id = random.next();
    let future = node(world.clone(), random.fork(), id, fate);
    Some((id, if random.below(4) == 0 { world.handle.spawn(future) } else { gopark::spawn(future) }))
}

/// Waits until a thread outside has woken it.
async fn woken_from_outside(world: &World) {
    let mut sent = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut sent, true) {
            return Poll::Ready(());
        }
        world.outside.send(cx.waker().clone()).unwrap();
        Poll::Pending
    })
    .await;
}

/// Two sides that take turns; each wakes the other.
async fn turns(sides: Arc<([AtomicWaker; 2], AtomicUsize)>, me: usize, n: usize) {
    for round in 0..n {
        poll_fn(|cx| {
            sides.0[me].register(cx.waker());
            if sides.1.load(SeqCst) == 2 * round + me { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        sides.1.fetch_add(1, SeqCst);
        sides.0[1 - me].wake();
    }
}

async fn step(world: &Arc<World>, random: &mut Random) {
    let somebody = random.next() as usize % world.board.len();
    match random.below(13) {
        0 => gopark::yield_now().await,
        1 => {
            let Some((id, task)) = child(world, random, Fate::Output) else { return };
            check(world, id, Fate::Output, task.await);
        }
        2 => {
            let children: Vec<_> = (0..random.below(5)).filter_map(|_| child(world, random, Fate::Output)).collect();
            for (id, task) in children {
                check(world, id, Fate::Output, task.await);
            }
        }
        3 => {
            let Some((_, task)) = child(world, random, Fate::Output) else { return };
            drop(task);
        }
        4 => {
            let Some((id, task)) = child(world, random, Fate::Aborted) else { return };
            // Also where this task is itself aborted first: the child might wait for ever.
            let _abort = AbortOnDrop(task.abort_handle());
            for _ in 0..random.below(4) {
                gopark::yield_now().await;
            }
            if random.below(2) == 0 {
                task.abort();
            } else {
                let abort = task.abort_handle();
                thread::scope(|scope| drop(scope.spawn(move || abort.abort())));
            }
            check(world, id, Fate::Aborted, task.await);
        }
        5 => {
            let Some((id, task)) = child(world, random, Fate::Panic) else { return };
            if random.below(3) == 0 {
                drop(task);
            } else {
                check(world, id, Fate::Panic, task.await);
            }
        }
        6 => gopark::time::sleep(Duration::from_nanos(random.below(200_000))).await,
        7 => {
            // Given up at once, or nearly.
            let time = Duration::from_nanos(random.below(50_000));
            let slow = gopark::time::sleep(Duration::from_micros(20));
            let _ = gopark::time::timeout(time, slow).await;
        }
        8 => woken_from_outside(world).await,
        9 => {
            poll_fn(|cx| {
                world.board[somebody].register(cx.waker());
                Poll::Ready(())
            })
            .await;
            world.board[(somebody + 1) % world.board.len()].wake();
            gopark::yield_now().await;
        }
        10 => {
            let sides = Arc::new(Default::default());
            let n = random.below(20) as usize;
            let other = gopark::spawn(turns(Arc::clone(&sides), 1, n));
            turns(sides, 0, n).await;
            assert!(other.await.is_ok() || world.early);
        }
        11 => {
            let mut inner = random.fork();
            let nested = random.below(2) == 0;
            gopark::block_in_place(|| {
                if nested {
                    if let Some((id, task)) = child(world, &mut inner, Fate::Output) {
                        check(world, id, Fate::Output, gopark::block_on(task));
                    }
                } else {
                    thread::yield_now();
                }
            });
        }
        _ => {
            let (tally, id, nested) = (Tally::new(world), random.next(), random.below(4) == 0);
            let (there, mut inner) = (world.clone(), random.fork());
            let task = gopark::spawn_blocking(move || {
                let _tally = tally;
                if nested {
                    if let Some((id, task)) = child(&there, &mut inner, Fate::Output) {
                        check(&there, id, Fate::Output, there.handle.block_on(task));
                    }
                }
                id
            });
            if random.below(3) == 0 {
                drop(task);
            } else {
                check(world, id, Fate::Output, task.await);
            }
        }
    }
}

/// One runtime's life. Returns how many tasks there were.
fn round(procs: usize, mut random: Random) -> usize {
    // A shutdown in the midst of it, or one after all that can be waited for.
    let early = random.below(4) == 0;
    let told: Arc<(AtomicUsize, AtomicUsize)> = Arc::default();
    let there = told.clone();
    let builder = Builder::new().workers(procs).on_task_panic(move |_, payload| {
        there.0.fetch_add(usize::from(payload.is::<Planned>()), SeqCst);
        let unplanned = !(payload.is::<Planned>() || early && is_late_sleep(payload));
        there.1.fetch_add(usize::from(unplanned), SeqCst);
    });
    let rt = builder.build().unwrap();
    let (outside, wakers) = channel::<Waker>();
    let waker_thread = thread::spawn(move || wakers.into_iter().for_each(Waker::wake));
    let world = Arc::new(World {
        handle: rt.handle().clone(),
        made: AtomicUsize::new(0),
        dropped: AtomicUsize::new(0),
        outputs: AtomicUsize::new(0),
        panics: AtomicUsize::new(0),
        cancels: AtomicUsize::new(0),
        told,
        thrown: AtomicUsize::new(0),
        early,
        left: AtomicUsize::new(300 + random.below(700) as usize),
        board: (0..16).map(|_| AtomicWaker::new()).collect(),
        outside,
    });
    let roots: Vec<_> = (0..40)
        .filter_map(|_| {
            let _entered = rt.enter();
            child(&world, &mut random, Fate::Output)
        })
        .collect();
    if !early {
        for (id, root) in roots {
            check(&world, id, Fate::Output, rt.block_on(root));
        }
        // Those that were detached come to their end, too.
        while world.dropped.load(SeqCst) < world.made.load(SeqCst) {
            thread::sleep(Duration::from_micros(100));
        }
    } else {
        for _ in 0..random.below(200) {
            thread::yield_now();
        }
    }
    match random.below(3) {
        0 => drop(rt),
        1 => assert_eq!(rt.shutdown_timeout(Duration::from_secs(600)), Ok(())),
        _ => {
            let other = Builder::new().workers(1).build().unwrap();
            other.block_on(async { gopark::spawn(async move { drop(rt) }).await.unwrap() });
        }
    }
    let (made, dropped) = (world.made.load(SeqCst), world.dropped.load(SeqCst));
    assert_eq!(made, dropped, "futures made and dropped");
    let count = |number: &AtomicUsize| number.load(SeqCst);
    let panics = (count(&world.panics), count(&world.told.0));
    assert_eq!(panics.0 + panics.1, count(&world.thrown), "panics joined and told of: {panics:?}");
    assert!(count(&world.outputs) + count(&world.panics) + count(&world.cancels) <= made);
    assert_eq!(count(&world.told.1), 0, "tasks that did not end as planned");
    drop(world);
    waker_thread.join().unwrap();
    made
}

/// Traps S10, S13, S14, S17, S20, P24 and TM2, in no order: every task has the end that it was meant to have, every future is
/// dropped once, and nothing hangs.
#[test]
fn every_task_is_accounted_for() {
    let parse = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = parse("GOPARK_SEED").unwrap_or(clock);
    let secs = parse("GOPARK_STRESS_SECS").unwrap_or(3);
    let _watchdog = support::watchdog(secs + 60);
    // Past the harness, which would keep it for itself if the watchdog ended the process.
    let say = |text: String| drop(writeln!(std::io::stderr(), "{text}"));
    say(format!("stress: GOPARK_SEED={seed} for {secs} s"));
    std::panic::set_hook(Box::new({
        let default = std::panic::take_hook();
        move |info| {
            let text = info.to_string();
            if !(info.payload().is::<Planned>() || text.contains("a sleep outlived its runtime")) {
                default(info);
            }
        }
    }));
    let mut random = Random(seed);
    let start = Instant::now();
    let (mut rounds, mut tasks) = (0, 0);
    while rounds < 4 || start.elapsed() < Duration::from_secs(secs) {
        tasks += round([1, 2, 8, 64][rounds % 4], random.fork());
        rounds += 1;
    }
    say(format!("stress: {rounds} runtimes, {tasks} tasks and closures, each accounted for"));
}
