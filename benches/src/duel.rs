//! `benches duel`: the peers side by side under full load.

use crate::args::Args;
use crate::contest::{self, Load, Metric, Outcome, PAIRS, Progress, Setting};
use crate::json::Json;
use crate::peer::{Lineup, Peer, Peers};
use crate::place::Place;
use crate::stats;
use crate::{Failure, machine};
use std::fmt::Write;
use std::fs;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches duel [--quick] [--rounds K] [--secs S] [--only CELL,..] [--peers A,..] [--patience S] [--json FILE]
             [--markdown FILE]

The peers side by side as echo servers under full load: each connection sends its next message when the last one is
back; and as HTTP servers, where a message is one request, or 16 at once. Per cell, K rounds (9); per round, each peer once for S seconds (1), from a fresh process, in rotating order.

  --only CELL,..    some cells, by name or by the start of it: 2w/1 2w/64 2w/512 2w/4000 2w/64x16k 2w/http1 2w/http16
                    and the same with 1p/
                    2w: two workers, nobody pinned. 1p: one worker, server pinned to one CPU and client to another
  --peers A,..      some of raw, tokio, smol, may, gopark and go; raw,tokio,smol,gopark by default, and go where it is in PATH
  --patience S      repeats rounds in which other processes took over 15 % of the CPUs, up to S seconds (0) per cell
  --json FILE       all samples
  --markdown FILE   the tables of docs/performance.md
  --quick           one short round of each cell; says only that every byte was echoed

raw is a bare epoll loop with one thread, in the 2w cells too. It takes part twice, and `raw again/raw` shows the noise:
what differs by no more than that does not differ. Ratios are formed within one round; shown are medians and, in
parentheses, quartiles. What other processes took of the CPUs is shown too: where it is more than a few percent, the
figures are worth little.

What it does not measure: a network (all is loopback, where sender and receiver share the kernel's work), connecting and
closing, more than two workers, memory, fairness between connections, servers that do anything but echo, or parse
more of HTTP than where a head ends. The client is
one thread and in the way: of throughput where it takes longer per message than the server, and of latency always, as a
message waits for its turn in the client too, and as a closed loop sends less to a slow server.
";

/// A kind of load on a kind of server.
struct Cell {
    pinned: bool,
    conns: usize,
    message: Message,
}

#[derive(Clone, Copy)]
enum Message {
    Bytes(usize),
    Requests(usize),
}

impl Cell {
    fn all() -> impl Iterator<Item = Cell> {
        use Message::{Bytes, Requests};
        const LOADS: [(usize, Message); 7] = [
            (1, Bytes(64)),
            (64, Bytes(64)),
            (512, Bytes(64)),
            (4000, Bytes(64)),
            (64, Bytes(16_384)),
            (64, Requests(1)),
            (64, Requests(16)),
        ];
        [false, true].into_iter().flat_map(|pinned| LOADS.map(|(conns, message)| Cell { pinned, conns, message }))
    }

    fn name(&self) -> String {
        let kind = if self.pinned { "1p" } else { "2w" };
        match self.message {
            Message::Bytes(64) => format!("{kind}/{}", self.conns),
            Message::Bytes(bytes) => format!("{kind}/{}x{}k", self.conns, bytes / 1024),
            Message::Requests(requests) => format!("{kind}/http{requests}"),
        }
    }

    fn title(&self) -> String {
        let kind = if self.pinned { "1 worker, pinned" } else { "2 workers" };
        let conns = stats::count(self.conns, "connection");
        match self.message {
            Message::Bytes(bytes) => format!("{kind}, {conns} of {}", stats::bytes(bytes)),
            Message::Requests(1) => format!("{kind}, {conns}, HTTP"),
            Message::Requests(requests) => format!("{kind}, {conns}, {requests} HTTP requests at once"),
        }
    }

    fn workers(&self) -> usize {
        if self.pinned { 1 } else { 2 }
    }

    fn place(&self) -> Result<Place, Failure> {
        if self.pinned { Place::pinned() } else { Ok(Place::Free) }
    }
}

fn select(only: Option<String>) -> Result<Vec<Cell>, Failure> {
    let Some(only) = only else { return Ok(Cell::all().collect()) };
    let mut cells = Vec::new();
    for wanted in only.split(',') {
        let exact = Cell::all().any(|cell| cell.name() == wanted);
        let fits = |name: &str| if exact { name == wanted } else { name.starts_with(wanted) };
        let before = cells.len();
        cells.extend(Cell::all().filter(|cell| fits(&cell.name())));
        if cells.len() == before {
            let names: Vec<String> = Cell::all().map(|cell| cell.name()).collect();
            return Err(Failure::usage(format!("--only wants some of {}, not {wanted:?}", names.join(" "))));
        }
    }
    Ok(cells)
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { 9 });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.4 } else { 1.0 });
    let patience = args.patience()?;
    let mut cells = select(args.text("--only")?)?;
    let peers = args
        .parsed::<Peers>("--peers", Peers::WANTS)?
        .unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Smol, Peer::Gopark]).and_go());
    let (json, markdown) = (args.text("--json")?, args.text("--markdown")?);
    args.finish()?;

    if let Err(why) = Place::pinned() {
        cells.retain(|cell| !cell.pinned);
        if cells.is_empty() {
            return Err(why);
        }
        eprintln!("{why}");
    }
    let machine = machine::describe();
    let (lineup, of_http) = (Lineup::new(&peers, true)?, Lineup::of_http(&peers)?);
    let mut progress = Progress::new(cells.len() * rounds * lineup.entrants.len());
    let mut outcomes = Vec::new();
    for cell in cells {
        progress.enter(&cell.name());
        let load = Load {
            conns: cell.conns,
            bytes: if let Message::Bytes(bytes) = cell.message { bytes } else { 0 },
            requests: if let Message::Requests(requests) = cell.message { Some(requests) } else { None },
            idle: 0,
            rate: None,
            warm_up: Duration::from_secs_f64(secs / 4.0),
            window: Duration::from_secs_f64(secs),
        };
        let setting = Setting { load, workers: cell.workers(), place: cell.place()?, rounds, patience };
        let lineup = if matches!(cell.message, Message::Requests(_)) { &of_http } else { &lineup };
        let outcome = contest::play(lineup, &setting, &mut progress)?;
        progress.pause();
        println!("{}: {}\n{}", cell.name(), cell.title(), outcome.show());
        outcomes.push((cell, outcome));
    }
    println!("{}", table(Metric::Throughput, &lineup, &outcomes));
    if let Some(path) = json {
        let cells = outcomes
            .iter()
            .map(|(cell, outcome)| Json::map([("cell", Json::text(cell.name())), ("peers", outcome.json())]));
        let all = Json::map([
            ("machine", Json::text(&machine)),
            ("rounds", Json::Int(rounds as u64)),
            ("secs", Json::Num(secs)),
            ("cells", Json::list(cells)),
        ]);
        fs::write(path, format!("{all}\n"))?;
    }
    if let Some(path) = markdown {
        let tables = Metric::ALL.map(|metric| table(metric, &lineup, &outcomes)).join("\n");
        let others = outcomes.iter().filter_map(|(_, outcome)| outcome.others()).map(|others| others.median);
        let others = stats::percent(others.fold(0.0, f64::max));
        let head = format!("{machine}; {rounds} rounds of {secs} s each; medians (and quartiles).");
        fs::write(path, format!("{head} Other processes took {others} of the CPUs in the worst cell.\n\n{tables}"))?;
    }
    Ok(())
}

/// One metric of all cells in Markdown: medians of each peer, then ratios with their quartiles and geometric means.
fn table(metric: Metric, lineup: &Lineup, outcomes: &[(Cell, Outcome)]) -> String {
    let pairs: Vec<_> = PAIRS
        .into_iter()
        .filter(|&pair| outcomes.iter().any(|(_, outcome)| outcome.ratio(pair, metric).is_some()))
        .collect();
    let mut out = format!("{}\n\n", metric.title());
    let mut row = |cells: Vec<String>| writeln!(out, "| {} |", cells.join(" | ")).expect("writing to a string");

    let labels = || lineup.entrants.iter().map(|entrant| entrant.label);
    let mut head = vec!["cell".to_owned()];
    head.extend(labels().map(str::to_owned));
    head.extend(pairs.iter().map(|(over, under)| format!("{over}/{under}")));
    let rule = head.iter().enumerate().map(|(at, _)| if at == 0 { "---" } else { "---:" }.to_owned()).collect();
    row(head);
    row(rule);
    for (cell, outcome) in outcomes {
        let mut line = vec![cell.title()];
        let median = |label| outcome.spread(label, metric).map(|spread| metric.show(spread.median));
        line.extend(labels().map(|label| median(label).unwrap_or_default()));
        let ratio = |pair| outcome.ratio(pair, metric).map(|spread| spread.show(stats::ratio));
        line.extend(pairs.iter().map(|&pair| ratio(pair).unwrap_or_default()));
        row(line);
    }
    let mut means = vec!["geometric mean".to_owned()];
    means.extend(labels().map(|_| String::new()));
    means.extend(pairs.iter().map(|&pair| {
        let medians = outcomes.iter().filter_map(|(_, outcome)| outcome.ratio(pair, metric));
        stats::geometric_mean(medians.map(|spread| spread.median)).map(stats::ratio).unwrap_or_default()
    }));
    row(means);
    out
}
