//! `benches micro`: what the parts of a scheduler cost, one by one. The criterion benches run the same code.

use crate::args::Args;
use crate::contest::Samples;
use crate::gopark_peer::Gopark;
use crate::peer::Peer;
use crate::rounds::{Job, Rounds};
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::tokio_peer::Tokio;
use crate::{Failure, go, rounds, stats};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use std::{hint, iter, thread};
use tokio::sync::{mpsc, oneshot};

pub(crate) const HELP: &str = "\
benches micro [--quick] [--rounds K] [--workers N] [--peers A,..]

What the parts of a scheduler cost, in nanoseconds, on two workers (--workers), tokio, smol and gopark, and go where it
is in PATH. Per round, each peer once in a fresh process, which plays each row 21 times, rows of 1,000 operations 105
times, since those are over in a fraction of a millisecond, and a million sleeps 3 times; it tells their medians. K rounds
(5), in rotating order; shown are medians and, in parentheses, quartiles. gopark takes part twice, so that the noise can
be seen.

  spawn inside     10,000 empty tasks from one task, which then joins them; per task
  spawn outside    the same from a thread that is not the runtime's, until the last has run; per task
  yield            1,000 tasks that yield 1,000 times each; per yield
  oneshot pairs    1,000 tasks at once: each spawns another, gives it a value and gets one back; per pair
  channel          two tasks pass a message to and fro, 100,000 times; per message
  chained spawn    1,000 tasks of which each spawns the next; per task
  storm inside     a task wakes 1,000 others that wait; until the last has run; per wake
  storm outside    the same from a thread that is not the runtime's
  sleep            making, polling and dropping a sleep of 60 s, one after another; per sleep
  million sleeps   the same with a million alive: all made, then all dropped; per sleep
  clock            one reading of the clock, which a sleep contains

The channels are tokio's (tokio::sync) for all but go, which has its own.

  --quick   one round in which each row is played once

What it does not measure: more than two workers, large futures, tasks that do something, memory. `sleep` has no
counterpart in go that is polled and dropped: there it is a timer, made and stopped.
";

const SPAWNS: usize = 10_000;
const YIELDERS: usize = 1000;
const YIELDS: usize = 1000;
const PAIRS: usize = 1000;
const MESSAGES: usize = 100_000;
const DEPTH: usize = 1000;
const SLEEPERS: usize = 1000;
const SLEEPS: usize = 10_000;
const MILLION: usize = 1_000_000;
const LONG: Duration = Duration::from_secs(60);

/// In the order in which a child tells them.
const ROWS: [&str; 11] = [
    "spawn inside",
    "spawn outside",
    "yield",
    "oneshot pairs",
    "channel",
    "chained spawn",
    "storm inside",
    "storm outside",
    "sleep",
    "million sleeps",
    "clock",
];

pub(crate) type Figures = rounds::Figures<{ ROWS.len() }>;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = Rounds::options(&mut args, quick)?;
    let workers = args.workers()?;
    args.finish()?;
    print(&measure(rounds, workers, quick)?, workers);
    Ok(())
}

pub(crate) fn measure(rounds: Rounds, workers: usize, quick: bool) -> Result<Figures, Failure> {
    let times = if quick { 1 } else { 21 };
    rounds.run(&Job { name: "parts", bench: "micro", workers, numbers: &[times], go: go::MICRO })
}

/// A row; `sleep` without the reading of the clock in it.
pub(crate) fn row(figures: &Figures, name: &str) -> Samples {
    let at = |wanted: &str| ROWS.iter().position(|row| *row == wanted).expect("there is such a row");
    let (row, clock) = (at(name), at("clock"));
    figures.samples(|figures| figures[row] - if name == "sleep" { figures[clock] } else { 0.0 })
}

pub(crate) fn print(figures: &Figures, workers: usize) {
    println!("per operation, {}", stats::count(workers, "worker"));
    figures.print_rows(ROWS, 24, |nanos| format!("{nanos:.0} ns"));
}

/// `benches parts PEER --workers N TIMES`: one process that plays all rows, and prints one line.
pub(crate) fn child(args: Args) -> Result<(), Failure> {
    let (peer, workers, [times]) = rounds::child_args(args, ["TIMES"])?;
    rounds::tell(match peer {
        Peer::Tokio => Tokio::run(workers, all::<Tokio>(times)),
        Peer::Smol => Smol::run(workers, all::<Smol>(times)),
        Peer::Gopark => Gopark::run(workers, all::<Gopark>(times)),
        Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }?);
    Ok(())
}

async fn all<R: Runtime>(times: u64) -> [f64; ROWS.len()] {
    let mut medians = [0.0; ROWS.len()];
    for (row, median) in ROWS.into_iter().zip(&mut medians) {
        // What is over in no time strays; a million sleeps take long enough to be measured well in a few times.
        let times = match operations(row) {
            MILLION => times.min(3),
            ..=1000 if times > 1 => times * 5,
            _ => times,
        };
        let mut played = Vec::new();
        for _ in 0..times {
            played.push(play_once::<R>(row).await.as_nanos() as f64 / operations(row) as f64);
        }
        *median = stats::Spread::of(played).expect("once at least").median;
    }
    medians
}

/// The rows, and of how many operations each is made.
pub fn micro_rows() -> impl Iterator<Item = (&'static str, u64)> {
    ROWS.into_iter().map(|row| (row, operations(row) as u64))
}

/// Plays a row so many times on a fresh runtime with two workers.
///
/// # Panics
/// There is no such runtime, or no such row.
pub fn play(runtime: &str, row: &'static str, times: u64) -> Duration {
    async fn sum<R: Runtime>(row: &'static str, times: u64) -> Duration {
        let mut sum = Duration::ZERO;
        for _ in 0..times {
            sum += play_once::<R>(row).await;
        }
        sum
    }
    let time = match runtime.parse() {
        Ok(Peer::Tokio) => Tokio::run(2, sum::<Tokio>(row, times)),
        Ok(Peer::Smol) => Smol::run(2, sum::<Smol>(row, times)),
        Ok(Peer::Gopark) => Gopark::run(2, sum::<Gopark>(row, times)),
        _ => panic!("no runtime {runtime}"),
    };
    time.expect("a runtime starts")
}

fn operations(row: &str) -> usize {
    match row {
        "spawn inside" | "spawn outside" => SPAWNS,
        "yield" => YIELDERS * YIELDS,
        "oneshot pairs" => PAIRS,
        "channel" => MESSAGES * 2,
        "chained spawn" => DEPTH,
        "storm inside" | "storm outside" => SLEEPERS,
        "million sleeps" => MILLION,
        _ => SLEEPS,
    }
}

async fn play_once<R: Runtime>(row: &str) -> Duration {
    match row {
        "spawn inside" => spawn_inside::<R>().await,
        "spawn outside" => spawn_outside::<R>().await,
        "yield" => yields::<R>().await,
        "oneshot pairs" => oneshot_pairs::<R>().await,
        "channel" => channel::<R>().await,
        "chained spawn" => chained_spawn::<R>().await,
        "storm inside" => storm::<R>(true).await,
        "storm outside" => storm::<R>(false).await,
        "sleep" => sleep_by_sleep::<R>().await,
        "million sleeps" => million_sleeps::<R>().await,
        "clock" => clock(),
        other => panic!("no row {other}"),
    }
}

async fn spawn_inside<R: Runtime>() -> Duration {
    let start = Instant::now();
    let tasks: Vec<_> = (0..SPAWNS).map(|_| R::spawn(async {})).collect();
    for task in tasks {
        task.await;
    }
    start.elapsed()
}

/// Tells when the last of so many has come.
struct Countdown {
    left: AtomicUsize,
    tell: Mutex<Option<oneshot::Sender<Instant>>>,
}

impl Countdown {
    fn new(from: usize) -> (Arc<Self>, oneshot::Receiver<Instant>) {
        let (tell, told) = oneshot::channel();
        (Arc::new(Countdown { left: AtomicUsize::new(from), tell: Mutex::new(Some(tell)) }), told)
    }

    fn count(&self) {
        // The last one knows all the others by this.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let tell = self.tell.lock().expect("nobody panics").take().expect("there is one last");
            tell.send(Instant::now()).expect("somebody waits");
        }
    }
}

async fn spawn_outside<R: Runtime>() -> Duration {
    let (countdown, end) = Countdown::new(SPAWNS);
    let start = outside::<R, _>(move |handle| {
        let start = Instant::now();
        for _ in 0..SPAWNS {
            let countdown = countdown.clone();
            R::spawn_from_outside(handle, async move { countdown.count() });
        }
        start
    });
    let start = start.await;
    end.await.expect("all run") - start
}

/// What a thread that is not the runtime's returns.
async fn outside<R: Runtime, T: Send + 'static>(f: impl FnOnce(&R::Handle) -> T + Send + 'static) -> T {
    let (tell, told) = oneshot::channel();
    let handle = R::handle();
    thread::spawn(move || _ = tell.send(f(&handle)));
    told.await.unwrap_or_else(|_| panic!("the thread tells"))
}

async fn yields<R: Runtime>() -> Duration {
    let start = Instant::now();
    let yielder = || async {
        for _ in 0..YIELDS {
            R::yield_now().await;
        }
    };
    let tasks: Vec<_> = (0..YIELDERS).map(|_| R::spawn(yielder())).collect();
    for task in tasks {
        task.await;
    }
    start.elapsed()
}

async fn oneshot_pairs<R: Runtime>() -> Duration {
    let start = Instant::now();
    let pair = || async {
        let ((ask, asked), (answer, answered)) = (oneshot::channel(), oneshot::channel());
        drop(R::spawn(async move { answer.send(asked.await) }));
        ask.send(()).expect("the other waits");
        answered.await.expect("the other answers").expect("it was asked");
    };
    let tasks: Vec<_> = (0..PAIRS).map(|_| R::spawn(pair())).collect();
    for task in tasks {
        task.await;
    }
    start.elapsed()
}

async fn channel<R: Runtime>() -> Duration {
    let (there, mut arrives) = mpsc::channel(1);
    let (back, mut returns) = mpsc::channel(1);
    let echo = R::spawn(async move {
        while let Some(message) = arrives.recv().await {
            back.send(message).await.expect("the other listens");
        }
    });
    let caller = R::spawn(async move {
        let start = Instant::now();
        for message in 0..MESSAGES {
            there.send(message).await.expect("the other listens");
            assert_eq!(returns.recv().await, Some(message));
        }
        start.elapsed()
    });
    let time = caller.await;
    echo.await;
    time
}

async fn chained_spawn<R: Runtime>() -> Duration {
    fn next<R: Runtime>(depth: usize, end: oneshot::Sender<()>) {
        // The type of a future that spawns itself has to end somewhere.
        let link: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            match depth {
                1 => end.send(()).expect("the first waits"),
                _ => next::<R>(depth - 1, end),
            }
        });
        drop(R::spawn(link));
    }
    let start = Instant::now();
    let (end, ended) = oneshot::channel();
    next::<R>(DEPTH, end);
    ended.await.expect("the last sends");
    start.elapsed()
}

/// A task that waits until it is woken.
#[derive(Default)]
struct Sleeper {
    waker: Mutex<Option<Waker>>,
    woken: AtomicBool,
}

impl Sleeper {
    async fn sleep(&self) {
        poll_fn(|cx| {
            let mut waker = self.waker.lock().expect("nobody panics");
            match self.woken.load(Ordering::Relaxed) {
                true => Poll::Ready(()),
                false => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
    }

    fn is_asleep(&self) -> bool {
        self.waker.lock().expect("nobody panics").is_some()
    }

    fn wake(&self) {
        let waker = self.waker.lock().expect("nobody panics").take();
        self.woken.store(true, Ordering::Relaxed);
        waker.expect("it is asleep").wake();
    }
}

async fn storm<R: Runtime>(inside: bool) -> Duration {
    let (countdown, end) = Countdown::new(SLEEPERS);
    let sleepers: Arc<[Sleeper]> = iter::repeat_with(Sleeper::default).take(SLEEPERS).collect();
    for index in 0..SLEEPERS {
        let (sleepers, countdown) = (sleepers.clone(), countdown.clone());
        drop(R::spawn(async move {
            sleepers[index].sleep().await;
            countdown.count();
        }));
    }
    while !sleepers.iter().all(Sleeper::is_asleep) {
        R::yield_now().await;
    }
    let wake_all = move || {
        let start = Instant::now();
        sleepers.iter().for_each(Sleeper::wake);
        start
    };
    let start = if inside { wake_all() } else { outside::<R, _>(move |_| wake_all()).await };
    end.await.expect("all run") - start
}

async fn sleep_by_sleep<R: Runtime>() -> Duration {
    poll_fn(|cx| {
        let start = Instant::now();
        for _ in 0..SLEEPS {
            assert!(pin!(R::sleep(LONG)).poll(cx).is_pending());
        }
        Poll::Ready(start.elapsed())
    })
    .await
}

async fn million_sleeps<R: Runtime>() -> Duration {
    let mut sleeps = Vec::with_capacity(MILLION);
    let time = poll_fn(|cx| {
        let start = Instant::now();
        for _ in 0..MILLION {
            sleeps.push(R::sleep(LONG));
            let sleep = sleeps.last_mut().expect("one was pushed");
            // SAFETY: it stays where it is until it is dropped there: the vector has room for all of them.
            assert!(unsafe { Pin::new_unchecked(sleep) }.poll(cx).is_pending());
        }
        sleeps.clear();
        Poll::Ready(start.elapsed())
    });
    time.await
}

fn clock() -> Duration {
    let start = Instant::now();
    for _ in 0..SLEEPS {
        hint::black_box(Instant::now());
    }
    start.elapsed()
}
