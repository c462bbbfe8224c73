//! `benches syscalls`: how many system calls a round trip costs a server.

use crate::args::Args;
use crate::contest::Load;
use crate::count_perf::Tracepoint;
use crate::count_ptrace::Tracer;
use crate::load;
use crate::peer::{Lineup, Peer, Peers, Server};
use crate::place::Place;
use crate::{Failure, count_perf, stats};
use std::io;
use std::str::FromStr;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches syscalls [--quick] [--secs S] [--workers N] [--peers A,..] [--method perf|ptrace]

System calls per round trip of each echo server at 1 and at 64 connections of 64 bytes under full load, with two workers
(--workers; raw has one thread), each peer once for S seconds (1). Columns: all; the waits (epoll_wait, epoll_pwait,
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

/// What calls are counted as, by their numbers. The last column is all of them.
pub(crate) const CLASSES: [(&str, &[i64]); 4] = [
    ("wait", WAITS),
    ("in", &[libc::SYS_read, libc::SYS_readv, libc::SYS_recvfrom, libc::SYS_recvmsg]),
    ("out", &[libc::SYS_write, libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg]),
    ("futex", &[libc::SYS_futex]),
];

#[cfg(target_arch = "x86_64")]
const WAITS: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];
/// Newer architectures never had the first one.
#[cfg(not(target_arch = "x86_64"))]
const WAITS: &[i64] = &[libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];

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
enum Wish {
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

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.1 } else { 1.0 });
    let workers = args.workers()?;
    let peers = args
        .parsed::<Peers>("--peers", Peers::WANTS)?
        .unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Gopark]));
    let wish = args.parsed("--method", "perf or ptrace")?;
    args.finish()?;

    let method = Method::choose(wish)?;
    println!(
        "System calls per round trip, {} (raw: 1), {}",
        stats::count(workers, "worker"),
        match method {
            Method::Perf(_) => "counted by the kernel",
            Method::Ptrace => "counted by ptrace, which slows the server down and so changes what it does (see --help)",
        }
    );
    let lineup = Lineup::new(&peers, false)?;
    for conns in [1, 64] {
        println!("\n{}", stats::count(conns, "connection"));
        println!("  {:<10}{:>8}{}{:>8}", "", "all", CLASSES.map(|(name, _)| format!("{name:>8}")).concat(), "other");
        for &entrant in &lineup.entrants {
            let (warm_up, window) = (Duration::from_secs_f64(secs / 4.0), Duration::from_secs_f64(secs));
            let load = Load { conns, bytes: 64, requests: None, idle: 0, rate: None, warm_up, window };
            let server = lineup.start(entrant, workers, &Place::Free)?;
            let per_trip = measure(&server, &load, method)?;
            server.stop()?;
            let [classes @ .., all] = per_trip;
            let other = all - classes.iter().sum::<f64>();
            let columns: String =
                [&[all], &classes[..], &[other]].concat().iter().map(|n| format!("{n:>8.3}")).collect();
            println!("  {:<10}{columns}", entrant.label);
        }
    }
    Ok(())
}

fn measure(server: &Server, load: &Load, method: Method) -> Result<[f64; CLASSES.len() + 1], Failure> {
    let counter = method.attach(server.pid())?;
    let (report, start, end) = load::run_between(&load.plan(server.addr()), || counter.read())?;
    report.check()?;
    if end.last() == start.last() {
        return Err(Failure::run("no system call was counted"));
    }
    Ok(std::array::from_fn(|at| (end[at] - start[at]) as f64 / report.round_trips() as f64))
}
