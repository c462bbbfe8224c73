//! `benches blocking`: what others notice of handlers that block. gopark's aim: while two workers of two are blocked, a p99
//! of at most twice its own without, and a longest gap of at most 12 ms.

use crate::args::Args;
use crate::contest::{self, Clocks, Progress, Rows};
use crate::json::Json;
use crate::load::{self, Blocks, Plan};
use crate::peer::{Lineup, Peer, Peers, UNTOLD};
use crate::place::Place;
use crate::stall::{How, Stall};
use crate::stats::{self, Spread};
use crate::watch::Watch;
use crate::{Failure, churn, machine, sys};
use std::fs;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches blocking [--quick] [--how sleep|spin|lock|churn] [--rounds K] [--secs S] [--times T] [--conns N] [--rate R]
                 [--workers N] [--peers A,..] [--patience S] [--json FILE]

Echo servers whose handler, on a message that begins with BLOCK, keeps its thread for a second before it echoes, and what
the others notice. 64 connections (--conns) send 100 messages of 64 bytes a second each (--rate), spread evenly in time:
first without any block, for S seconds (3), then while as many further connections as there are workers have sent BLOCK,
at the same time, and wait for their echoes; T times (3), half a second apart. How it blocks (--how):

  sleep   std::thread::sleep
  spin    a computation that takes a second if it has a CPU for itself
  lock    std::sync::Mutex::lock, while another thread holds the mutex

K rounds (5); per round, each peer once from a fresh process with two workers (--workers), in rotating order: gopark,
tokio, smol, may, and go where it is in PATH. Shown are medians and, in parentheses, quartiles; ratios are formed within
one process. `gopark, no BLOCK` is gopark once more, where those send something else and nobody blocks: its figures
show the noise.

  p50, p99         latency. It counts from the moment when a message was due, not from when the client sent it, and
                   belongs to the window in which it was due: a message that a stall holds up is late by all of it
  longest gap      the longest time in which no message came back on any of the 64 connections; and the longest of all
                   rounds. In the p99 of a second a gap shows by what it is longer than 10 ms, which is 1 % of a second
  longest wait     the longest latency of a single message
  client late      p99 of how late the client itself sent a message while it lasted: what the latencies owe to the client,
                   which is one thread and shares the CPUs with the server; where it may (as root), it has precedence

  --patience S     repeats rounds in which other processes took over 15 % of the CPUs, up to S seconds (0)
  --quick          one round with one block of 0.2 seconds; says only that every byte was echoed

What it does not measure: more blocked handlers than workers, blocks that follow each other closely, what the threads cost
that step in, page faults and slow disks, throughput. go sleeps in the system call, as time.Sleep would park a goroutine
only; it has no mutex that keeps a thread, so that with lock nothing of it blocks. With spin,
the computations and whatever serves the others meanwhile may want more CPUs than there are: then the kernel decides who
waits; with one worker on two CPUs nobody does.

  --how churn      gopark alone: 2,000 tasks of 1 to 5 ms of pure computation, of which none keeps its thread for long
                   enough to lose its P, on two workers, with Builder::retake(true) and, in the same round, false. Tasks
                   are sized in steps of computation, calibrated once. K rounds (9) in rotating order; ratios of
                   throughput are formed within one round, with the interval in which their median lies with a certainty
                   of 95 %. `off again` is the second of two without, and shows the noise. gopark's aim: within 2 %. Also
                   shown is how many threads the runtime started: if two, there was no hand-off, as that needs a third.
                   What it does not measure: how many hand-offs there were, if any; tasks that wait, or do I/O.
";

/// The niceness of the client.
const EAGER: i32 = -10;

/// Who shows what gopark does besides gopark.
const PEERS: [Peer; 4] = [Peer::Gopark, Peer::Tokio, Peer::Smol, Peer::May];

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let how = args.text("--how")?.unwrap_or_else(|| How::Sleep.to_string());
    let rounds = args.number("--rounds", 1..=1000)?;
    let patience = args.patience()?;
    if how == "churn" {
        args.finish()?;
        return churn::main(quick, rounds, patience);
    }
    let how = how
        .parse::<How>()
        .map_err(|()| Failure::usage(format!("--how wants sleep, spin, lock or churn, not {how:?}")))?;
    let rounds = rounds.unwrap_or(if quick { 1 } else { 5 });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.2 } else { 3.0 });
    let times = args.number("--times", 1..=1000)?.unwrap_or(if quick { 1 } else { 3 });
    let conns = args.connections()?;
    let rate = args.rate()?.unwrap_or(100.0);
    let workers = args.workers()?;
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let json = args.text("--json")?;
    args.finish()?;

    let peers = peers.unwrap_or_else(|| Peers(PEERS.to_vec()).and_go());
    let (length, pause) = match quick {
        true => (Duration::from_millis(200), Duration::from_millis(50)),
        false => (Duration::from_secs(1), Duration::from_millis(500)),
    };
    if sys::set_niceness(EAGER).and_then(|()| sys::set_niceness(0)).is_err() {
        eprintln!("only root can give the client precedence: look at `client late`");
    }
    let machine = machine::describe();
    let lineup = Lineup::of_blockers(&peers, Stall::new(how, length))?;
    let turn = |index: usize| {
        let entrant = lineup.entrants[index];
        let server = lineup.start(entrant, workers, &Place::Free)?;
        let window = Duration::from_secs_f64(secs);
        let warm_up = pause;
        let plan =
            Plan { addr: server.addr(), conns, bytes: 64, requests: None, idle: 0, warm_up, window, rate: Some(rate) };
        let blocks = Blocks { conns: workers, times, length, pause, told: entrant.label != UNTOLD };
        let (watch, start, end) = eagerly(|| load::run_blocked(&plan, &blocks, || Clocks::read(Some(&server))))?;
        server.stop()?;
        let others = end.others_since(&start);
        if [&watch.calm, &watch.blocked].into_iter().any(|tally| tally.latency.count() == 0) {
            return Err(Failure::run("no message came back that was due within a window"));
        }
        Ok((Sample { watch, others }, others))
    };
    let mut progress = Progress::new(rounds * lineup.entrants.len());
    progress.enter(&how.to_string());
    let (rows, repeated) = contest::play_rounds(&lineup.labels(), rounds, patience, &mut progress, turn)?;
    progress.pause();
    println!(
        "{how}: {}, {} with {rate} messages a second each; as many handlers block for {length:?}, {}",
        stats::count(workers, "worker"),
        stats::count(conns, "connection"),
        stats::count(times, "time"),
    );
    show(&rows, repeated);
    if let Some(path) = json {
        let all = Json::map([
            ("machine", Json::text(machine)),
            ("how", Json::text(how.to_string())),
            ("peers", Json::list(rows.iter().map(|row| row_json(row.0, &row.1)))),
        ]);
        fs::write(path, format!("{all}\n"))?;
    }
    Ok(())
}

/// The client competes for the CPUs with what it measures, and must not be the one that waits. The server has been started
/// already, and inherits nothing.
fn eagerly<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let _ = sys::set_niceness(EAGER);
    let result = run();
    sys::set_niceness(0)?;
    result
}

/// What one process did.
struct Sample {
    watch: Watch,
    /// The share of the CPUs that others took.
    others: f64,
}

/// A column: its title, its key in JSON, what it shows of a sample, and in which unit.
struct Column {
    title: &'static str,
    key: &'static str,
    of: fn(&Watch) -> f64,
    unit: fn(f64) -> String,
}

impl Column {
    fn spread(&self, samples: &[Sample]) -> Spread {
        Spread::of(samples.iter().map(|sample| (self.of)(&sample.watch))).expect("a round at least")
    }
}

const GAP: Column = Column {
    title: "longest gap meanwhile",
    key: "blocked_gap_ns",
    of: |watch| watch.blocked.gap as f64,
    unit: stats::duration,
};

/// As they are shown: one table, and one with what explains it.
const TABLES: [[Column; 4]; 2] = [
    [
        Column {
            title: "p99 unblocked",
            key: "calm_p99_ns",
            of: |watch| watch.calm.latency.at(0.99) as f64,
            unit: stats::duration,
        },
        Column {
            title: "p99 while it lasts",
            key: "blocked_p99_ns",
            of: |watch| watch.blocked.latency.at(0.99) as f64,
            unit: stats::duration,
        },
        Column {
            title: "ratio",
            key: "p99_ratio",
            of: |watch| watch.blocked.latency.at(0.99) as f64 / watch.calm.latency.at(0.99) as f64,
            unit: |ratio| if ratio < 100.0 { stats::ratio(ratio) } else { stats::thousands(ratio) },
        },
        GAP,
    ],
    [
        Column {
            title: "p50 unblocked",
            key: "calm_p50_ns",
            of: |watch| watch.calm.latency.at(0.5) as f64,
            unit: stats::duration,
        },
        Column {
            title: "p50 while it lasts",
            key: "blocked_p50_ns",
            of: |watch| watch.blocked.latency.at(0.5) as f64,
            unit: stats::duration,
        },
        Column {
            title: "longest wait meanwhile",
            key: "blocked_max_ns",
            of: |watch| watch.blocked.latency.max() as f64,
            unit: stats::duration,
        },
        Column {
            title: "client late meanwhile",
            key: "blocked_late_p99_ns",
            of: |watch| watch.blocked.late.at(0.99) as f64,
            unit: stats::duration,
        },
    ],
];

fn show(rows: &Rows<Sample>, repeated: usize) {
    for table in &TABLES {
        println!("  {:<18}{}", "", table.iter().map(|column| format!("{:<32}", column.title)).collect::<String>());
        for (label, samples) in rows {
            let cell = |column: &Column| {
                let mut cell = column.spread(samples).show(column.unit);
                if column.key == GAP.key && samples.len() > 1 {
                    let most = samples.iter().map(|sample| (column.of)(&sample.watch)).fold(0.0, f64::max);
                    cell += &format!(", at most {}", (column.unit)(most));
                }
                format!("{cell:<32}")
            };
            println!("  {label:<18}{}", table.iter().map(cell).collect::<String>().trim_end());
        }
        println!();
    }
    let others = rows.iter().flat_map(|row| &row.1).map(|sample| sample.others);
    print!("{}", contest::show_others(Spread::of(others).expect("a round at least"), repeated));
}

fn row_json(label: &str, samples: &[Sample]) -> Json {
    let columns = || TABLES.iter().flatten();
    let mut entries = vec![("peer".to_owned(), Json::text(label))];
    entries.extend(columns().map(|column| (column.key.to_owned(), column.spread(samples).json())));
    let rounds = samples.iter().map(|sample| {
        Json::Map(columns().map(|column| (column.key.to_owned(), Json::Num((column.of)(&sample.watch)))).collect())
    });
    entries.push(("rounds".to_owned(), Json::list(rounds)));
    Json::Map(entries)
}
