//! `benches together`: the CPU time of servers that stand side by side and are loaded in turn.

use crate::args::Args;
use crate::contest::{Load, Progress, Rows};
use crate::peer::{Lineup, OURS, Peer, Peers, Server};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, load, machine};
use std::collections::HashMap;
use std::ffi::OsString;
use std::{fs, io};

pub(crate) const HELP: &str = "\
benches together [--quick] [--rounds K] [--secs S] [--conns N] [--bytes N] [--peers A,..]

The CPU time per round trip of echo servers with one worker each, all on one CPU, while the client is on another. One of
them at a time is loaded, fully, for 50 milliseconds; then it is the next one's turn, in an order that goes on by one each
time. 64 connections (--conns), messages of 64 bytes (--bytes), K rounds (9) of S seconds for each server (0.5), from
fresh processes. Shown are medians and, in parentheses, quartiles; ratios are formed within one round. go takes part
where it is in PATH.

What the machine does meanwhile falls on all alike. So a ratio strays by a percent or two here, where those of `duel`, whose
servers are loaded for a second each, stray by ten or more. gopark takes part twice: `gopark/gopark again` shows the noise.

  --quick   one round of one turn each; says only that every byte was echoed

CPU time is user and system time of all threads, in nanoseconds, while the client counts. `beside` is what of it is not the
busiest thread's, the one worker.

What it does not measure: throughput, latency, more than one worker, what it costs to wake an idle CPU, and the CPU time of
the kernel outside the server's threads (see `light --help`).
";

pub(crate) const ROUNDS: usize = 9;
/// How long each server is loaded for in a round, and in one turn.
pub(crate) const SECS: f64 = 0.5;
const TURN: f64 = 0.05;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { ROUNDS });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { TURN } else { SECS });
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

/// `load` is that of all turns of a round.
pub(crate) fn measure(peers: &Peers, load: &Load, rounds: usize) -> Result<Rows<Cost>, Failure> {
    let (lineup, place) = (Lineup::with_ours_again(peers)?, Place::pinned()?);
    let mut samples: Rows<Cost> = lineup.labels().into_iter().map(|label| (label, Vec::new())).collect();
    let mut progress = Progress::new(rounds);
    progress.enter(&format!("together, {}", stats::count(load.conns, "connection")));
    for round in 0..rounds {
        progress.step(&format!("round {} of {rounds}", round + 1));
        for (row, cost) in samples.iter_mut().zip(play(&lineup, &place, load, round)?) {
            row.1.push(cost);
        }
    }
    progress.pause();
    Ok(samples)
}

/// One round.
fn play(lineup: &Lineup, place: &Place, load: &Load, round: usize) -> Result<Vec<Cost>, Failure> {
    let secs = load.window.as_secs_f64();
    let turns = (secs / TURN).round().max(1.0) as usize;
    let load = Load::full(load.conns, load.bytes, secs / turns as f64);
    let servers = lineup.entrants.iter().map(|entrant| lineup.start(*entrant, 1, place));
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let mut spent = vec![Spent::default(); servers.len()];
    place.on_client_cpus(|| {
        (0..turns * servers.len()).try_for_each(|turn| {
            let index = (round + turn + turn / servers.len()) % servers.len();
            spent[index].add(&servers[index], &load)
        })
    })?;
    servers.into_iter().try_for_each(Server::stop)?;
    Ok(spent.iter().map(Spent::per_trip).collect())
}

#[derive(Clone, Copy, Default)]
struct Spent {
    all: u64,
    busiest: u64,
    round_trips: u64,
}

impl Spent {
    /// One turn.
    fn add(&mut self, server: &Server, load: &Load) -> Result<(), Failure> {
        let (report, start, end) = load::run_between(&load.plan(server.addr()), || cpu_of_threads(server.pid()))?;
        report.check()?;
        let spent = end.iter().map(|(thread, time)| time - start.get(thread).unwrap_or(&0));
        self.all += spent.clone().sum::<u64>();
        self.busiest += spent.max().unwrap_or_default();
        self.round_trips += report.round_trips();
        Ok(())
    }

    fn per_trip(&self) -> Cost {
        let per_trip = |time: u64| time as f64 / self.round_trips as f64;
        Cost { all: per_trip(self.all), beside: per_trip(self.all - self.busiest) }
    }
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
