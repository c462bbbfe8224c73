//! What `duel` has found out, row by row: who, against whom, with what aim.

use crate::contest::Samples;
use crate::json::Json;
use crate::peer::{AGAIN, CONTROL, OURS};
use crate::stats::{self, Spread};
use std::fmt::Write;

/// Rows of one kind are measured in one way, and so share their noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Together,
    Throughput,
    P99,
    Light,
    Syscalls,
    Spread,
    Micro,
    Sleepers,
}

impl Kind {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Together => "CPU per round trip, in turns",
            Kind::Throughput => "Throughput",
            Kind::P99 => "Latency, p99",
            Kind::Light => "CPU per round trip, light load",
            Kind::Syscalls => "System calls per round trip",
            Kind::Spread => "Computation on a second worker",
            Kind::Micro => "The parts of a scheduler",
            Kind::Sleepers => "Many sleepers at once",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    Nanos,
    PerSecond,
    Times,
    Calls,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Unit::Nanos => stats::duration(value),
            Unit::PerSecond => format!("{}/s", stats::thousands(value)),
            Unit::Times => format!("{value:.2}x"),
            Unit::Calls => format!("{value:.2}"),
        }
    }

    /// Whether less of it is better.
    fn is_cost(self) -> bool {
        matches!(self, Unit::Nanos | Unit::Calls)
    }

    fn key(self) -> &'static str {
        match self {
            Unit::Nanos => "ns",
            Unit::PerSecond => "1/s",
            Unit::Times => "times",
            Unit::Calls => "calls",
        }
    }
}

/// What gopark should reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// So many times what that peer has, or better.
    Of(f64, &'static str),
    /// So much, or better.
    Value(f64),
    /// To be no worse than any other runtime.
    Best,
}

/// What takes part as a yardstick, and is no runtime.
const YARDSTICKS: [&str; 2] = ["raw", "threads"];

pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) aims: &'static [Aim],
    pub(crate) samples: Samples,
}

impl Row {
    fn of(&self, label: &str) -> Option<&[f64]> {
        self.samples.iter().find(|row| row.0 == label).map(|row| &row.1[..])
    }

    pub(crate) fn spread(&self, label: &str) -> Option<Spread> {
        Spread::of(self.of(label)?.iter().copied())
    }

    fn ratios(&self, over: &str, under: &str) -> Option<impl Iterator<Item = f64>> {
        Some(self.of(over)?.iter().zip(self.of(under)?).map(|(over, under)| over / under))
    }

    /// Each formed within one round.
    fn ratio(&self, over: &str, under: &str) -> Option<Spread> {
        Spread::of(self.ratios(over, under)?)
    }

    /// The same, turned so that less is better whatever the unit.
    pub(crate) fn cost(&self, over: &str, under: &str) -> Option<Spread> {
        if self.unit.is_cost() { self.ratio(over, under) } else { self.ratio(under, over) }
    }

    /// All but the controls.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &'static str> {
        self.samples.iter().map(|row| row.0).filter(|label| ![CONTROL, AGAIN].contains(label))
    }

    /// The best of the other runtimes.
    fn best(&self) -> Option<&'static str> {
        let median = |label: &&str| self.spread(label).map_or(f64::NAN, |spread| spread.median);
        let others = self.peers().filter(|label| *label != OURS && !YARDSTICKS.contains(label));
        let by_median = |a: &&str, b: &&str| median(a).total_cmp(&median(b));
        if self.unit.is_cost() { others.min_by(by_median) } else { others.max_by(by_median) }
    }

    /// Whom a drawing shows at 1.
    pub(crate) fn reference(&self) -> Option<&'static str> {
        self.peers().find(|label| YARDSTICKS.contains(label)).or_else(|| self.best())
    }

    /// Against whom an aim is shown.
    fn opponent(&self, aim: Aim) -> Option<&'static str> {
        match aim {
            Aim::Of(_, peer) => self.peers().find(|&label| label == peer),
            Aim::Value(_) | Aim::Best => self.best(),
        }
    }

    /// None where somebody is missing.
    fn is_met(&self, aim: Aim) -> Option<bool> {
        Some(match aim {
            Aim::Of(factor, peer) => {
                let ratio = self.ratio(OURS, peer)?.median;
                if self.unit.is_cost() { ratio <= factor } else { ratio >= factor }
            }
            Aim::Value(value) => {
                let ours = self.spread(OURS)?.median;
                if self.unit.is_cost() { ours <= value } else { ours >= value }
            }
            Aim::Best => self.cost(OURS, self.best()?)?.median <= 1.0,
        })
    }

    fn show_aim(&self, aim: Aim) -> String {
        let sign = if self.unit.is_cost() { "<=" } else { ">=" };
        match aim {
            Aim::Of(factor, peer) => format!("{sign} {} x {peer}", stats::ratio(factor)),
            Aim::Value(value) => format!("{sign} {}", self.unit.show(value)),
            Aim::Best => "the best".to_owned(),
        }
    }

    /// The strictest aim, on the scale of `cost` to the reference.
    pub(crate) fn aim_at(&self) -> Option<f64> {
        let reference = self.reference()?;
        let of_reference = self.spread(reference)?.median;
        let places = self.aims.iter().filter_map(|&aim| match (aim, self.unit.is_cost()) {
            (Aim::Of(factor, peer), true) => Some(self.cost(peer, reference)?.median * factor),
            (Aim::Of(factor, peer), false) => Some(self.cost(peer, reference)?.median / factor),
            (Aim::Value(value), true) => Some(value / of_reference),
            (Aim::Value(value), false) => Some(of_reference / value),
            (Aim::Best, _) => Some(self.cost(self.best()?, reference)?.median),
        });
        places.min_by(f64::total_cmp)
    }

    fn json(&self) -> Json {
        let peers = self.samples.iter().map(|(label, samples)| {
            Json::map([("peer", Json::text(*label)), ("figures", stats::samples_json(samples.iter().copied()))])
        });
        let aims = self.aims.iter().map(|&aim| {
            let mut entries = vec![("aim".to_owned(), Json::text(self.show_aim(aim)))];
            let met = self.is_met(aim).map_or("unknown", |met| if met { "yes" } else { "no" });
            entries.push(("met".to_owned(), Json::text(met)));
            if let Some((against, ratio)) = self.opponent(aim).and_then(|peer| Some((peer, self.ratio(OURS, peer)?))) {
                entries.push((format!("{OURS}/{against}"), ratio.json()));
            }
            Json::Map(entries)
        });
        Json::map([
            ("kind", Json::text(self.kind.title())),
            ("name", Json::text(self.name)),
            ("unit", Json::text(self.unit.key())),
            ("peers", Json::list(peers)),
            ("aims", Json::list(aims)),
        ])
    }
}

/// How far somebody against himself strays, over all rows of a kind.
pub(crate) fn control(rows: &[Row], kind: Kind) -> Option<(String, Spread)> {
    [(CONTROL, "raw"), (AGAIN, OURS)].into_iter().find_map(|(again, once)| {
        let of_kind = rows.iter().filter(|row| row.kind == kind);
        let spread = Spread::of(of_kind.filter_map(|row| row.ratios(again, once)).flatten())?;
        Some((format!("{again}/{once}"), spread))
    })
}

/// Rows that follow each other and are of one kind.
pub(crate) fn by_kind(rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    rows.chunk_by(|a, b| a.kind == b.kind)
}

pub(crate) fn json(rows: &[Row]) -> Json {
    Json::lines(rows.iter().map(Row::json))
}

/// All rows as a table for a terminal: medians, and for each aim a ratio with its quartiles.
pub(crate) fn summary(rows: &[Row]) -> String {
    let mut peers = vec![OURS];
    for peer in rows.iter().flat_map(Row::peers) {
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    let mut lines = vec![["", &peers[..].join("\t"), "ratio", "aim", "met"].join("\t")];
    let blank = "\t".repeat(peers.len());
    for rows in by_kind(rows) {
        let kind = rows[0].kind;
        lines.push(kind.title().to_owned());
        for row in rows {
            let medians = peers.iter().map(|peer| row.spread(peer).map(|spread| row.unit.show(spread.median)));
            let mut head = format!("  {}", row.name);
            medians.for_each(|median| write!(head, "\t{}", median.unwrap_or_default()).expect("writing to a string"));
            for &aim in row.aims {
                let ratio = row
                    .opponent(aim)
                    .and_then(|peer| Some(format!("{OURS}/{peer} {}", row.ratio(OURS, peer)?.show(stats::ratio))));
                let met = row.is_met(aim).map_or("", |met| if met { "yes" } else { "NO" });
                lines.push(format!("{head}\t{}\t{}\t{met}", ratio.unwrap_or_default(), row.show_aim(aim)));
                head.clone_from(&blank);
            }
        }
        if let Some((pair, spread)) = control(rows, kind) {
            lines.push(format!("  A/A{blank}\t{pair} {}", spread.show(stats::ratio)));
        }
    }
    columns(&lines)
}

/// Lines whose cells end with tabs, in columns as wide as they need to be.
fn columns(lines: &[String]) -> String {
    let mut widths = Vec::new();
    // A line of one cell is a heading, as wide as it likes.
    for cells in lines.iter().map(|line| line.split('\t')).filter(|cells| cells.clone().count() > 1) {
        for (at, cell) in cells.enumerate() {
            widths.resize(widths.len().max(at + 1), 0);
            widths[at] = widths[at].max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in lines {
        let cells = line.split('\t').zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        writeln!(out, "{}", cells.collect::<String>().trim_end()).expect("writing to a string");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, aims: &'static [Aim]) -> Row {
        let samples = vec![
            ("raw", vec![1.0, 10.0]),
            (CONTROL, vec![1.1, 10.0]),
            ("tokio", vec![2.0, 20.0]),
            ("smol", vec![3.0, 30.0]),
            (OURS, vec![1.5, 15.0]),
        ];
        Row { kind: Kind::Micro, name: "row", unit, aims, samples }
    }

    fn met(unit: Unit, aims: &'static [Aim]) -> Vec<Option<bool>> {
        let row = row(unit, aims);
        aims.iter().map(|&aim| row.is_met(aim)).collect()
    }

    #[test]
    fn aims_of_costs_and_of_speeds_look_the_other_way() {
        const AIMS: &[Aim] = &[Aim::Of(0.8, "tokio"), Aim::Of(1.4, "raw"), Aim::Value(9.0), Aim::Best];
        assert_eq!(met(Unit::Nanos, AIMS), [Some(true), Some(false), Some(true), Some(true)]);
        assert_eq!(met(Unit::PerSecond, AIMS), [Some(false), Some(true), Some(false), Some(false)]);
        assert_eq!(met(Unit::Nanos, &[Aim::Of(1.0, "go")]), [None]);
    }

    #[test]
    fn ratios_are_formed_within_a_round() {
        let row = row(Unit::Nanos, &[Aim::Of(0.8, "tokio"), Aim::Of(1.4, "raw")]);
        assert_eq!(row.ratio(OURS, "raw"), Spread::of([1.5]));
        assert_eq!([row.reference(), row.best()], [Some("raw"), Some("tokio")]);
        assert_eq!(row.aim_at(), Some(1.4));
        assert_eq!(control(&[row], Kind::Micro).unwrap().1, Spread::of([1.0, 1.1]).unwrap());
    }

    #[test]
    fn a_line_for_each_aim_and_one_for_the_control() {
        let table = summary(&[row(Unit::Nanos, &[Aim::Best, Aim::Value(9.0)])]);
        assert_eq!(table.lines().count(), 5, "{table}");
        let line = |at: usize| table.lines().nth(at).expect("there are five").split_whitespace().collect::<Vec<_>>();
        assert_eq!(line(2)[9..], ["gopark/tokio", "0.75", "the", "best", "yes"], "{table}");
        assert_eq!(line(3), ["gopark/tokio", "0.75", "<=", "9", "ns", "yes"], "{table}");
        assert!(table.contains("raw again/raw 1.05 (1.02..1.08)"), "{table}");
    }
}
