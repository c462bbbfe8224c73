//! `benches together`: the CPU time of servers that run at the same time.

use crate::args::Args;
use crate::contest::{Load, Progress, Rows};
use crate::peer::{Lineup, OURS, Peer, Peers, Server};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, load, machine};
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use std::{fs, io, thread};

pub(crate) const HELP: &str = "\
benches together [--quick] [--rounds K] [--secs S] [--conns N] [--bytes N] [--peers A,..]

The CPU time per round trip of echo servers that run at the same time, with one worker each, all on one CPU; each has a
client of its own that loads it fully, and all clients are on another CPU. 64 connections each (--conns), messages of 64
bytes (--bytes), K rounds (9) of S seconds (1), from fresh processes that start in rotating order. Shown are medians and,
in parentheses, quartiles; ratios are formed within one round. go takes part where it is in PATH.

What the machine does meanwhile falls on all alike. So a ratio strays by a percent or two here, where those of `duel`, whose
servers run one after the other, stray by ten or more. gopark takes part twice: `gopark/gopark again` shows the noise.

  --quick   one round of 0.2 seconds; says only that every byte was echoed

CPU time is user and system time of all threads, in nanoseconds, while the client counts. `beside` is what of it is not the
busiest thread's, the one worker. A thread that works by the clock (a monitor) weighs as many times more here as there are
servers, as each gets that share of a CPU only; one that works for each message (smol's) does not.

What it does not measure: a server that has a CPU to itself (here the others take the caches and the branch predictor away
from it, all but gopark's own twin, and more messages wait at each of its turns), throughput, latency, more than one
worker, what it costs to wake an idle CPU, and the CPU time of the kernel outside the server's threads (see `light
--help`).
";

pub(crate) const ROUNDS: usize = 9;
/// Who has not connected by then never will.
const START_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { ROUNDS });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.2 } else { 1.0 });
    let conns = args.connections()?;
    let bytes = args.number("--bytes", 1..=1 << 20)?.unwrap_or(64);
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    args.finish()?;

    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Smol, Peer::Gopark]).and_go());
    let load = Load::full(conns, bytes, secs);
    let samples = measure(&peers, &load, rounds)?;
    println!("{}", machine::describe());
    print(&load, &samples);
    Ok(())
}

/// CPU time per round trip, in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) all: f64,
    /// Without the busiest thread.
    beside: f64,
}

impl Cost {
    pub(crate) fn busiest(&self) -> f64 {
        self.all - self.beside
    }
}

pub(crate) fn measure(peers: &Peers, load: &Load, rounds: usize) -> Result<Rows<Cost>, Failure> {
    let (lineup, place) = (Lineup::with_ours_again(peers)?, Place::pinned()?);
    let mut samples: Rows<Cost> = lineup.labels().into_iter().map(|label| (label, Vec::new())).collect();
    let mut progress = Progress::new(rounds);
    progress.enter(&format!("together, {}", stats::count(load.conns, "connection")));
    for round in 0..rounds {
        progress.step(&format!("round {} of {rounds}", round + 1));
        let order: Vec<usize> = (0..samples.len()).map(|turn| (turn + round) % samples.len()).collect();
        for (index, cost) in order.iter().zip(play(&lineup, &order, &place, load)?) {
            samples[*index].1.push(cost);
        }
    }
    progress.pause();
    Ok(samples)
}

/// One round.
fn play(lineup: &Lineup, order: &[usize], place: &Place, load: &Load) -> Result<Vec<Cost>, Failure> {
    let servers = order.iter().map(|&index| lineup.start(lineup.entrants[index], 1, place));
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let gate = Gate { missing: Mutex::new(servers.len()), opens: Condvar::new() };
    let costs = place.on_client_cpus(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = servers.iter().map(|server| scope.spawn(|| cost(server, load, &gate))).collect();
            clients.into_iter().map(|client| client.join().expect("no client panics")).collect::<Result<Vec<_>, _>>()
        })
    })?;
    servers.into_iter().try_for_each(Server::stop)?;
    Ok(costs)
}

fn cost(server: &Server, load: &Load, gate: &Gate) -> Result<Cost, Failure> {
    let (report, start, end) =
        load::run_from(&load.plan(server.addr()), || gate.pass(), || cpu_of_threads(server.pid()))?;
    report.check()?;
    let spent = end.iter().map(|(thread, time)| time - start.get(thread).unwrap_or(&0));
    let per_trip = |time: u64| time as f64 / report.round_trips() as f64;
    let (all, busiest) = (spent.clone().sum::<u64>(), spent.max().unwrap_or_default());
    Ok(Cost { all: per_trip(all), beside: per_trip(all - busiest) })
}

/// The CPU time of each thread in nanoseconds, by its number; proc_schedstat in the kernel's Documentation/scheduler.
fn cpu_of_threads(pid: i32) -> io::Result<HashMap<OsString, u64>> {
    let mut times = HashMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        // Who has ended in between is not there any more; a server's threads do not, under a steady load.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let time = text.split(' ').next().and_then(|time| time.parse().ok());
        times.insert(thread.file_name(), time.ok_or_else(|| io::Error::other("schedstat has no number"))?);
    }
    Ok(times)
}

/// Opens when all are there, so that all their windows are one: who had less company would be better off.
struct Gate {
    missing: Mutex<usize>,
    opens: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut missing = self.missing.lock().expect("nobody panics");
        *missing -= 1;
        self.opens.notify_all();
        // Where somebody failed to connect, the round fails by that; the others need not wait for ever.
        drop(self.opens.wait_timeout_while(missing, START_LIMIT, |missing| *missing > 0));
    }
}

pub(crate) fn print(load: &Load, samples: &Rows<Cost>) {
    let (conns, bytes) = (stats::count(load.conns, "connection"), stats::bytes(load.bytes));
    println!("together: each with 1 worker, {conns} of {bytes}");
    println!("  {:<16}{:<30}{:<10}gopark's as a ratio to that", "", "CPU time per round trip", "beside");
    let ours = samples.iter().find(|row| row.0 == OURS);
    for (label, costs) in samples {
        let spread = |each: fn(&Cost) -> f64| Spread::of(costs.iter().map(each)).expect("a round at least");
        let all = spread(|cost| cost.all).show(stats::duration);
        let beside = stats::duration(spread(|cost| cost.beside).median);
        let ratio = ours.filter(|ours| ours.0 != *label).map(|(_, ours)| {
            let ratios = ours.iter().zip(costs).map(|(ours, theirs)| ours.all / theirs.all);
            Spread::of(ratios).expect("a round at least").show(|ratio| format!("{ratio:.3}"))
        });
        println!("  {label:<16}{all:<30}{beside:<10}{}", ratio.unwrap_or_default());
    }
    println!();
}
