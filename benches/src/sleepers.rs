//! `benches sleepers`: how late tasks wake that sleep, and what they cost.

use crate::args::Args;
use crate::contest::Samples;
use crate::gopark_peer::Gopark;
use crate::pattern::mix;
use crate::peer::Peer;
use crate::rounds::{Job, Rounds};
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::stats;
use crate::tokio_peer::Tokio;
use crate::{Failure, go, rounds, sys};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
benches sleepers [--quick] [--rounds K] [--sleepers N] [--workers N] [--peers A,..]

N sleepers (100,000), each a task that sleeps once for a random time up to 100 ms, all started at once in a fresh
process on two workers (--workers): how late they wake, and the process's CPU time for all of it. Then, in the same
process, now idle, 1,000 times a single sleep of 100 us: by how much it is too long. K rounds (5), in rotating order;
shown are medians and, in parentheses, quartiles. go takes part where it is in PATH, and gopark twice, so that the noise
can be seen. The random times are the same for all.

  --quick   one round of a tenth of the sleepers

What it does not measure: sleeps that are cancelled or reset, sleeps while the workers are busy with other work. The
starting of all the tasks is in the figures: a sleeper can be late because its worker was busy starting others. tokio's
timers are whole milliseconds by design. The kernel's timer slack (50 us by default) applies to whoever waits by a
timeout of epoll or of a futex.
";

const LONGEST: Duration = Duration::from_millis(100);
const SINGLES: u64 = 1000;
const SINGLE: Duration = Duration::from_micros(100);

/// What a child finds out, in nanoseconds, in the order in which it prints them.
const COLUMNS: [&str; 6] = ["late, p50", "late, p99", "late, max", "CPU time", "wall time", "sleep(100us) over, p50"];

pub(crate) type Figures = rounds::Figures<{ COLUMNS.len() }>;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = Rounds::options(&mut args, quick)?;
    let sleepers = args.number("--sleepers", 1..=10_000_000)?.unwrap_or(some(quick));
    let workers = args.workers()?;
    args.finish()?;
    print(&measure(rounds, workers, sleepers, quick)?, workers, sleepers);
    Ok(())
}

/// How many there are unless somebody says so.
pub(crate) fn some(quick: bool) -> u64 {
    if quick { 10_000 } else { 100_000 }
}

pub(crate) fn measure(rounds: Rounds, workers: usize, sleepers: u64, quick: bool) -> Result<Figures, Failure> {
    let singles = if quick { SINGLES / 10 } else { SINGLES };
    let numbers = [sleepers, LONGEST.as_nanos() as u64, singles];
    rounds.run(&Job { name: "sleep", bench: "sleepers", workers, numbers: &numbers, go: go::SLEEPERS })
}

/// A column.
pub(crate) fn column(figures: &Figures, name: &str) -> Samples {
    let at = COLUMNS.iter().position(|column| *column == name).expect("there is such a column");
    figures.samples(|figures| figures[at])
}

pub(crate) fn print(figures: &Figures, workers: usize, sleepers: u64) {
    println!("{sleepers} sleepers of up to {LONGEST:?}, {}", stats::count(workers, "worker"));
    figures.print(COLUMNS, 30, stats::duration);
}

/// `benches sleep PEER --workers N SLEEPERS LONGEST SINGLES`: one process of sleepers, which prints one line.
pub(crate) fn child(args: Args) -> Result<(), Failure> {
    let (peer, workers, [sleepers, longest, singles]) = rounds::child_args(args, ["SLEEPERS", "LONGEST", "SINGLES"])?;
    rounds::tell(match peer {
        Peer::Tokio => Tokio::run(workers, sleep_all::<Tokio>(sleepers, longest, singles)),
        Peer::Smol => Smol::run(workers, sleep_all::<Smol>(sleepers, longest, singles)),
        Peer::Gopark => Gopark::run(workers, sleep_all::<Gopark>(sleepers, longest, singles)),
        Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }?);
    Ok(())
}

async fn sleep_all<R: Runtime>(sleepers: u64, longest: u64, singles: u64) -> [u64; COLUMNS.len()] {
    let late: Arc<[AtomicU64]> = (0..sleepers).map(|_| AtomicU64::new(0)).collect();
    let (start, cpu) = (Instant::now(), sys::own_cpu());
    let tasks: Vec<_> = (0..sleepers)
        .map(|index| {
            let late = late.clone();
            R::spawn(async move {
                let lateness = oversleep::<R>(Duration::from_nanos(mix(index) % longest)).await;
                late[index as usize].store(lateness, Relaxed);
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    let (cpu, wall) = (sys::own_cpu() - cpu, start.elapsed().as_nanos() as u64);

    let late = sorted(late.iter().map(|late| late.load(Relaxed)));
    let mut over = Vec::new();
    for _ in 0..singles {
        over.push(oversleep::<R>(SINGLE).await);
    }
    [at(&late, 0.5), at(&late, 0.99), at(&late, 1.0), cpu, wall, at(&sorted(over), 0.5)]
}

/// How many nanoseconds a sleep took too long.
async fn oversleep<R: Runtime>(time: Duration) -> u64 {
    let start = Instant::now();
    R::sleep(time).await;
    start.elapsed().saturating_sub(time).as_nanos() as u64
}

fn sorted(values: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.into_iter().collect();
    values.sort_unstable();
    values
}

fn at(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
