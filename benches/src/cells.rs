//! The cells of `benches duel`: loads on servers that run one after the other.

use crate::Failure;
use crate::contest::{Load, Metric, Outcome, PAIRS, Setting};
use crate::peer::Lineup;
use crate::place::Place;
use crate::stats;
use std::fmt::Write;
use std::time::Duration;

/// A kind of load on a kind of server.
pub(crate) struct Cell {
    pub(crate) pinned: bool,
    conns: usize,
    message: Message,
}

#[derive(Clone, Copy)]
enum Message {
    Bytes(usize),
    Requests(usize),
}

impl Cell {
    pub(crate) fn all() -> impl Iterator<Item = Cell> {
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

    pub(crate) fn name(&self) -> String {
        let kind = if self.pinned { "1p" } else { "2w" };
        match self.message {
            Message::Bytes(64) => format!("{kind}/{}", self.conns),
            Message::Bytes(bytes) => format!("{kind}/{}x{}k", self.conns, bytes / 1024),
            Message::Requests(requests) => format!("{kind}/http{requests}"),
        }
    }

    pub(crate) fn title(&self) -> String {
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

    pub(crate) fn setting(&self, rounds: usize, secs: f64, patience: Duration) -> Result<Setting, Failure> {
        let load = match self.message {
            Message::Bytes(bytes) => Load::full(self.conns, bytes, secs),
            Message::Requests(requests) => Load { requests: Some(requests), ..Load::full(self.conns, 0, secs) },
        };
        Ok(Setting { load, workers: self.workers(), place: self.place()?, rounds, patience })
    }

    pub(crate) fn is_http(&self) -> bool {
        matches!(self.message, Message::Requests(_))
    }
}

/// One metric of all cells in Markdown: medians of each peer, then ratios with their quartiles and geometric means.
pub(crate) fn table(metric: Metric, lineup: &Lineup, outcomes: &[(Cell, Outcome)]) -> String {
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
