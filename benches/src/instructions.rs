//! `benches instructions`: how many instructions the parts of a runtime take, which no neighbour on the machine changes.

use crate::args::Args;
use crate::child::Proc;
use crate::gopark_peer::Gopark;
use crate::peer::{Peer, Peers};
use crate::rounds;
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::tokio_peer::Tokio;
use crate::{Failure, machine};
use std::fmt::Write;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;
use std::{fs, io};

pub(crate) const HELP: &str = "\
benches instructions [--peers A,..] [--check FILE | --write FILE]

Instructions in user space, counted by valgrind's callgrind, on one worker, for each of:

  spawn   a task that does nothing, spawned by another that joins it; in hundreds
  yield   a yield of a task that is alone
  wake    two tasks that wake each other in turn: one wake and the poll that follows
  read    two tasks that send each other a byte over TCP in turn: a write, a read that finds nothing and parks, the
          harvest of the event, the wake, and the read that finds the byte

Each is played 1,000 and 6,000 times, three times over, and what is shown is the difference between the fewest by 5,000:
what a start costs is not in it.
gopark, tokio and smol by default.

  --check FILE   gopark alone; fails where a count is more than 3 % above the one in FILE
  --write FILE   gopark alone; writes FILE

What it does not measure: the kernel, caches, branches, waiting; anything that happens only where threads meet. Another
compiler gives other counts.
";

const ROWS: [&str; 4] = ["spawn", "yield", "wake", "read"];
const FEW: u64 = 1000;
const MANY: u64 = 6000;
const PLAYS: usize = 3;
/// valgrind runs some fifty times slower.
const LIMIT: Duration = Duration::from_secs(120);
/// How much a count may grow.
const GROWTH: f64 = 1.03;

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let (check, write) = (args.text("--check")?, args.text("--write")?);
    args.finish()?;
    let alone = check.is_some() || write.is_some();
    let default = if alone { vec![Peer::Gopark] } else { vec![Peer::Gopark, Peer::Tokio, Peer::Smol] };
    let peers = peers.unwrap_or(Peers(default)).runtimes_only()?;

    println!("{:<8}{}", "", peers.iter().map(|peer| format!("{:>10}", peer.name())).collect::<String>());
    let mut counts = Vec::new();
    for (index, row) in ROWS.into_iter().enumerate() {
        let of_row = peers.iter().map(|&peer| count(peer, index)).collect::<Result<Vec<_>, _>>()?;
        println!("{row:<8}{}", of_row.iter().map(|count| format!("{count:>10.1}")).collect::<String>());
        counts.push((row, of_row[0]));
    }
    if let Some(file) = write {
        let mut text = String::from("# Instructions in user space, one worker: `benches instructions --write FILE`.\n");
        writeln!(text, "rustc {}", machine::rustc()?).expect("writing to a string");
        counts.iter().for_each(|(name, count)| writeln!(text, "{name} {count:.1}").expect("writing to a string"));
        fs::write(file, text)?;
    }
    match check {
        Some(file) => compare(&counts, &fs::read_to_string(&file)?, &file),
        None => Ok(()),
    }
}

fn compare(counts: &[(&str, f64)], file: &str, name: &str) -> Result<(), Failure> {
    let entry = |wanted: &str| file.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '));
    let missing = |what: &str| Failure::run(format!("{name} has no line for {what}"));
    let (recorded, ours) = (entry("rustc").ok_or_else(|| missing("rustc"))?, machine::rustc()?);
    if recorded != ours {
        return Err(Failure::run(format!("{name} is for rustc {recorded}, and this is {ours}: they do not compare")));
    }
    let mut grown = Vec::new();
    for &(row, count) in counts {
        let before: f64 = entry(row).and_then(|text| text.parse().ok()).ok_or_else(|| missing(row))?;
        if count > before * GROWTH {
            grown.push(format!("{row} from {before} to {count:.1}"));
        } else if before > count * GROWTH {
            println!("{row} has shrunk from {before} to {count:.1}: write that down, with --write {name}");
        }
    }
    match grown.is_empty() {
        true => Ok(()),
        false => Err(Failure::run(format!("grown by more than 3 %: {}", grown.join(", ")))),
    }
}

fn count(peer: Peer, row: usize) -> Result<f64, Failure> {
    let collected = |times: u64| {
        let exe = std::env::current_exe()?;
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=1"]).arg(exe);
        command.args(["steps", peer.name(), "--workers", "1", &row.to_string(), &times.to_string()]);
        let mut child = Proc::start("valgrind", &mut command)?;
        let total = loop {
            if let Some((_, total)) = child.line(LIMIT)?.split_once("Collected : ") {
                break total.trim().parse::<u64>().map_err(|_| Failure::run("callgrind's total is no number"))?;
            }
        };
        child.finish(LIMIT)?;
        Ok::<u64, Failure>(total)
    };
    // Other threads of the runtime take some too, now and then: the fewest are the nearest.
    let fewest =
        |times| (0..PLAYS).map(|_| collected(times)).try_fold(u64::MAX, |least, n| Ok::<_, Failure>(least.min(n?)));
    Ok(fewest(MANY)?.saturating_sub(fewest(FEW)?) as f64 / (MANY - FEW) as f64)
}

/// `benches steps PEER --workers 1 ROW TIMES`: what valgrind runs.
pub(crate) fn child(args: Args) -> Result<(), Failure> {
    let (peer, workers, [row, times]) = rounds::child_args(args, ["ROW", "TIMES"])?;
    let row = *ROWS.get(row as usize).ok_or_else(|| Failure::usage("no such row"))?;
    match peer {
        Peer::Tokio => Tokio::run(workers, play::<Tokio>(row, times)),
        Peer::Smol => Smol::run(workers, play::<Smol>(row, times)),
        Peer::Gopark => Gopark::run(workers, play::<Gopark>(row, times)),
        Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }?
    .map_err(Failure::from)
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
        _ => send_in_turn::<R>(times).await?,
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
