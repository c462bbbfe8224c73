//! `benches instructions`: how many instructions the parts of a runtime take, which no neighbour on the machine changes.

use crate::args::Args;
use crate::atomics::Atomics;
use crate::child::{Proc, TempDir};
use crate::gopark_peer::Gopark;
use crate::peer::{Peer, Peers};
use crate::rounds;
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::tokio_peer::Tokio;
use crate::{Failure, machine};
use std::fmt::Write;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;
use std::{fs, io, mem};

pub(crate) const HELP: &str = "\
benches instructions [--peers A,..] [--check FILE | --write FILE]

Instructions in user space, counted by valgrind's callgrind on the thread of one worker, for each of:

  spawn   a task that does nothing, spawned by another that joins it; in hundreds
  yield   a yield of a task that is alone
  wake    two tasks that wake each other in turn: one wake and the poll that follows
  read    two tasks that send each other a byte over TCP in turn: a write, a read that finds nothing and parks, the
          harvest of the event, the wake, and the read that finds the byte
  sleep   a sleep of a minute: made, polled and dropped
  socket  a socket registered and closed

and how many of them are atomic: read-modify-writes and fences, that is what has a lock prefix, xchg with memory, and
mfence; libc's are included. For that, objdump (binutils) has to be in PATH. gopark, tokio and smol by default.

Each row is played 1,000 times, and then 5,000 times that count, three times over: shown are the fewest. The worker's
clock is one that counts its readings (benches/clock.rs), since how often a runtime looks around depends on it.

  --check FILE   of gopark alone; fails where a count is more than 3 % above the one in FILE, or FILE is for another rustc or
                 libc
  --write FILE   of gopark alone; writes FILE

What it does not measure: the kernel, caches, branches, waiting; the clock; anything that happens only where threads meet;
what smol leaves to a thread of its own.
";

const ROWS: [&str; 6] = ["spawn", "yield", "wake", "read", "sleep", "socket"];
const FEW: u64 = 1000;
const MANY: u64 = 5000;
const PLAYS: usize = 3;
/// valgrind runs some fifty times slower.
const LIMIT: Duration = Duration::from_secs(120);
/// How much a count may grow.
const GROWTH: f64 = 1.03;

/// Instructions and, where objdump is there, atomic ones, per operation.
type Count = (f64, Option<f64>);

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let (check, write) = (args.text("--check")?, args.text("--write")?);
    args.finish()?;
    let alone = check.is_some() || write.is_some();
    if alone && peers.is_some() {
        return Err(Failure::usage("--check and --write are about gopark, without --peers"));
    }
    let default = if alone { vec![Peer::Gopark] } else { vec![Peer::Gopark, Peer::Tokio, Peer::Smol] };
    let peers = peers.unwrap_or(Peers(default)).runtimes_only()?;
    let recorded = check.map(|name| Recorded::read(&name)).transpose()?;
    let mut atomics = Atomics::new();
    if atomics.is_none() {
        if alone {
            return Err(Failure::run("objdump is not in PATH: install binutils"));
        }
        eprintln!("objdump is not in PATH, so atomic instructions are not told apart");
    }

    let dir = TempDir::new()?;
    let clock = dir.path().join("clock.so");
    build_clock(&clock)?;
    let columns = peers.iter().map(|&peer| fewest(peer, &clock, &mut atomics)).collect::<Result<Vec<_>, _>>()?;
    println!("{:<8}{}", "", peers.iter().map(|peer| format!("{:>18}", peer.name())).collect::<String>());
    for (index, row) in ROWS.into_iter().enumerate() {
        let columns = columns.iter().map(|counts| {
            let (instructions, atomics) = counts[index];
            format!("{instructions:>10.1}{:>8}", atomics.map_or(String::new(), |n| format!("{n:.2}")))
        });
        println!("{row:<8}{}", columns.collect::<String>());
    }
    if let Some(file) = write {
        let mut text = String::from(
            "# Per operation, on one worker's thread: instructions in user space, and how many of them are atomic.\n\
             # cargo run --release -p benches -- instructions --write benches/instructions.txt\n",
        );
        writeln!(text, "for {}", built_with()?).expect("writing to a string");
        for (row, (instructions, atomics)) in ROWS.iter().zip(&columns[0]) {
            writeln!(text, "{row} {instructions:.1} {:.2}", atomics.unwrap_or(0.0)).expect("writing to a string");
        }
        fs::write(file, text)?;
    }
    recorded.map_or(Ok(()), |recorded| recorded.compare(&columns[0]))
}

/// What a file says that was written before.
struct Recorded {
    name: String,
    rows: Vec<[f64; 2]>,
}

impl Recorded {
    fn read(name: &str) -> Result<Self, Failure> {
        let text = fs::read_to_string(name).map_err(|error| Failure::run(format!("{name}: {error}")))?;
        let entry = |wanted: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '));
            found.ok_or_else(|| Failure::run(format!("{name} has no good line for {wanted}")))
        };
        let (recorded, ours) = (entry("for")?, built_with()?);
        if recorded != ours {
            return Err(Failure::run(format!("{name} is for {recorded}, and this is {ours}: they do not compare")));
        }
        let row = |row: &&str| {
            let numbers: Vec<f64> = entry(row)?.split(' ').filter_map(|word| word.parse().ok()).collect();
            numbers.try_into().map_err(|_| Failure::run(format!("{name} has no good line for {row}")))
        };
        Ok(Recorded { name: name.to_owned(), rows: ROWS.iter().map(row).collect::<Result<_, _>>()? })
    }

    fn compare(&self, counts: &[Count]) -> Result<(), Failure> {
        let mut grown = Vec::new();
        for ((row, before), &(instructions, atomics)) in ROWS.iter().zip(&self.rows).zip(counts) {
            let now = [(instructions, "instructions"), (atomics.unwrap_or(0.0), "atomics")];
            for (&before, (now, what)) in before.iter().zip(now) {
                if now > before * GROWTH {
                    grown.push(format!("{row} from {before} to {now:.2} {what}"));
                } else if before > now * GROWTH {
                    println!(
                        "{row} has shrunk from {before} to {now:.2} {what}: write it down, with --write {}",
                        self.name
                    );
                }
            }
        }
        match grown.is_empty() {
            true => Ok(()),
            false => Err(Failure::run(format!("grown by more than 3 %: {}", grown.join(", ")))),
        }
    }
}

/// Other compilers make other instructions, and allocating is libc's.
fn built_with() -> Result<String, Failure> {
    Ok(format!("rustc {}, {}", machine::rustc_version()?, crate::sys::libc_version()))
}

fn build_clock(to: &Path) -> Result<(), Failure> {
    let source = to.with_extension("rs");
    fs::write(&source, include_str!("../clock.rs"))?;
    let mut command = machine::rustc();
    command.args(["--edition", "2024", "-O", "--crate-type", "cdylib", "-o"]).arg(to).arg(&source);
    Proc::start("rustc", &mut command)?.finish(LIMIT)
}

/// What a neighbour or another thread of the runtime can do is to add some.
fn fewest(peer: Peer, clock: &Path, atomics: &mut Option<Atomics>) -> Result<Vec<Count>, Failure> {
    let mut fewest = count(peer, clock, atomics)?;
    for _ in 1..PLAYS {
        for (least, count) in fewest.iter_mut().zip(count(peer, clock, atomics)?) {
            if count.0 < least.0 {
                *least = count;
            }
        }
    }
    Ok(fewest)
}

fn count(peer: Peer, clock: &Path, atomics: &mut Option<Atomics>) -> Result<Vec<Count>, Failure> {
    let dir = TempDir::new()?;
    let mut command = Command::new("valgrind");
    // A file for each thread, at each mark, with a count for each address.
    command.args(["--tool=callgrind", "--separate-threads=yes", "--dump-before=benches_mark", "--dump-instr=yes"]);
    command.args(["--compress-pos=no", "--compress-strings=no"]);
    for (option, file) in [("--callgrind-out-file", "out"), ("--log-file", "log")] {
        command.arg(format!("{option}={}", dir.path().join(file).display()));
    }
    command.arg(std::env::current_exe()?).args(["steps", peer.name(), "--workers", "1"]).env("LD_PRELOAD", clock);
    Proc::start("valgrind", &mut command)?.finish(LIMIT)?;
    // The first mark ends the start, and after each row the next one warms up.
    (0..ROWS.len()).map(|row| of_worker(dir.path(), 2 * row + 2, atomics)).collect()
}

/// The counts from one mark to the next, of the thread that has made them.
fn of_worker(dir: &Path, dump: usize, atomics: &mut Option<Atomics>) -> Result<Count, Failure> {
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with(&format!("out.{dump}-")) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        if text.contains("fn=benches_mark\n") {
            let (mut instructions, mut atomic) = (0, 0);
            for (object, address, count) in by_address(&text) {
                instructions += count;
                if atomics.as_mut().is_some_and(|atomics| atomics.has(object, address)) {
                    atomic += count;
                }
            }
            let each = |n: u64| n as f64 / MANY as f64;
            return Ok((each(instructions), atomics.is_some().then(|| each(atomic))));
        }
    }
    Err(Failure::run(format!("callgrind has written nothing about the worker at mark {dump}")))
}

/// What each instruction has cost: object, address and count. What a call has cost is its callee's.
fn by_address(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    let (mut object, mut call) = ("", false);
    text.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix("ob=") {
            object = name;
        } else if line.starts_with("calls=") {
            call = true;
        } else if let Some(rest) = line.strip_prefix("0x").filter(|_| !mem::take(&mut call)) {
            let mut words = rest.split(' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            return Some((object, address, words.nth(1)?.parse().ok()?));
        }
        None
    })
}

/// `benches steps PEER --workers 1`: what valgrind runs.
pub(crate) fn child(args: Args) -> Result<(), Failure> {
    let (peer, workers, []) = rounds::child_args(args, [])?;
    crate::sys::register_membarrier();
    match peer {
        Peer::Tokio => Tokio::run(workers, all::<Tokio>()),
        Peer::Smol => Smol::run(workers, all::<Smol>()),
        // Under valgrind a thread seems to wait while another is counted.
        Peer::Gopark => Ok(gopark::Builder::new().workers(workers).retake(false).build()?.run(all::<Gopark>())),
        Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }?
    .map_err(Failure::from)
}

async fn all<R: Runtime>() -> io::Result<()> {
    crate::sys::count_time()?;
    for row in ROWS {
        play::<R>(row, FEW).await?;
        benches_mark();
        play::<R>(row, MANY).await?;
        benches_mark();
    }
    Ok(())
}

/// callgrind knows it by its name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn benches_mark() {
    std::hint::black_box(());
}

async fn play<R: Runtime>(row: &'static str, times: u64) -> io::Result<()> {
    match row {
        "spawn" => {
            for _ in 0..times / 100 {
                let tasks: Vec<_> = (0..100).map(|_| R::spawn(async {})).collect();
                for task in tasks {
                    task.await;
                }
            }
        }
        "yield" => {
            for _ in 0..times {
                R::yield_now().await;
            }
        }
        "wake" => wake_in_turn::<R>(times).await,
        "read" => send_in_turn::<R>(times).await?,
        "sleep" => {
            for _ in 0..times {
                let mut sleep = pin!(R::sleep(Duration::from_secs(60)));
                assert!(poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx))).await.is_pending());
            }
        }
        _ => {
            let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            let socket = std::net::TcpStream::connect(listener.local_addr()?)?;
            for _ in 0..times {
                drop(R::from_std(socket.try_clone()?)?);
            }
        }
    }
    Ok(())
}

/// Whose turn it is, and who waits for that.
struct Turns(Mutex<(u64, [Option<Waker>; 2])>);

impl Turns {
    async fn take(&self, me: usize, times: u64) {
        for _ in 0..times {
            poll_fn(|cx| {
                let mut turns = self.0.lock().expect("nobody panics");
                if turns.0 % 2 == me as u64 {
                    return Poll::Ready(());
                }
                turns.1[me] = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            let other = {
                let mut turns = self.0.lock().expect("nobody panics");
                turns.0 += 1;
                turns.1[1 - me].take()
            };
            other.into_iter().for_each(Waker::wake);
        }
    }
}

async fn wake_in_turn<R: Runtime>(times: u64) {
    let turns = Arc::new(Turns(Mutex::default()));
    let there = turns.clone();
    let other = R::spawn(async move { there.take(1, times / 2).await });
    turns.take(0, times / 2).await;
    other.await;
}

async fn send_in_turn<R: Runtime>(times: u64) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let here = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (there, _) = listener.accept()?;
    for stream in [&here, &there] {
        stream.set_nodelay(true)?;
    }
    let (mut here, mut there) = (R::from_std(here)?, R::from_std(there)?);
    let other = R::spawn(async move {
        while let Ok(1..) = R::read(&mut there, &mut [0]).await {
            if R::write_all(&mut there, &[0]).await.is_err() {
                break;
            }
        }
    });
    for _ in 0..times / 2 {
        R::write_all(&mut here, &[0]).await?;
        R::read(&mut here, &mut [0]).await?;
    }
    drop(here);
    other.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_costs_is_its_callees() {
        let text = "\
version: 1
ob=/bin/program
fn=caller
0x10 7 5
cob=/lib/libc.so
cfn=malloc
calls=5 0x900
0x14 7 400
0x18 8 5
ob=/lib/libc.so
fn=malloc
0x900 0 400
totals: 410
";
        let own = [("/bin/program", 0x10, 5), ("/bin/program", 0x18, 5), ("/lib/libc.so", 0x900, 400)];
        assert_eq!(by_address(text).collect::<Vec<_>>(), own);
    }
}
