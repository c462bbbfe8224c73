//! gopark beside its peers, on one machine in one run. `benches --help` says what there is.

mod args;
mod atomics;
mod blocking;
mod cells;
mod child;
mod churn;
mod cliff;
mod contest;
mod cores;
mod count_perf;
mod count_ptrace;
mod deadlines;
mod drawing;
mod duel;
mod figures;
mod go;
mod gopark_peer;
mod hist;
mod http;
mod instructions;
mod json;
mod light;
mod load;
mod machine;
mod may_peer;
mod micro;
mod pattern;
mod peer;
mod place;
mod proxy;
mod raw;
mod raw_proxy;
mod rounds;
mod runtime;
mod sleepers;
mod smol_peer;
mod spread;
mod stall;
mod stats;
mod sys;
mod syscalls;
mod together;
mod tokio_peer;
mod watch;
mod work;

pub use micro::{micro_rows, play};

use args::Args;
use peer::Service;
use stall::Stall;
use std::fmt::{self, Display};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

/// What an echo server reads at once at most.
const BUFFER: usize = 4096;

const HELP: &str = "\
benches SUBCOMMAND [OPTIONS]: gopark beside its peers, on one machine in one run

  duel       gopark beside its peers in all that it has an aim for: cells of its own, and what has a * here
  cliff      whether throughput or p99 jump where workers, idle connections or connections grow
  together * CPU time of servers that are loaded in short turns, which the machine's noise hardly changes
  light    * CPU time per round trip under light load
  syscalls * system calls per round trip
  sleepers * how late 100,000 sleepers wake, and what they cost
  deadlines  what it costs to say until when a read may wait
  instructions  how many instructions a spawn, a yield, a wake and a read take, and how many of them are atomic
  micro    * what spawns, wakes, yields and sleeps cost
  cores      what would contend on more cores than there are: a model
  spread   * how well short computations use a second worker
  proxy      the peers side by side as proxies, for bulk and for messages
  blocking   what others notice of two handlers that block
  serve      one echo server or proxy
  load       the load client alone

benches SUBCOMMAND --help says more: what each measures, and what it does not. All but instructions, cores, serve and load
have --quick, which checks in a few seconds that everything works and says nothing about time.
Exit status: 0; 1 where something went wrong (never for a timing); 2 for a wrong command line.
";

const SERVE_HELP: &str = "\
benches serve raw|tokio|smol|may|gopark [--addr HOST:PORT] [--workers N] [--http | --target HOST:PORT | --stall HOW:N]

An echo server: reads up to 4096 bytes, writes them all back, one task per connection (raw: a bare epoll loop; with N
workers, N threads that share the port by SO_REUSEPORT). Address 127.0.0.1:0 by default, two workers. The first line on
stdout is `listening on HOST:PORT`. It ends when its stdin closes.

With --http, an HTTP server instead, which has one answer to whatever is asked.

With --target, a proxy to there (raw: one thread, with a buffer of 64 KiB; not may).

With --stall (not raw), a handler whose message begins with BLOCK keeps its thread before it echoes: sleep:MILLISECONDS,
lock:MILLISECONDS (waits for a mutex that another thread holds) or spin:STEPS (of computation).
";

const LOAD_HELP: &str = "\
benches load --addr HOST:PORT [--conns N] [--bytes B | --requests N] [--secs S] [--warm-up S] [--rate R]

Loads an echo server from one thread: N connections (64), messages of B bytes (64), for S seconds (2) after a quarter of
that as warm-up. With --requests, an HTTP server, and N requests at once are a message. Each connection sends its next message when the last one is back, or, with --rate, R messages a second,
all connections' messages spread evenly in time. Compares every byte, and writes one line of JSON on stdout.

What it does not measure: connecting and closing. One thread has an end: above some hundred thousand round trips a
second it is the client that is measured. Latency includes a message's wait for its turn in the client; percentiles
are off by up to 1 %.
";

/// Why a run ends with another exit status than 0.
#[derive(Debug)]
enum Failure {
    /// The command line is wrong: exit status 2.
    Usage(String),
    /// Something went wrong: exit status 1.
    Run(String),
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Failure::Usage(message.into())
    }

    fn run(message: impl Into<String>) -> Self {
        Failure::Run(message.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Usage(message) | Failure::Run(message)) = self;
        f.write_str(message)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::run(error.to_string())
    }
}

/// The program `benches`.
pub fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    match dispatch(Args::new(args.collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("benches: {failure}");
            if let Failure::Usage(_) = failure {
                eprintln!("`benches --help` and `benches SUBCOMMAND --help` say what is right");
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}

/// A subcommand's help, and what runs it.
type Entry = (&'static str, fn(Args) -> Result<(), Failure>);

fn dispatch(mut args: Args) -> Result<(), Failure> {
    if args.asks_for_help_first() {
        print!("{HELP}");
        return Ok(());
    }
    let name = args.word("a subcommand")?;
    let (help, run): Entry = match &name[..] {
        "serve" => (SERVE_HELP, serve),
        "load" => (LOAD_HELP, load),
        "duel" => (duel::HELP, |args| watched(args, duel::main)),
        "cliff" => (cliff::HELP, |args| watched(args, cliff::main)),
        "together" => (together::HELP, |args| watched(args, together::main)),
        "light" => (light::HELP, |args| watched(args, light::main)),
        "syscalls" => (syscalls::HELP, |args| watched(args, syscalls::main)),
        "sleepers" => (sleepers::HELP, |args| watched(args, sleepers::main)),
        "deadlines" => (deadlines::HELP, |args| watched(args, deadlines::main)),
        "instructions" => (instructions::HELP, |args| watched(args, instructions::main)),
        "cores" => (cores::HELP, |args| watched(args, cores::main)),
        "micro" => (micro::HELP, |args| watched(args, micro::main)),
        "spread" => (spread::HELP, |args| watched(args, spread::main)),
        "blocking" => (blocking::HELP, |args| watched(args, blocking::main)),
        "proxy" => (proxy::HELP, |args| watched(args, proxy::main)),
        // What the others start; nothing for people.
        "sleep" => ("", sleepers::child),
        "deadline" => ("", deadlines::child),
        "parts" => ("", micro::child),
        "steps" => ("", instructions::child),
        "tracepoint" => ("", count_perf::tracepoint_child),
        _ => return Err(Failure::usage(format!("there is no subcommand {name:?}"))),
    };
    if args.flag("--help") || args.flag("-h") {
        print!("{help}");
        return Ok(());
    }
    run(args)
}

/// Runs what starts children, and makes sure that none is left.
fn watched(args: Args, run: fn(Args) -> Result<(), Failure>) -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        eprintln!("built without --release: times mean nothing");
    }
    child::clean_up_on_signal()?;
    sys::raise_nofile_limit()?;
    run(args)?;
    match sys::has_child() {
        true => Err(Failure::run("a child process was left behind")),
        false => Ok(()),
    }
}

fn serve(mut args: Args) -> Result<(), Failure> {
    let peer = args.word("a peer")?;
    let peer = peer
        .parse()
        .map_err(|()| Failure::usage(format!("serve has raw, tokio, smol, may and gopark, not {peer:?}")))?;
    let addr = args.parsed("--addr", ADDR_WANTS)?.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let service =
        match (args.flag("--http"), args.parsed("--target", ADDR_WANTS)?, args.parsed("--stall", Stall::WANTS)?) {
            (false, None, stall) => Service::Echo(stall),
            (true, None, None) => Service::Http,
            (false, Some(target), None) => Service::Proxy(target),
            _ => return Err(Failure::usage("of --http, --target and --stall a server has one at most")),
        };
    let workers = args.workers()?;
    args.finish()?;
    sys::raise_nofile_limit()?;
    peer::serve(peer, addr, service, workers)
}

fn load(mut args: Args) -> Result<(), Failure> {
    let addr = args.parsed("--addr", ADDR_WANTS)?.ok_or_else(|| Failure::usage("--addr is missing"))?;
    let conns = args.connections()?;
    let bytes = args.number("--bytes", 1..=1 << 20)?.unwrap_or(64);
    let requests = args.number("--requests", 1..=1000)?;
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(2.0);
    let warm_up = args.number("--warm-up", 0.0..=3600.0)?.unwrap_or(secs / 4.0);
    let rate = args.rate()?;
    args.finish()?;
    sys::raise_nofile_limit()?;
    let (warm_up, window) = (Duration::from_secs_f64(warm_up), Duration::from_secs_f64(secs));
    let plan = load::Plan { addr, conns, bytes, requests, idle: 0, warm_up, window, rate };
    let (report, ..) = load::run_between(&plan, || Ok(()))?;
    println!("{}", report.json());
    report.check()
}

const ADDR_WANTS: &str = "an address like 127.0.0.1:8080";
