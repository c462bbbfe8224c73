//! Rounds in which every entrant serves the same load, one after the other, each time from a fresh process.

use crate::json::Json;
use crate::load::{self, Plan, Report};
use crate::machine::{self, Ticks};
use crate::peer::{CONTROL, Lineup, Server};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, sys};
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// The load of one cell, whoever serves it.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) conns: usize,
    pub(crate) bytes: usize,
    pub(crate) requests: Option<usize>,
    pub(crate) idle: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
}

impl Load {
    /// As many messages as come back, for so long, after a quarter of that as warm-up.
    pub(crate) fn full(conns: usize, bytes: usize, secs: f64) -> Self {
        let (warm_up, window) = (Duration::from_secs_f64(secs / 4.0), Duration::from_secs_f64(secs));
        Load { conns, bytes, requests: None, idle: 0, rate: None, warm_up, window }
    }

    pub(crate) fn plan(&self, addr: SocketAddr) -> Plan {
        let Load { conns, bytes, requests, idle, rate, warm_up, window } = *self;
        Plan { addr, conns, bytes, requests, idle, rate, warm_up, window }
    }
}

/// What one entrant did in one round.
struct Sample {
    report: Report,
    /// The server's CPU time within the window, in nanoseconds.
    cpu: u64,
    /// The share of the CPUs that others took.
    others: f64,
}

/// What is compared.
#[derive(Clone, Copy)]
pub(crate) enum Metric {
    Throughput,
    P50,
    P99,
    Cpu,
}

impl Metric {
    pub(crate) const ALL: [Metric; 4] = [Metric::Throughput, Metric::P50, Metric::P99, Metric::Cpu];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Metric::Throughput => "Round trips per second",
            Metric::P50 => "Latency, p50",
            Metric::P99 => "Latency, p99",
            Metric::Cpu => "Server CPU time per round trip",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Metric::Throughput => "per_second",
            Metric::P50 => "p50_ns",
            Metric::P99 => "p99_ns",
            Metric::Cpu => "cpu_ns_per_round_trip",
        }
    }

    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Metric::Throughput => stats::thousands(value),
            _ => stats::duration(value),
        }
    }

    fn of(self, sample: &Sample) -> f64 {
        let Sample { report, cpu, .. } = sample;
        match self {
            Metric::Throughput => report.per_second(),
            Metric::P50 => report.latency().at(0.5) as f64,
            Metric::P99 => report.latency().at(0.99) as f64,
            Metric::Cpu => *cpu as f64 / report.round_trips() as f64,
        }
    }
}

/// The pairs whose ratios are worth a look, round by round.
pub(crate) const PAIRS: [(&str, &str); 6] =
    [("gopark", "tokio"), ("gopark", "go"), ("gopark", "raw"), ("tokio", "raw"), ("go", "raw"), (CONTROL, "raw")];

/// All samples of one cell.
pub(crate) struct Outcome {
    rows: Rows<Sample>,
    /// How many rounds were disturbed and are not in here.
    repeated: usize,
}

/// One cell: what is served, on how many workers (raw has always one), where, and how often.
pub(crate) struct Setting {
    pub(crate) load: Load,
    pub(crate) workers: usize,
    pub(crate) place: Place,
    pub(crate) rounds: usize,
    /// For how long rounds that other processes disturbed are repeated.
    pub(crate) patience: Duration,
}

/// Who takes more of the CPUs than this disturbs a round.
const DISTURBANCE: f64 = 0.15;
/// How long to wait for better times after a disturbed round.
const RETREAT: Duration = Duration::from_secs(1);

/// Plays all rounds of one cell.
pub(crate) fn play(lineup: &Lineup, setting: &Setting, progress: &mut Progress) -> Result<Outcome, Failure> {
    let turn = |index: usize| {
        let server = lineup.start(lineup.entrants[index], setting.workers, &setting.place)?;
        let sample = setting.place.on_client_cpus(|| measure(&server, &setting.load))?;
        server.stop()?;
        let others = sample.others;
        Ok((sample, others))
    };
    let (rows, repeated) = play_rounds(&lineup.labels(), setting.rounds, setting.patience, progress, turn)?;
    Ok(Outcome { rows, repeated })
}

/// Per entrant its label and one sample per round.
pub(crate) type Rows<S> = Vec<(&'static str, Vec<S>)>;

/// One figure of each sample.
pub(crate) type Samples = Rows<f64>;

pub(crate) fn pick<S>(rows: &Rows<S>, each: impl Fn(&S) -> f64) -> Samples {
    rows.iter().map(|(label, samples)| (*label, samples.iter().map(&each).collect())).collect()
}

/// Gives everyone a turn in every round. The order rotates, so that nobody is always first. A turn yields a sample, and the
/// share of the CPUs that others took. Returned as well is how many rounds others disturbed, which are repeated as long as
/// there is patience.
pub(crate) fn play_rounds<S>(
    labels: &[&'static str],
    rounds: usize,
    patience: Duration,
    progress: &mut Progress,
    mut turn: impl FnMut(usize) -> Result<(S, f64), Failure>,
) -> Result<(Rows<S>, usize), Failure> {
    let mut rows: Rows<S> = labels.iter().map(|&label| (label, Vec::new())).collect();
    let (until, mut repeated) = (Instant::now() + patience, 0);
    let mut round = 0;
    while round < rounds {
        let mut samples = Vec::new();
        for place in 0..rows.len() {
            let index = (place + round + repeated) % rows.len();
            let label = labels[index];
            progress.step(&format!("{label}, round {} of {rounds}", round + 1));
            let (sample, others) = turn(index).map_err(|failure| Failure::run(format!("{label}: {failure}")))?;
            samples.push((index, sample, others));
        }
        // Whether a round counts is decided by what others did in it, never by its result.
        if samples.iter().any(|&(.., others)| others > DISTURBANCE) && Instant::now() < until {
            repeated += 1;
            progress.take_back(samples.len());
            thread::sleep(RETREAT);
            continue;
        }
        samples.into_iter().for_each(|(index, sample, _)| rows[index].1.push(sample));
        round += 1;
    }
    Ok((rows, repeated))
}

/// The clocks at one edge of the window.
pub(crate) struct Clocks {
    ticks: Ticks,
    time: u64,
    server: u64,
    client: u64,
}

impl Clocks {
    /// Where there is no server, this process does all.
    pub(crate) fn read(server: Option<&Server>) -> io::Result<Self> {
        Ok(Clocks {
            ticks: Ticks::now()?,
            time: sys::now(),
            server: server.map_or(Ok(0), |server| sys::cpu_of(server.pid()))?,
            client: sys::own_cpu(),
        })
    }

    /// Which share of all CPUs was busy with neither server nor client. Reckoned in clock ticks, hence roughly.
    pub(crate) fn others_since(&self, start: &Clocks) -> f64 {
        let ours = self.server - start.server + self.client - start.client;
        let ours = ours as f64 / (self.time - start.time) as f64 / machine::cpus() as f64;
        (self.ticks.busy_since(&start.ticks) - ours).max(0.0)
    }
}

fn measure(server: &Server, load: &Load) -> Result<Sample, Failure> {
    let (report, start, end) = load::run_between(&load.plan(server.addr()), || Clocks::read(Some(server)))?;
    report.check()?;
    Ok(Sample { report, cpu: end.server - start.server, others: end.others_since(&start) })
}

/// The shares of the CPUs that others took, and how many rounds were repeated for that, in one line.
pub(crate) fn show_others(others: Spread, repeated: usize) -> String {
    let (others, repeated) = (others.show(stats::percent), stats::count(repeated, "disturbed round"));
    format!("  other processes took {others} of the CPUs; {repeated} repeated\n")
}

impl Outcome {
    pub(crate) fn samples(&self, metric: Metric) -> Samples {
        pick(&self.rows, |sample| metric.of(sample))
    }

    pub(crate) fn spread(&self, label: &str, metric: Metric) -> Option<Spread> {
        Spread::of(self.row(label)?.iter().map(|sample| metric.of(sample)))
    }

    /// The ratios of two entrants, each formed within one round.
    pub(crate) fn ratio(&self, (over, under): (&str, &str), metric: Metric) -> Option<Spread> {
        let pairs = self.row(over)?.iter().zip(self.row(under)?);
        Spread::of(pairs.map(|(over, under)| metric.of(over) / metric.of(under)))
    }

    /// The share of the CPUs that was busy with something else.
    pub(crate) fn others(&self) -> Option<Spread> {
        Spread::of(self.rows.iter().flat_map(|row| &row.1).map(|sample| sample.others))
    }

    fn row(&self, label: &str) -> Option<&[Sample]> {
        self.rows.iter().find(|row| row.0 == label).map(|row| &row.1[..])
    }

    /// The cell as a table for a terminal.
    pub(crate) fn show(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, each: &dyn Fn(Metric) -> Option<String>| {
            let cells = Metric::ALL.map(|metric| format!("{:<32}", each(metric).unwrap_or_default())).concat();
            writeln!(out, "  {name:<16}{}", cells.trim_end()).expect("writing to a string");
        };
        line("", &|metric| Some(metric.title().to_owned()));
        for (label, _) in &self.rows {
            line(label, &|metric| Some(self.spread(label, metric)?.show(|value| metric.show(value))));
        }
        for pair in PAIRS {
            if self.ratio(pair, Metric::Cpu).is_some() {
                let name = format!("{}/{}", pair.0, pair.1);
                line(&name, &|metric| Some(self.ratio(pair, metric)?.show(stats::ratio)));
            }
        }
        if let Some(others) = self.others() {
            out.push_str(&show_others(others, self.repeated));
        }
        out
    }

    pub(crate) fn json(&self) -> Json {
        Json::list(self.rows.iter().map(|(label, samples)| {
            let mut entries = vec![("peer".to_owned(), Json::text(*label))];
            entries.extend(Metric::ALL.map(|metric| {
                (metric.key().to_owned(), stats::samples_json(samples.iter().map(|sample| metric.of(sample))))
            }));
            Json::Map(entries)
        }))
    }
}

/// A line on stderr that says how far things are.
pub(crate) struct Progress {
    live: bool,
    done: usize,
    all: usize,
    what: String,
}

impl Progress {
    pub(crate) fn new(all: usize) -> Self {
        Progress { live: io::stderr().is_terminal(), done: 0, all, what: String::new() }
    }

    /// What the steps from now on belong to; off a terminal this alone is told.
    pub(crate) fn enter(&mut self, what: &str) {
        self.what = what.to_owned();
        if !self.live {
            eprintln!("[{}/{}] {what}", self.done, self.all);
        }
    }

    pub(crate) fn step(&mut self, what: &str) {
        self.done += 1;
        if self.live {
            eprint!("\r\x1b[K[{}/{}] {}: {what}", self.done, self.all, self.what);
        }
    }

    /// So many steps do not count.
    fn take_back(&mut self, steps: usize) {
        self.done -= steps;
    }

    /// Wipes the line, so that results can be printed.
    pub(crate) fn pause(&self) {
        if self.live {
            eprint!("\r\x1b[K");
        }
    }
}
