//! A random tree of tasks half of whose steps block their thread: asleep, or on what another task resolves; and an account
//! of how each task ended.
//!
//! A task waits for tasks that it has spawned, never the other way round. So nothing waits for ever, if a blocked thread
//! keeps nobody from running; and there are fewer tasks than there may be threads. The seed is printed; `GOPARK_SEED`
//! repeats one (as far as threads can be repeated), `GOPARK_STRESS_SECS` sets how long all of it takes (5 unless set).

mod support;

use futures::future::{BoxFuture, FutureExt};
use gopark::net::UnixStream;
use gopark::time::{sleep, timeout};
use gopark::{AbortHandle, Builder, Handle, JoinError, JoinHandle};
use std::any::Any;
use std::future::pending;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};
use support::{Gate, Random, watchdog};

/// What all tasks of one round share.
struct World {
    handle: Handle,
    /// How many tasks may still be spawned.
    left: AtomicUsize,
    spawned: AtomicUsize,
    count: Count,
    /// Futures and closures made, and dropped.
    made: AtomicUsize,
    dropped: AtomicUsize,
    /// Handles that a task has dropped, or lost with its future.
    orphans: Mutex<Vec<Orphan>>,
    /// Tasks that anybody may abort; and those that never end otherwise.
    aborts: Mutex<Vec<AbortHandle>>,
    endless: Mutex<Vec<AbortHandle>>,
    locks: [Mutex<()>; 4],
    /// The runtime is shut down in the midst of it: any task may be cancelled.
    early: bool,
}

/// How tasks have ended.
#[derive(Debug, Default)]
struct Count {
    values: AtomicUsize,
    panics: AtomicUsize,
    cancelled: AtomicUsize,
}

impl Count {
    fn sum(&self) -> usize {
        self.values.load(SeqCst) + self.panics.load(SeqCst) + self.cancelled.load(SeqCst)
    }
}

/// How a task is to end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Value,
    Panic,
    /// It may be aborted.
    Either,
}

struct Planned(u64);

/// What a poll that goes on after the shutdown may meet.
fn is_late_sleep(payload: &(dyn Any + Send)) -> bool {
    payload.downcast_ref::<&str>().is_some_and(|text| text.contains("a sleep outlived its runtime"))
}

fn add_one(number: &AtomicUsize) {
    number.fetch_add(1, SeqCst);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Orphan = (u64, Fate, JoinHandle<u64>);

/// Each spawned task has one. It counts the task's end when that is awaited, by whomever.
struct Ticket {
    world: Arc<World>,
    task: Option<Orphan>,
}

impl Ticket {
    fn new(world: &Arc<World>, id: u64, fate: Fate, task: JoinHandle<u64>) -> Ticket {
        Ticket { world: world.clone(), task: Some((id, fate, task)) }
    }
}

impl Future for Ticket {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let (id, fate, task) = this.task.as_mut().expect("not polled again");
        let result = ready!(Pin::new(task).poll(cx));
        let (id, fate) = (*id, *fate);
        this.task = None;
        this.world.ended(id, fate, result);
        Poll::Ready(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(orphan) = self.task.take() {
            lock(&self.world.orphans).push(orphan);
        }
    }
}

impl World {
    fn ended(&self, id: u64, fate: Fate, result: Result<u64, JoinError>) {
        // Counted first: if this panics, so does everybody who waits for it, up to the test.
        add_one(match &result {
            Ok(_) => &self.count.values,
            Err(error) if error.is_panic() => &self.count.panics,
            Err(_) => &self.count.cancelled,
        });
        match result.map_err(JoinError::try_into_panic) {
            Ok(value) => assert!(value == id && fate != Fate::Panic, "it should have panicked"),
            Err(Ok(payload)) => match payload.downcast_ref::<Planned>() {
                Some(planned) => assert!(planned.0 == id && fate == Fate::Panic),
                None => assert!(self.early && is_late_sleep(&*payload), "a panic that was not planned"),
            },
            Err(Err(_)) => assert!(fate == Fate::Either || self.early, "cancelled, though nobody did"),
        }
    }

    fn may_spawn(&self) -> bool {
        let took = self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        self.spawned.fetch_add(usize::from(took), SeqCst);
        took
    }
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
    }
}

/// Opens a gate, also when it is dropped.
struct Opener(Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What a task does last, and somebody waits for; if it is cancelled or panics first, the drop of this tells.
enum Signal {
    None,
    Send(Sender<()>),
    Open(Opener),
    Write(UnixStream),
}

impl Signal {
    async fn give(self) {
        match self {
            Signal::None => {}
            Signal::Send(sender) => drop(sender.send(())),
            Signal::Open(opener) => drop(opener),
            // Who waits at the other end may have been aborted.
            Signal::Write(stream) => drop(stream.write_all(b"x").await),
        }
    }
}

/// One task: a few random steps, then its fate. Gives its id.
fn node(
    world: Arc<World>,
    mut random: Random,
    id: u64,
    fate: Fate,
    endless: bool,
    signal: Signal,
) -> BoxFuture<'static, u64> {
    let tally = Tally::new(&world);
    async move {
        let _tally = tally;
        for _ in 0..random.below(5) {
            step(&world, &mut random).await;
        }
        if fate == Fate::Panic {
            std::panic::panic_any(Planned(id));
        }
        if endless {
            pending::<()>().await;
        }
        signal.give().await;
        id
    }
    .boxed()
}

fn child(world: &Arc<World>, random: &mut Random, signal: Signal) -> Option<Ticket> {
    if !world.may_spawn() {
        return None;
    }
    let (id, endless) = (random.next(), random.below(4) == 0);
    let fate = [Fate::Panic, Fate::Either, Fate::Value][random.below(8).min(2) as usize];
    let endless = endless && fate == Fate::Either;
    let future = node(world.clone(), random.fork(), id, fate, endless, signal);
    let task = world.handle.spawn(future);
    if fate == Fate::Either {
        lock(if endless { &world.endless } else { &world.aborts }).push(task.abort_handle());
    }
    Some(Ticket::new(world, id, fate, task))
}

/// Blocks the calling thread, by whatever it is blocked.
fn block(world: &Arc<World>, random: &mut Random) {
    let a_while = Duration::from_micros(random.below(30_000));
    match random.below(7) {
        0 => thread::sleep(a_while),
        1 => {
            let (tx, rx) = channel();
            let child = child(world, random, Signal::Send(tx));
            let value = child.as_ref().and_then(|child| child.task.as_ref()).is_some_and(|task| task.1 == Fate::Value);
            assert!(rx.recv().is_ok() || !value || world.early, "a task that should have returned");
        }
        2 => {
            let gate = Arc::new(Gate::default());
            let _child = child(world, random, Signal::Open(Opener(gate.clone())));
            gate.wait();
        }
        3 => {
            let _held = lock(&world.locks[random.below(4) as usize]);
            thread::sleep(a_while / 8);
        }
        4 => {
            let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            // Refused once the runtime is gone.
            let Ok(there) = UnixStream::from_std(there) else { return };
            let _child = child(world, random, Signal::Write(there));
            let n = here.read(&mut [0]).unwrap_or(0);
            assert!(n <= 1);
        }
        5 => {
            if let Some(child) = child(world, random, Signal::None) {
                gopark::block_on(child);
            }
        }
        _ => {
            let (there, mut inner) = (world.clone(), random.fork());
            gopark::block_in_place(|| match inner.below(2) {
                0 => thread::sleep(a_while),
                _ => block(&there, &mut inner),
            });
        }
    }
}

fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

async fn step(world: &Arc<World>, random: &mut Random) {
    match random.below(18) {
        0..8 => block(world, random),
        8 => {
            if !world.may_spawn() {
                return;
            }
            let (tally, id, there, mut inner) = (Tally::new(world), random.next(), world.clone(), random.fork());
            let task = gopark::spawn_blocking(move || {
                let _tally = tally;
                block(&there, &mut inner);
                id
            });
            // One that nobody awaits has no less to run.
            let closure = Ticket::new(world, id, Fate::Value, task);
            if random.below(4) != 0 {
                closure.await;
            }
        }
        9 => compute(Duration::from_micros(1_000 + random.below(29_000))),
        10 => gopark::yield_now().await,
        11 => sleep(Duration::from_micros(random.below(3_000))).await,
        12 => {
            let slow = sleep(Duration::from_micros(200));
            let _ = timeout(Duration::from_micros(random.below(400)), slow).await;
        }
        13 => {
            let children: Vec<_> = (0..random.below(6)).filter_map(|_| child(world, random, Signal::None)).collect();
            for child in children {
                child.await;
            }
        }
        14 => drop(child(world, random, Signal::None)),
        15 => {
            let aborts = if random.below(2) == 0 { &world.aborts } else { &world.endless };
            let somebody = {
                let mut aborts = lock(aborts);
                let n = aborts.len().max(1);
                let at = random.next() as usize % n;
                (at < aborts.len()).then(|| aborts.swap_remove(at))
            };
            // Not under the lock: this may wake.
            somebody.iter().for_each(AbortHandle::abort);
        }
        _ => {
            let (here, there) = match UnixStream::pair() {
                Ok(pair) => pair,
                Err(_) if world.early => return,
                Err(error) => panic!("{error}"),
            };
            let child = child(world, random, Signal::Write(there));
            let read = here.read(&mut [0]).await;
            assert!(read.is_ok() || world.early);
            drop(child);
        }
    }
}

/// One runtime's life. Returns how many tasks there were, and how often one was said to be stuck.
fn round(procs: usize, mut random: Random) -> (usize, usize) {
    let early = random.below(4) == 0;
    let stuck = Arc::new(AtomicUsize::new(0));
    let threads = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let (started, stopped) = (threads.clone(), threads.clone());
    let mut builder = Builder::new().workers(procs);
    builder = builder.on_thread_start(move || add_one(&started.0));
    builder = builder.on_thread_stop(move || add_one(&stopped.1));
    if random.below(2) == 0 {
        let stuck = stuck.clone();
        builder = builder.on_stuck_task(move |_| add_one(&stuck));
    }
    let rt = builder.build().unwrap();
    let world = Arc::new(World {
        handle: rt.handle().clone(),
        left: AtomicUsize::new(100 + random.below(200) as usize),
        spawned: AtomicUsize::new(0),
        count: Count::default(),
        made: AtomicUsize::new(0),
        dropped: AtomicUsize::new(0),
        orphans: Mutex::default(),
        aborts: Mutex::default(),
        endless: Mutex::default(),
        locks: Default::default(),
        early,
    });
    for _ in 0..20 {
        drop(child(&world, &mut random, Signal::None));
    }
    let mut rt = Some(rt);
    if early {
        thread::sleep(Duration::from_micros(random.below(60_000)));
        let rt = rt.take().unwrap();
        match random.below(4) {
            0 => drop(rt),
            1 => drop(rt.shutdown_timeout(Duration::from_micros(random.below(20_000)))),
            2 => rt.shutdown_background(),
            _ => {
                let other = Builder::new().workers(1).build().unwrap();
                other.run(async move { drop(rt) });
            }
        }
    }
    // A task that has not ended is counted as spawned: nobody spawns once the numbers are the same.
    while world.count.sum() < world.spawned.load(SeqCst) {
        let endless = std::mem::take(&mut *lock(&world.endless));
        endless.iter().for_each(AbortHandle::abort);
        let orphans = std::mem::take(&mut *lock(&world.orphans));
        let (ended, others): (Vec<_>, Vec<_>) = orphans.into_iter().partition(|orphan| orphan.2.is_finished());
        lock(&world.orphans).extend(others);
        for (id, fate, task) in ended {
            futures::executor::block_on(Ticket::new(&world, id, fate, task));
        }
        thread::sleep(Duration::from_micros(200));
    }
    drop(rt);
    while threads.0.load(SeqCst) != threads.1.load(SeqCst) || world.made.load(SeqCst) != world.dropped.load(SeqCst) {
        thread::sleep(Duration::from_micros(200));
    }
    assert!(lock(&world.orphans).is_empty());
    assert_eq!(world.count.sum(), world.spawned.load(SeqCst), "{:?}", world.count);
    (world.spawned.load(SeqCst), stuck.load(SeqCst))
}

/// Traps S1, S3, S10, S17, S19 and S20, in no order: every task ends once, as it was meant to, whoever blocks.
#[test]
fn every_task_of_a_random_tree_that_blocks() {
    let parse = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = parse("GOPARK_SEED").unwrap_or(clock);
    let secs = parse("GOPARK_STRESS_SECS").unwrap_or(5);
    let _watchdog = watchdog(secs + 120);
    // Past the harness, which would keep it for itself if the watchdog ended the process.
    let say = |text: String| drop(writeln!(std::io::stderr(), "{text}"));
    say(format!("stress_stuck: GOPARK_SEED={seed} for {secs} s"));
    std::panic::set_hook(Box::new({
        let default = std::panic::take_hook();
        move |info| {
            if !(info.payload().is::<Planned>() || info.to_string().contains("a sleep outlived its runtime")) {
                default(info);
            }
        }
    }));
    let mut random = Random(seed);
    let start = Instant::now();
    let (mut rounds, mut tasks, mut stuck) = (0, 0, 0);
    while rounds < 4 || start.elapsed() < Duration::from_secs(secs) {
        let (more, told) = round([1, 2, 8, 64][rounds % 4], random.fork());
        (rounds, tasks, stuck) = (rounds + 1, tasks + more, stuck + told);
    }
    say(format!("stress_stuck: {rounds} runtimes, {tasks} tasks and closures, {stuck} times one was said to be stuck"));
}
