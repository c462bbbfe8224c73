//! A load client for echo servers. Run it against one:
//!
//! ```text
//! cargo run --release --example echo
//!
//! cargo run --release --example echo_load -- --conns 64 --secs 5 --bytes 64
//! ```
//!
//! Each connection sends a message, waits until it is back, compares every byte, and sends the next: a closed loop, so it
//! finds out how much the server can do, not how it takes a given load. Client and server share the machine's CPUs.

mod args;

use args::{Args, fail};
use futures::future::try_join;
use gopark::JoinHandle;
use gopark::net::{TcpStream, lookup_host};
use gopark::time::{Duration, Instant, interval, sleep, timeout, timeout_at};
use std::io::{self, IsTerminal, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const HELP: &str = "\
A load client for echo servers: sends, waits, compares, again and again.

  --addr HOST:PORT   the server (default: 127.0.0.1:7000)
  --conns N          how many connections (default: 64)
  --secs S           for how many seconds, such as 0.5 (default: 5)
  --block N          after a second, N further connections send BLOCK, once each (default: 0; for the example `blocking`)
  --bytes B          how long a message is, up to 16777216 (default: 64)
  --workers N        how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help             this text

Exit status: 0; 1 if a connection failed or a byte came back wrong; 2 for a bad argument.
";

/// Longer, and the server or the network is taken to be dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that are made at the same time: fewer than a listener's usual backlog.
const CONNECTING: usize = 128;
/// A message up to this is written before any of it is read. A longer one might not fit into the buffers on its way there
/// and back, and both ends would wait for the other to read.
const FITS: usize = 16 << 10;
/// Messages differ by where in the noise they begin.
const STARTS: usize = 1 << 16;

fn main() -> ExitCode {
    let mut args = Args::read(HELP);
    let addr = args.addr("127.0.0.1:7000");
    let conns = args.number("--conns", 1..=1_000_000).unwrap_or(64);
    let secs = args.number("--secs", 0.001..=1e6).unwrap_or(5.0);
    let bytes = args.number("--bytes", 1..=16 << 20).unwrap_or(64);
    let blocks = args.number("--block", 0..=100_000).unwrap_or(0);
    let workers = args.workers();
    args.end();
    if addr.ends_with(":0") {
        fail("--addr wants the port on which the server listens; port 0 is for servers");
    }
    match gopark::net::raise_nofile_limit() {
        Ok(files) if conns as u64 + 16 > files => {
            fail(format_args!("--conns {conns} is more than this process may open: {files} descriptors"))
        }
        // Where the limit is not known, connecting finds it.
        _ => {}
    }
    let builder = gopark::Builder::new();
    let builder = if let Some(n) = workers { builder.workers(n) } else { builder };
    let runtime = builder.build().unwrap_or_else(|error| fail(error));
    match runtime.run(load(addr, conns, Duration::from_secs_f64(secs), bytes, blocks)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

async fn load(addr: String, conns: usize, time: Duration, bytes: usize, blocks: usize) -> Result<(), String> {
    let streams = connect(&addr, conns).await?;
    let blockers = connect(&addr, blocks).await?;
    let tally = Arc::new(Tally::new());
    let noise: Arc<[u8]> = noise(STARTS + bytes).into();
    let progress = gopark::spawn(progress(tally.clone(), conns));
    let begin = Instant::now();
    let end = begin + time;
    let tasks: Vec<JoinHandle<_>> = streams
        .into_iter()
        .enumerate()
        .map(|(n, stream)| gopark::spawn(client(stream, n, noise.clone(), bytes, end, tally.clone())))
        .collect();
    let blockers: Vec<JoinHandle<_>> = blockers.into_iter().map(|stream| gopark::spawn(blocker(stream))).collect();
    let mut wrong = Vec::new();
    for task in tasks.into_iter().chain(blockers) {
        if let Err(error) = task.await.expect("a client does not panic") {
            wrong.push(error);
        }
    }
    progress.abort();
    // A cancelled task, if all goes well.
    let _ = progress.await;
    if io::stderr().is_terminal() {
        eprintln!();
    }
    tally.report(conns, bytes, time);
    match &wrong[..] {
        [] => Ok(()),
        [first, ..] => Err(format!("{} of {conns} connections failed; the first: {first}", wrong.len())),
    }
}

/// Makes the connections, a few at a time.
async fn connect(addr: &str, conns: usize) -> Result<Vec<TcpStream>, String> {
    // Once, and not for each of them.
    let addrs: Arc<[SocketAddr]> = lookup_host(addr).await.map_err(|error| error.to_string())?.collect();
    let mut streams = Vec::new();
    while streams.len() < conns {
        let some = CONNECTING.min(conns - streams.len());
        let connecting: Vec<_> = (0..some)
            .map(|_| {
                let addrs = addrs.clone();
                gopark::spawn(async move { timeout(PATIENCE, TcpStream::connect(&*addrs)).await })
            })
            .collect();
        for task in connecting {
            let connected = task.await.expect("connecting does not panic");
            streams.push(match connected {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err(format!("cannot connect to {addr}: no answer in {PATIENCE:?}")),
            });
        }
    }
    Ok(streams)
}

/// One connection's task.
async fn client(
    stream: TcpStream,
    n: usize,
    noise: Arc<[u8]>,
    bytes: usize,
    end: Instant,
    tally: Arc<Tally>,
) -> Result<(), String> {
    let work = async {
        let mut back = vec![0; bytes];
        // Odd steps: it takes all starts for a message to be repeated on its connection.
        let (mut start, step) = (n.wrapping_mul(7919) % STARTS, 2 * n + 1);
        let mut sent = Instant::now();
        while sent < end {
            let message = &noise[start..start + bytes];
            start = (start + step) % STARTS;
            if bytes <= FITS {
                stream.write_all(message).await.map_err(|e| format!("writing: {e}"))?;
                stream.read_exact(&mut back).await.map_err(|e| format!("reading: {e}"))?;
            } else {
                let both = try_join(stream.write_all(message), stream.read_exact(&mut back));
                both.await.map_err(|e| format!("writing and reading: {e}"))?;
            }
            if back != message {
                let at = back.iter().zip(message).position(|(a, b)| a != b).expect("they are of one length");
                return Err(format!("byte {at} came back as {}, sent as {}", back[at], message[at]));
            }
            let now = Instant::now();
            tally.record(sent, now);
            sent = now;
        }
        // As many bytes as were sent are back. The server has no more to say, and closes when we do.
        stream.shutdown(Shutdown::Write).map_err(|e| format!("closing: {e}"))?;
        match stream.read(&mut back).await {
            Ok(0) => Ok(()),
            Ok(n) => Err(format!("{n} bytes came back that were never sent")),
            Err(e) => Err(format!("closing: {e}")),
        }
    };
    let late = || Err(format!("no answer for {PATIENCE:?}"));
    timeout_at(end + PATIENCE, work).await.unwrap_or_else(|_| late())
}

/// A connection whose message asks the server to block.
async fn blocker(stream: TcpStream) -> Result<(), String> {
    const BLOCK: &[u8] = b"BLOCK\n";
    sleep(Duration::from_secs(1)).await;
    stream.write_all(BLOCK).await.map_err(|e| format!("writing BLOCK: {e}"))?;
    let read = timeout(PATIENCE, stream.read_exact(&mut [0; BLOCK.len()])).await;
    read.map_err(|_| format!("BLOCK is not back after {PATIENCE:?}"))?.map_err(|e| format!("reading BLOCK: {e}"))
}

/// Bytes without a pattern, the same in every run: xorshift64.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64;
    let step = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    std::iter::repeat_with(step).take(len).collect()
}

/// Says how it goes: in place on a terminal, else a line per second.
async fn progress(tally: Arc<Tally>, conns: usize) {
    let terminal = io::stderr().is_terminal();
    let mut ticks = interval(Duration::from_millis(if terminal { 200 } else { 1000 }));
    let begin = ticks.tick().await;
    let (mut last, mut before) = (begin, 0);
    loop {
        ticks.tick().await;
        let (now, done) = (Instant::now(), tally.trips.load(Relaxed));
        let rate = (done - before) as f64 / (now - last).as_secs_f64();
        (last, before) = (now, done);
        let (start, line_end) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let secs = (now - begin).as_secs_f64();
        let line = format!("{start}{secs:6.1} s  {conns} connections  {rate:.0} round trips/s{line_end}");
        // Nobody may be there to read it.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// What all connections did: a count, and a histogram of latencies, off by less than 1/64.
struct Tally {
    trips: AtomicU64,
    begin: Instant,
    /// When the last message came back, and the longest time without any, in nanoseconds.
    last: AtomicU64,
    longest_gap: AtomicU64,
    /// For each power of two of nanoseconds, `PARTS` equal parts of what lies between it and the next.
    buckets: Box<[AtomicU64]>,
}

const PARTS: u64 = 64;

impl Tally {
    fn new() -> Tally {
        let buckets = (0..64 * PARTS).map(|_| AtomicU64::new(0)).collect();
        let (trips, last, longest_gap) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Tally { trips, begin: Instant::now(), last, longest_gap, buckets }
    }

    fn record(&self, sent: Instant, back: Instant) {
        self.trips.fetch_add(1, Relaxed);
        self.buckets[bucket((back - sent).as_nanos() as u64)].fetch_add(1, Relaxed);
        let now = (back - self.begin).as_nanos() as u64;
        let gap = now.saturating_sub(self.last.fetch_max(now, Relaxed));
        if gap > self.longest_gap.load(Relaxed) {
            self.longest_gap.fetch_max(gap, Relaxed);
        }
    }

    fn report(&self, conns: usize, bytes: usize, time: Duration) {
        let trips = self.trips.load(Relaxed);
        // The last ones may have come back after that time.
        let took = time.as_secs_f64().max(self.last.load(Relaxed) as f64 / 1e9);
        let rate = trips as f64 / took;
        let mut text = format!("{conns} connections, messages of {bytes} bytes, {took:.3} s\n");
        text += &format!("{trips} round trips, {rate:.0} round trips/s\n");
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| self.percentile(part));
        text += &format!("latency p50 {p50:.1} us, p99 {p99:.1} us, p99.9 {p999:.1} us\n");
        let gap = self.longest_gap.load(Relaxed) as f64 / 1e6;
        text += &format!("longest gap {gap:.1} ms, in which nothing came back on any connection\n");
        // Nobody may be there to read it.
        let _ = io::stdout().write_all(text.as_bytes());
    }

    /// In microseconds: the upper end of the bucket.
    fn percentile(&self, part: f64) -> f64 {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Relaxed)).collect();
        let rank = (counts.iter().sum::<u64>() as f64 * part).ceil() as u64;
        let mut seen = 0;
        let reached = counts.iter().position(|n| {
            seen += n;
            seen >= rank && seen > 0
        });
        reached.map_or(0.0, |at| lower_end(at + 1) as f64 / 1000.0)
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = nanos.max(PARTS).ilog2() - PARTS.ilog2();
    (u64::from(shift) * PARTS + (nanos >> shift)) as usize
}

/// The least that falls into a bucket.
fn lower_end(bucket: usize) -> u64 {
    let (bucket, parts) = (bucket as u64, PARTS);
    let shift = (bucket / parts).saturating_sub(1);
    (bucket - shift * parts) << shift
}
