//! `benches syscalls`: how many system calls a round trip costs a server.

use crate::args::Args;
use crate::contest::{self, Load, Progress, Rows, Samples};
use crate::count_perf::Tracepoint;
use crate::count_ptrace::Tracer;
use crate::load;
use crate::peer::{Lineup, Peer, Peers, Server};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, count_perf};
use std::fmt::Write;
use std::io;
use std::str::FromStr;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches syscalls [--quick] [--rounds K] [--secs S] [--workers N] [--peers A,..] [--method perf|ptrace]

System calls per round trip of each echo server at 1 and at 64 connections of 64 bytes under full load, with two workers
(--workers; raw has one thread); K rounds (3) in rotating order, each peer once in each for S seconds (1); medians. raw takes
part twice, so that the noise can be seen. Columns: all; the waits (epoll_wait, epoll_pwait,
epoll_pwait2); what takes data in (read, recvfrom and their kin); what sends it out (write, sendto and their kin, also a
write to an eventfd); futex; the rest.

  --method perf     the kernel counts, at its tracepoint raw_syscalls:sys_enter. Costs a call some hundred nanoseconds,
                    and hardly changes what the server does. Wants perf_event_open(2) and the tracepoint's number from
                    tracefs: in practice root
  --method ptrace   this program stops the server at each call, as strace does. Works without root. It makes calls some
                    ten times dearer, and so changes what is counted: with 64 connections more messages wait at each
                    epoll_wait, whose share falls, and threads go to sleep and wake in another order. With 1
                    connection the figures mean something; with 64 only the calls that move data do
  --quick           a short window; says only that the counting works

By default perf where it works, else ptrace; the output says which it was.

What it does not measure: time; page faults; calls that never enter the kernel (clock_gettime through the vDSO); calls
before and after the window; the client's own.
";

pub(crate) const ROUNDS: usize = 3;
const CONNS: [usize; 2] = [1, 64];

/// What calls are counted as, by their numbers. The last column is all of them.
pub(crate) const CLASSES: [(&str, &[i64]); 4] = [
    ("wait", WAITS),
    ("in", &[libc::SYS_read, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmsg]),
    ("out", &[libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg]),
    ("futex", &[libc::SYS_futex]),
];

#[cfg(target_arch = "x86_64")]
const WAITS: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll];
/// Newer architectures never had the first one.
#[cfg(not(target_arch = "x86_64"))]
const WAITS: &[i64] = &[libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll];

/// Calls since some beginning: one number for each class, and all.
pub(crate) type Counts = [u64; CLASSES.len() + 1];

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Perf(Tracepoint),
    Ptrace,
}

impl Method {
    /// The one asked for, or the best that works.
    fn choose(wish: Option<Wish>) -> Result<Self, Failure> {
        match (wish, count_perf::tracepoint()) {
            (Some(Wish::Ptrace), _) => Ok(Method::Ptrace),
            (_, Ok(tracepoint)) => Ok(Method::Perf(tracepoint)),
            (None, Err(why)) => {
                eprintln!("the kernel does not count here ({why}): counting by ptrace");
                Ok(Method::Ptrace)
            }
            (Some(Wish::Perf), Err(why)) => Err(Failure::run(format!("the kernel does not count here: {why}"))),
        }
    }

    fn attach(self, pid: i32) -> io::Result<Counter> {
        Ok(match self {
            Method::Perf(tracepoint) => Counter::Perf(count_perf::Counters::attach(pid, tracepoint)?),
            Method::Ptrace => Counter::Ptrace(Tracer::attach(pid)?),
        })
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Wish {
    Perf,
    Ptrace,
}

impl FromStr for Wish {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "perf" => Ok(Wish::Perf),
            "ptrace" => Ok(Wish::Ptrace),
            _ => Err(()),
        }
    }
}

enum Counter {
    Perf(count_perf::Counters),
    Ptrace(Tracer),
}

impl Counter {
    fn read(&self) -> io::Result<Counts> {
        match self {
            Counter::Perf(counters) => counters.read(),
            Counter::Ptrace(tracer) => Ok(tracer.read()),
        }
    }
}

/// Calls per round trip, by class and all.
type PerTrip = [f64; CLASSES.len() + 1];

/// How it was counted, and what, at each number of connections.
pub(crate) struct Figures {
    method: Method,
    workers: usize,
    counts: Vec<(usize, Rows<PerTrip>)>,
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { ROUNDS });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.1 } else { 1.0 });
    let workers = args.workers()?;
    let peers = args
        .parsed::<Peers>("--peers", Peers::WANTS)?
        .unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Gopark]));
    let wish = args.parsed("--method", "perf or ptrace")?;
    args.finish()?;
    measure(&peers, workers, rounds, secs, wish)?.print();
    Ok(())
}

pub(crate) fn measure(
    peers: &Peers,
    workers: usize,
    rounds: usize,
    secs: f64,
    wish: Option<Wish>,
) -> Result<Figures, Failure> {
    let method = Method::choose(wish)?;
    let lineup = Lineup::new(peers, true)?;
    let mut progress = Progress::new(CONNS.len() * rounds * lineup.entrants.len());
    let mut counts = Vec::new();
    for conns in CONNS {
        progress.enter(&format!("syscalls, {}", stats::count(conns, "connection")));
        let load = Load::full(conns, 64, secs);
        let turn = |index: usize| {
            let server = lineup.start(lineup.entrants[index], workers, &Place::Free)?;
            let per_trip = count(&server, &load, method)?;
            server.stop()?;
            Ok((per_trip, 0.0))
        };
        counts.push((conns, contest::play_rounds(&lineup.labels(), rounds, Duration::ZERO, &mut progress, turn)?.0));
        progress.pause();
    }
    Ok(Figures { method, workers, counts })
}

impl Figures {
    /// All calls per round trip.
    pub(crate) fn all(&self, conns: usize) -> Samples {
        let rows = self.counts.iter().find(|counts| counts.0 == conns).map(|counts| &counts.1);
        rows.map_or_else(Vec::new, |rows| contest::pick(rows, |per_trip| per_trip[CLASSES.len()]))
    }

    pub(crate) fn print(&self) {
        println!(
            "System calls per round trip, {} (raw: 1), {}",
            stats::count(self.workers, "worker"),
            match self.method {
                Method::Perf(_) => "counted by the kernel",
                Method::Ptrace => {
                    "counted by ptrace, which slows the server down and so changes what it does (see --help)"
                }
            }
        );
        for (conns, rows) in &self.counts {
            let classes = CLASSES.map(|(name, _)| format!("{name:>8}")).concat();
            println!("\n{}", stats::count(*conns, "connection"));
            println!("  {:<10}{:>8}{classes}{:>8}", "", "all", "other");
            for (label, samples) in rows {
                let median =
                    |of: &dyn Fn(&PerTrip) -> f64| Spread::of(samples.iter().map(of)).expect("a round at least").median;
                let all = |per_trip: &PerTrip| per_trip[CLASSES.len()];
                let mut columns = format!("{:>8.3}", median(&all));
                for class in 0..CLASSES.len() {
                    write!(columns, "{:>8.3}", median(&|per_trip| per_trip[class])).expect("writing to a string");
                }
                let other = median(&|per_trip| all(per_trip) - per_trip[..CLASSES.len()].iter().sum::<f64>());
                println!("  {label:<10}{columns}{other:>8.3}");
            }
        }
    }
}

fn count(server: &Server, load: &Load, method: Method) -> Result<PerTrip, Failure> {
    let counter = method.attach(server.pid())?;
    let (report, start, end) = load::run_between(&load.plan(server.addr()), || counter.read())?;
    report.check()?;
    if end.last() == start.last() {
        return Err(Failure::run("no system call was counted"));
    }
    Ok(std::array::from_fn(|at| (end[at] - start[at]) as f64 / report.round_trips() as f64))
}
