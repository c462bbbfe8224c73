//! `benches light`: what a server costs that has little to do.

use crate::args::Args;
use crate::contest::{self, Load, Outcome, Progress, Setting};
use crate::json::Json;
use crate::peer::{Lineup, Peer, Peers};
use crate::place::Place;
use crate::{Failure, machine, stats};
use std::fs;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches light [--quick] [--rounds K] [--secs S] [--conns N] [--rate R] [--workers N] [--peers A,..] [--patience S]
              [--json FILE]

The CPU time per round trip of echo servers under light load: 64 connections (--conns) with 100 messages of 64 bytes a
second each (--rate), spread evenly in time. Three cells:

  free       two workers (--workers; raw has one thread), nobody pinned
  together   the same, but server and client pinned to one CPU: what a server does by itself, and little else
  apart      one worker, server pinned to one CPU and client to another

K rounds (11) of each; per round, each peer once for S seconds (1), from a fresh process, in rotating order. Shown are
medians and, in parentheses, quartiles; ratios are formed within one round. go takes part where it is in PATH. raw takes
part twice: `raw again/raw` shows the noise, which is great where nobody is pinned. There it is chance whether the
kernel puts server and client on one CPU or on two, and to wake an idle CPU costs several times what it costs to wake a
thread of the same one, above all in a virtual machine; `apart` always pays that, `together` never.

  --patience S   repeats rounds in which other processes took over 15 % of the CPUs, up to S seconds (0) per cell
  --quick        one round of 0.3 seconds; says only that every byte was echoed

CPU time is the process's own clock: user and system time of all its threads, in nanoseconds. Latency counts from the
moment when a message was due, so that what waits in the client counts too.

What it does not measure: the CPU time of the kernel outside the server's threads (loopback's receive path runs in
whoever sends, so part of the server's costs is the client's, and the other way round), what the wake-ups cost in power,
and any other rate: costs per round trip fall as more messages share one wake-up.
";

pub(crate) const ROUNDS: usize = 11;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { ROUNDS });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.3 } else { 1.0 });
    let conns = args.connections()?;
    let rate = args.rate()?.unwrap_or(100.0);
    let workers = args.workers()?;
    let patience = args.patience()?;
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let json = args.text("--json")?;
    args.finish()?;

    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Gopark]).and_go());
    let machine = machine::describe();
    let cells = measure(&peers, &Plan { rounds, secs, conns, rate, workers, patience })?;
    cells.iter().for_each(Cell::print);
    if let Some(path) = json {
        let all = Json::map([("machine", Json::text(machine)), ("cells", Json::list(cells.iter().map(Cell::json)))]);
        fs::write(path, format!("{all}\n"))?;
    }
    Ok(())
}

pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) secs: f64,
    pub(crate) conns: usize,
    pub(crate) rate: f64,
    pub(crate) workers: usize,
    pub(crate) patience: Duration,
}

pub(crate) struct Cell {
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    title: String,
}

pub(crate) fn measure(peers: &Peers, plan: &Plan) -> Result<Vec<Cell>, Failure> {
    let Plan { rounds, secs, conns, rate, workers, patience } = *plan;
    let lineup = Lineup::new(peers, true)?;
    let mut places = vec![("free", workers, Place::Free), ("together", workers, Place::together()?)];
    match Place::pinned() {
        Ok(place) => places.push(("apart", 1, place)),
        Err(why) => eprintln!("{why}"),
    }
    let load = Load { rate: Some(rate), ..Load::full(conns, 64, secs) };
    let mut progress = Progress::new(places.len() * rounds * lineup.entrants.len());
    let mut cells = Vec::new();
    for (name, workers, place) in places {
        progress.enter(&format!("light, {name}"));
        let setting = Setting { load: load.clone(), workers, place, rounds, patience };
        let outcome = contest::play(&lineup, &setting, &mut progress)?;
        progress.pause();
        let workers = stats::count(workers, "worker");
        let title = format!("{workers}, {conns} connections with {rate} messages a second each");
        cells.push(Cell { name, outcome, title });
    }
    Ok(cells)
}

impl Cell {
    pub(crate) fn print(&self) {
        println!("{}: {}\n{}", self.name, self.title, self.outcome.show());
    }

    pub(crate) fn json(&self) -> Json {
        Json::map([("cell", Json::text(self.name)), ("peers", self.outcome.json())])
    }
}
