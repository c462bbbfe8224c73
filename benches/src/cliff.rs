//! `benches cliff`: whether something that should change nothing, or little by little, changes much at once.

use crate::args::Args;
use crate::contest::{self, Load, Metric, Progress, Setting};
use crate::json::Json;
use crate::peer::{Lineup, Peer, Peers};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, machine};
use std::fs;

pub(crate) const HELP: &str = "\
benches cliff [--quick] [--rounds K] [--secs S] [--only PART] [--peers A,..] [--patience S] [--json FILE]

Echo servers under full load, where one thing grows that should cost nothing, or little by little:

  workers   64 connections; 2, 8, 16 and 64 workers, on however many CPUs there are (raw has one thread, and stands aside)
  idle      100 connections on two workers, beside 0, 1,000, 5,000 and 9,000 that say nothing (libevent's test)
  conns     64, 128, 256, 512, 1,024, 2,048, 4,096 and 9,000 connections on one worker, server and client pinned apart

K rounds (5) of each step; per round, each peer once for S seconds (1), from a fresh process, in rotating order. Shown are
medians and, in parentheses, quartiles; the last column is the ratio of medians to the first step of the part, of
throughput for `workers` and `idle`, of p99 for `conns`, where the number of connections grows by what the step before it
says. raw, tokio and gopark by default.

  --only PART    one of them
  --patience S   repeats rounds in which other processes took over 15 % of the CPUs, up to S seconds (0) per step
  --quick        one short round of the smallest and of a small step of each; says only that every byte was echoed

What it does not measure: see `duel --help`. The steps of a part come one after the other: what the machine does in between
is in the last column.
";

/// What grows.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Workers,
    Idle,
    Conns,
}

impl Part {
    const ALL: [Part; 3] = [Part::Workers, Part::Idle, Part::Conns];

    fn name(self) -> &'static str {
        match self {
            Part::Workers => "workers",
            Part::Idle => "idle",
            Part::Conns => "conns",
        }
    }

    fn steps(self, quick: bool) -> &'static [usize] {
        match (self, quick) {
            (Part::Workers, false) => &[2, 8, 16, 64],
            (Part::Workers, true) => &[2, 8],
            (Part::Idle, false) => &[0, 1000, 5000, 9000],
            (Part::Idle, true) => &[0, 200],
            (Part::Conns, false) => &[64, 128, 256, 512, 1024, 2048, 4096, 9000],
            (Part::Conns, true) => &[64, 128],
        }
    }

    fn metric(self) -> Metric {
        if self == Part::Conns { Metric::P99 } else { Metric::Throughput }
    }
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { 5 });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.3 } else { 1.0 });
    let patience = args.patience()?;
    let only = args.text("--only")?;
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let json = args.text("--json")?;
    args.finish()?;
    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Gopark]));
    let parts: Vec<Part> =
        Part::ALL.into_iter().filter(|part| only.as_deref().is_none_or(|only| only == part.name())).collect();
    if parts.is_empty() {
        return Err(Failure::usage("--only wants workers, idle or conns"));
    }

    let machine = machine::describe();
    let mut results = Vec::new();
    for part in parts {
        let peers = Peers(peers.0.iter().copied().filter(|&peer| part != Part::Workers || peer != Peer::Raw).collect());
        let lineup = Lineup::new(&peers, false)?;
        let steps = part.steps(quick);
        let place = if part == Part::Conns { Place::pinned()? } else { Place::Free };
        let mut progress = Progress::new(steps.len() * rounds * lineup.entrants.len());
        let mut first: Vec<Option<f64>> = vec![None; lineup.entrants.len()];
        println!("{}\n  {:<8}{:<10}{:<34}{:<34}to the first", part.name(), "", "", "round trips/s", "p99");
        for &step in steps {
            progress.enter(&format!("{} {step}", part.name()));
            let (conns, idle, workers) = match part {
                Part::Workers => (64, 0, step),
                Part::Idle => (100, step, 2),
                Part::Conns => (step, 0, 1),
            };
            let load = Load { idle, ..Load::full(conns, 64, secs) };
            let setting = Setting { load, workers, place: place.clone(), rounds, patience };
            let outcome = contest::play(&lineup, &setting, &mut progress)?;
            progress.pause();
            for (label, first) in lineup.labels().into_iter().zip(&mut first) {
                let spread = |metric: Metric| -> Result<Spread, Failure> {
                    outcome.spread(label, metric).ok_or_else(|| Failure::run("no round was played"))
                };
                let median = spread(part.metric())?.median;
                let show = |metric: Metric| spread(metric).map(|spread| spread.show(|value| metric.show(value)));
                let (throughput, p99) = (show(Metric::Throughput)?, show(Metric::P99)?);
                let ratio = stats::ratio(median / *first.get_or_insert(median));
                println!("  {step:<8}{label:<10}{throughput:<34}{p99:<34}{ratio}");
            }
            results.push(Json::map([
                ("part", Json::text(part.name())),
                ("step", Json::Int(step as u64)),
                ("peers", outcome.json()),
            ]));
        }
    }
    if let Some(path) = json {
        let all = Json::map([("machine", Json::text(machine)), ("steps", Json::list(results))]);
        fs::write(path, format!("{all}\n"))?;
    }
    Ok(())
}
