//! `benches proxy`: the peers side by side as proxies.

use crate::args::Args;
use crate::contest::{self, Load, PAIRS, Progress, Setting};
use crate::json::Json;
use crate::machine;
use crate::pattern::{PIECE, Pattern};
use crate::peer::{Lineup, Peer, Peers};
use crate::place::Place;
use crate::stats::{self, Spread};
use crate::{Failure, child::Proc, sys};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches proxy [--quick] [--rounds K] [--secs S] [--only bulk|messages] [--conns N] [--workers N] [--peers A,..]
              [--json FILE]

The peers side by side as TCP proxies: gopark's copy_bidirectional, tokio's, Go's io.Copy where go is in PATH, and raw, a
loop of one thread that reads up to 64 KiB and writes them. Two cells:

  bulk       4 connections that send as fast as they can, in one direction: what a gigabyte costs the proxy in CPU time
  messages   64 connections (--conns) that send 64 bytes to an echo server, and the next when those are back

K rounds (5); per round, each peer once for S seconds (1), from a fresh process with two workers (--workers), in rotating
order. Shown are medians and, in parentheses, quartiles; ratios are formed within one round. raw takes part twice:
`raw again/raw` shows the noise.

  --quick   one round of 0.2 seconds; says only that every byte came through

CPU time is the process's own clock, user and system time of all its threads. Every byte is compared at its end.

What it does not measure: a network (all is loopback, where who sends does much of the receiver's work), and memory. The
client and the echo server have the same CPUs, so that throughput says less than CPU time does; in `messages` the echo
server counts among the other processes.
";

/// How many connections carry bulk.
const BULK_CONNS: usize = 4;
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { 5 });
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.2 } else { 1.0 });
    let only = args.text("--only")?;
    let conns = args.connections()?;
    let workers = args.workers()?;
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let json = args.text("--json")?;
    args.finish()?;
    if let Some(cell) = only.as_deref().filter(|cell| !["bulk", "messages"].contains(cell)) {
        return Err(Failure::usage(format!("--only wants bulk or messages, not {cell:?}")));
    }

    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Gopark]).and_go());
    let machine = machine::describe();
    let window = Duration::from_secs_f64(secs);
    let mut results = Vec::new();
    if only.as_deref() != Some("messages") {
        let sink = TcpListener::bind("127.0.0.1:0")?;
        let lineup = Lineup::of_proxies(&peers, sink.local_addr()?)?;
        println!("bulk: {}, {BULK_CONNS} connections in one direction", stats::count(workers, "worker"));
        results
            .push(Json::map([("cell", Json::text("bulk")), ("peers", bulk(&lineup, &sink, rounds, workers, window)?)]));
    }
    if only.as_deref() != Some("bulk") {
        let mut echo = Proc::start_self(&["serve", "raw", "--workers", "1"])?;
        let line = echo.line(LIMIT)?;
        let target = line.strip_prefix("listening on ").and_then(|addr| addr.parse().ok());
        let target = target.ok_or_else(|| Failure::run(format!("the echo server says {line:?}")))?;
        let lineup = Lineup::of_proxies(&peers, target)?;
        let mut progress = Progress::new(rounds * lineup.entrants.len());
        progress.enter("messages");
        let load = Load { conns, bytes: 64, requests: None, idle: 0, rate: None, warm_up: window / 4, window };
        let setting = Setting { load, workers, place: Place::Free, rounds, patience: Duration::ZERO };
        let outcome = contest::play(&lineup, &setting, &mut progress)?;
        progress.pause();
        println!("messages: {}, {conns} connections\n{}", stats::count(workers, "worker"), outcome.show());
        results.push(Json::map([("cell", Json::text("messages")), ("peers", outcome.json())]));
        echo.finish(LIMIT)?;
    }
    if let Some(path) = json {
        let all = Json::map([("machine", Json::text(machine)), ("cells", Json::list(results))]);
        fs::write(path, format!("{all}\n"))?;
    }
    Ok(())
}

/// What one proxy did in one window.
struct Sample {
    bytes: u64,
    cpu: u64,
    time: u64,
}

impl Sample {
    /// Nanoseconds for each gigabyte.
    fn cost(&self) -> f64 {
        self.cpu as f64 / self.bytes as f64 * 1e9
    }

    fn per_second(&self) -> f64 {
        self.bytes as f64 / self.time as f64
    }
}

fn bulk(lineup: &Lineup, sink: &TcpListener, rounds: usize, workers: usize, window: Duration) -> Result<Json, Failure> {
    let mut rows: Vec<(&str, Vec<Sample>)> =
        lineup.entrants.iter().map(|entrant| (entrant.label, Vec::new())).collect();
    for round in 0..rounds {
        for turn in 0..rows.len() {
            let index = (turn + round) % rows.len();
            let server = lineup.start(lineup.entrants[index], workers, &Place::Free)?;
            let flows = Flows::start(server.addr(), sink)
                .map_err(|error| Failure::run(format!("{}: {error}", rows[index].0)))?;
            thread::sleep(window / 4);
            let start = (sys::now(), flows.received.load(Ordering::Relaxed), sys::cpu_of(server.pid())?);
            thread::sleep(window);
            let end = (sys::now(), flows.received.load(Ordering::Relaxed), sys::cpu_of(server.pid())?);
            flows.stop().map_err(|error| Failure::run(format!("{}: {error}", rows[index].0)))?;
            server.stop()?;
            let sample = Sample { time: end.0 - start.0, bytes: end.1 - start.1, cpu: end.2 - start.2 };
            if sample.bytes == 0 {
                return Err(Failure::run(format!("{}: no byte came through within the window", rows[index].0)));
            }
            rows[index].1.push(sample);
        }
    }
    let spread = |samples: &[Sample], of: fn(&Sample) -> f64| Spread::of(samples.iter().map(of)).expect("a round");
    println!("  {:<16}{:<32}CPU time of the proxy per GB", "", "GB/s");
    for (label, samples) in &rows {
        let speed = spread(samples, Sample::per_second).show(stats::ratio);
        println!("  {label:<16}{speed:<32}{}", spread(samples, Sample::cost).show(stats::duration));
    }
    let row = |label| rows.iter().find(|row| row.0 == label).map(|row| &row.1);
    for (over, under) in PAIRS {
        if let (Some(a), Some(b)) = (row(over), row(under)) {
            let ratio = |of: fn(&Sample) -> f64| {
                Spread::of(a.iter().zip(b).map(|(a, b)| of(a) / of(b))).expect("a round").show(stats::ratio)
            };
            println!("  {:<16}{:<32}{}", format!("{over}/{under}"), ratio(Sample::per_second), ratio(Sample::cost));
        }
    }
    println!();
    Ok(Json::list(rows.iter().map(|(label, samples)| {
        let of = |of| spread(samples, of).json();
        Json::map([
            ("peer", Json::text(*label)),
            ("gb_per_second", of(Sample::per_second)),
            ("cpu_ns_per_gb", of(Sample::cost)),
        ])
    })))
}

/// Bulk on its way, from threads to threads.
struct Flows {
    received: &'static AtomicU64,
    stop: &'static AtomicBool,
    sent: Vec<thread::JoinHandle<io::Result<u64>>>,
    got: Vec<thread::JoinHandle<io::Result<u64>>>,
}

impl Flows {
    fn start(proxy: SocketAddr, sink: &TcpListener) -> io::Result<Flows> {
        // A few bytes for each round.
        let (received, stop) = (Box::leak(Box::default()), Box::leak(Box::default()));
        let mut flows = Flows { received, stop, sent: Vec::new(), got: Vec::new() };
        for conn in 0..BULK_CONNS {
            let source = TcpStream::connect(proxy)?;
            let (sink, _) = sink.accept()?;
            sink.set_read_timeout(Some(LIMIT))?;
            source.set_write_timeout(Some(LIMIT))?;
            let (received, stop) = (flows.received, flows.stop);
            flows.sent.push(thread::spawn(move || send(conn, source, stop)));
            flows.got.push(thread::spawn(move || receive(conn, sink, received)));
        }
        Ok(flows)
    }

    /// Lets everything that is under way arrive.
    fn stop(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for (sent, got) in self.sent.into_iter().zip(self.got) {
            let (sent, got) = (sent.join().expect("it does not panic")?, got.join().expect("it does not panic")?);
            if sent != got {
                return Err(io::Error::other(format!("{sent} bytes were sent, and {got} came through")));
            }
        }
        Ok(())
    }
}

fn send(conn: usize, mut to: TcpStream, stop: &AtomicBool) -> io::Result<u64> {
    let (pattern, mut sent) = (Pattern::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        to.write_all(pattern.piece(conn, sent, PIECE))?;
        sent += PIECE as u64;
    }
    to.shutdown(Shutdown::Write)?;
    // The other direction ends when this one has.
    match to.read(&mut [0])? {
        0 => Ok(sent),
        _ => Err(io::Error::other("something came back")),
    }
}

fn receive(conn: usize, mut from: TcpStream, received: &AtomicU64) -> io::Result<u64> {
    let (pattern, mut buf, mut got) = (Pattern::new(), vec![0; PIECE], 0);
    loop {
        let n = from.read(&mut buf)?;
        if n == 0 {
            return Ok(got);
        }
        if buf[..n] != *pattern.piece(conn, got, n) {
            return Err(io::Error::other(format!("a wrong byte came through, at {got} or up to {n} bytes later")));
        }
        got += n as u64;
        received.fetch_add(n as u64, Ordering::Relaxed);
    }
}
