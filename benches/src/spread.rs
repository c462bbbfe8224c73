//! `benches spread`: how well many short computations use a second worker.

use crate::args::Args;
use crate::gopark_peer::Gopark;
use crate::peer::{Peer, Peers};
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
order; shown are medians and, in parentheses, quartiles.

  --quick   one round

What it does not measure: tasks that wait, more than two workers, uneven tasks, the cost of a spawn by itself.
";

const TASKS: usize = 1000;
const TASK: Duration = Duration::from_micros(20);
/// So many times all the tasks in one runtime; the first warms it up.
const REPEATS: usize = 4;

/// A time per batch on so many workers.
type Run = fn(workers: usize, steps: u64) -> Result<f64, Failure>;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { 15 });
    let peers =
        args.parsed::<Peers>("--peers", Peers::WANTS)?.unwrap_or_else(|| Peers(vec![Peer::Tokio, Peer::Gopark]));
    args.finish()?;

    let mut runs: Vec<(&str, Run)> = vec![("threads", on_threads)];
    for peer in peers.runtimes_only()? {
        match peer {
            Peer::Tokio => runs.push((peer.name(), on_runtime::<Tokio>)),
            Peer::Smol => runs.push((peer.name(), on_runtime::<Smol>)),
            Peer::Gopark => runs.push((peer.name(), on_runtime::<Gopark>)),
            Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("spread has tokio, smol and gopark")),
        }
    }
    let steps = work::steps_in(TASK);
    let mut samples = vec![Vec::new(); runs.len()];
    for round in 0..rounds {
        for turn in 0..runs.len() {
            let index = (turn + round) % runs.len();
            let run = runs[index].1;
            samples[index].push((run(1, steps)?, run(2, steps)?));
        }
    }

    println!("{TASKS} tasks of {TASK:?} ({steps} steps)");
    println!("  {:<8}{:<34}{:<34}times faster", "", "1 worker", "2 workers");
    for ((name, _), samples) in runs.iter().zip(samples) {
        let show = |each: fn(&(f64, f64)) -> f64, unit: fn(f64) -> String| {
            Spread::of(samples.iter().map(each)).expect("a round at least").show(unit)
        };
        let (one, two) = (show(|sample| sample.0, stats::duration), show(|sample| sample.1, stats::duration));
        println!("  {name:<8}{one:<34}{two:<34}{}", show(|sample| sample.0 / sample.1, stats::ratio));
    }
    Ok(())
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
