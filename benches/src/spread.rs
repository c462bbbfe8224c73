//! `benches spread`: how well many short computations use a second worker.

use crate::args::Args;
use crate::contest::{self, Progress, Rows, Samples};
use crate::gopark_peer::Gopark;
use crate::peer::{AGAIN, Peer, Peers};
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::stats::{self, Spread};
use crate::tokio_peer::Tokio;
use crate::{Failure, work};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
benches spread [--quick] [--rounds K] [--peers A,..]

1,000 tasks of 20 us of pure computation each, spawned by one task that then waits for all of them, on one worker and on
two: wall times, and how many times faster two are than one (2 would be perfect). A task computes a fixed number of
steps, calibrated once, so that the work is the same wherever and whenever it runs. `threads` are plain threads, with an
equal share each and no scheduling at all: what this machine can give at best. K rounds (15) of all in rotating
order; shown are medians and, in parentheses, quartiles. gopark takes part twice, so that the noise can be seen.

  --quick   one round

What it does not measure: tasks that wait, more than two workers, uneven tasks, the cost of a spawn by itself.
";

pub(crate) const ROUNDS: usize = 15;
const TASKS: usize = 1000;
const TASK: Duration = Duration::from_micros(20);
/// So many times all the tasks in one runtime; the first warms it up.
const REPEATS: usize = 4;

/// A time per batch on so many workers.
type Run = fn(workers: usize, steps: u64) -> Result<f64, Failure>;

/// The times on one worker and on two, in nanoseconds.
pub(crate) type Figures = Rows<(f64, f64)>;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { ROUNDS });
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    args.finish()?;
    print(&measure(peers.unwrap_or_else(|| Peers(vec![Peer::Tokio, Peer::Gopark])), rounds)?);
    Ok(())
}

pub(crate) fn measure(peers: Peers, rounds: usize) -> Result<Figures, Failure> {
    let mut runs: Vec<(&str, Run)> = vec![("threads", on_threads)];
    for peer in peers.runtimes_only()? {
        match peer {
            Peer::Tokio => runs.push((peer.name(), on_runtime::<Tokio>)),
            Peer::Smol => runs.push((peer.name(), on_runtime::<Smol>)),
            Peer::Gopark => runs.extend([peer.name(), AGAIN].map(|label| (label, on_runtime::<Gopark> as Run))),
            Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("spread has tokio, smol and gopark")),
        }
    }
    let steps = work::steps_in(TASK);
    let labels: Vec<_> = runs.iter().map(|run| run.0).collect();
    let mut progress = Progress::new(rounds * runs.len());
    progress.enter("spread");
    let turn = |index: usize| Ok(((runs[index].1(1, steps)?, runs[index].1(2, steps)?), 0.0));
    let (figures, _) = contest::play_rounds(&labels, rounds, Duration::ZERO, &mut progress, turn)?;
    progress.pause();
    Ok(figures)
}

/// How many times faster two workers are than one.
pub(crate) fn faster(figures: &Figures) -> Samples {
    contest::pick(figures, |(one, two)| one / two)
}

pub(crate) fn print(figures: &Figures) {
    println!("{TASKS} tasks of {TASK:?}");
    println!("  {:<14}{:<34}{:<34}times faster", "", "1 worker", "2 workers");
    for ((label, samples), (_, faster)) in figures.iter().zip(faster(figures)) {
        let show = |each: fn(&(f64, f64)) -> f64| {
            Spread::of(samples.iter().map(each)).expect("a round at least").show(stats::duration)
        };
        let (one, two) = (show(|times| times.0), show(|times| times.1));
        let faster = Spread::of(faster).expect("a round at least").show(stats::ratio);
        println!("  {label:<14}{one:<34}{two:<34}{faster}");
    }
}

fn on_runtime<R: Runtime>(workers: usize, steps: u64) -> Result<f64, Failure> {
    Ok(R::run(workers, async move {
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            let start = Instant::now();
            let tasks: Vec<_> = (0..TASKS).map(|_| R::spawn(async move { work::compute(steps) })).collect();
            for task in tasks {
                task.await;
            }
            times.push(start.elapsed());
        }
        without_first(times)
    })?)
}

fn on_threads(count: usize, steps: u64) -> Result<f64, Failure> {
    let times = (0..REPEATS).map(|_| {
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| (0..TASKS / count).for_each(|_| work::compute(steps)));
            }
        });
        start.elapsed()
    });
    Ok(without_first(times.collect()))
}

/// The median of all times but the first, in nanoseconds.
fn without_first(times: Vec<Duration>) -> f64 {
    let rest = times[1..].iter().map(|time| time.as_nanos() as f64);
    Spread::of(rest).expect("more than one repeat").median
}
