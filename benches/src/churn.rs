//! `benches blocking --how churn`: what it costs that sysmon may take a P, where it should not (trap S21).

use crate::contest::{self, Clocks, Progress};
use crate::pattern::mix;
use crate::stats::{self, Spread};
use crate::{Failure, work};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const TASKS: u64 = 2000;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(5);
const WORKERS: usize = 2;

/// The first is what the others are compared with.
const RUNS: [(&str, bool); 3] = [("off", false), ("off again", false), ("on", true)];

/// What one run did.
struct Sample {
    tasks_per_second: f64,
    threads: u64,
}

pub(crate) fn main(quick: bool, rounds: Option<usize>, patience: Duration) -> Result<(), Failure> {
    let rounds = rounds.unwrap_or(if quick { 1 } else { 9 });
    let tasks = if quick { TASKS / 20 } else { TASKS };
    let steps = [SHORTEST, LONGEST].map(work::steps_in);
    let turn = |index: usize| {
        let start = Clocks::read(None)?;
        let sample = run(tasks, steps, RUNS[index].1)?;
        let others = Clocks::read(None)?.others_since(&start);
        Ok(((sample, others), others))
    };
    let mut progress = Progress::new(rounds * RUNS.len());
    progress.enter("churn");
    let (rows, repeated) = contest::play_rounds(&RUNS.map(|run| run.0), rounds, patience, &mut progress, turn)?;
    progress.pause();

    println!("churn: {tasks} tasks of {SHORTEST:?} to {LONGEST:?}, {}", stats::count(WORKERS, "worker"));
    println!("  {:<12}{:<30}{:<24}{:<30}95 % sure", "retake", "tasks/s", "threads", "throughput/off");
    for (name, samples) in &rows {
        let show = |values: &mut dyn Iterator<Item = f64>| Spread::of(values).expect("a round at least").show(fine);
        let ratios = || {
            let pairs = samples.iter().zip(&rows[0].1);
            pairs.map(|((this, _), (off, _))| this.tasks_per_second / off.tasks_per_second)
        };
        let ratio = show(&mut ratios());
        let within = stats::median_within(ratios())
            .map_or("too few rounds".to_owned(), |(low, high)| format!("{} to {}", fine(low), fine(high)));
        let speed = show(&mut samples.iter().map(|(sample, _)| sample.tasks_per_second));
        let threads = || samples.iter().map(|(sample, _)| sample.threads);
        let threads = match (threads().min(), threads().max()) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            (least, _) => least.unwrap_or(0).to_string(),
        };
        println!("  {name:<12}{speed:<30}{threads:<24}{ratio:<30}{within}");
    }
    let others = rows.iter().flat_map(|row| &row.1).map(|&(_, others)| others);
    print!("{}", contest::show_others(Spread::of(others).expect("a round at least"), repeated));
    Ok(())
}

/// A percent is what matters here.
fn fine(value: f64) -> String {
    if value < 100.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

/// One task spawns all of them and waits for them.
fn run(tasks: u64, [shortest, longest]: [u64; 2], retake: bool) -> Result<Sample, Failure> {
    let threads = Arc::new(AtomicU64::new(0));
    let counter = threads.clone();
    let count = move || _ = counter.fetch_add(1, Relaxed);
    let runtime = gopark::Builder::new().workers(WORKERS).retake(retake).on_thread_start(count).build()?;
    let time = runtime.run(async move {
        let start = Instant::now();
        let tasks: Vec<_> = (0..tasks)
            .map(|index| {
                let steps = shortest + mix(index) % (longest - shortest);
                gopark::spawn(async move { work::compute(steps) })
            })
            .collect();
        for task in tasks {
            task.await.expect("no task panics");
        }
        start.elapsed()
    });
    drop(runtime);
    Ok(Sample { tasks_per_second: tasks as f64 / time.as_secs_f64(), threads: threads.load(Relaxed) })
}
