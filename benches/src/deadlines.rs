//! `benches deadlines`: what it costs to say until when a read may wait.

use crate::args::Args;
use crate::gopark_peer::Gopark;
use crate::peer::Peer;
use crate::rounds::{Job, Rounds};
use crate::runtime::Runtime;
use crate::smol_peer::Smol;
use crate::stats::Spread;
use crate::tokio_peer::Tokio;
use crate::{Failure, go, rounds, sys};
use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
benches deadlines [--quick] [--rounds K] [--peers A,..]

What a deadline costs that never passes, in a process of its own for each peer and with one worker:

  set    moving the read deadline of a connection to 30 s from now, a million times, each beyond one reading of the
         clock. For tokio and smol, which have no deadlines: a `timeout` of 30 s, created, polled and dropped.
  read   two tasks send 64 bytes to and fro, and every read has 30 s: the process's CPU time for each read beyond what
         it is without. Blocks of 2,000 round trips with and without take turns; the median of their differences.

K rounds (5), in rotating order; shown are medians and, in parentheses, quartiles. go takes part where it is in PATH.

  --quick   one short round

What it does not measure: deadlines that pass, many connections (the timers of tokio and Go then meet in one place).
";

pub(crate) const AHEAD: Duration = Duration::from_secs(30);
/// So many bytes each way.
const MESSAGE: usize = 64;

/// What a child finds out, in nanoseconds, in the order in which it prints them.
const COLUMNS: [&str; 3] = ["clock", "set", "read"];

/// How much of each a child does.
#[derive(Clone, Copy)]
struct Plan {
    sets: u64,
    blocks: u64,
    trips: u64,
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = Rounds::options(&mut args, quick)?;
    args.finish()?;

    let Plan { sets, blocks, trips } = match quick {
        true => Plan { sets: 10_000, blocks: 4, trips: 100 },
        false => Plan { sets: 1_000_000, blocks: 40, trips: 2_000 },
    };
    let job =
        Job { name: "deadline", bench: "deadlines", workers: 1, numbers: &[sets, blocks, trips], go: go::DEADLINES };
    let figures = rounds.run(&job)?;
    println!("a deadline that never passes, in nanoseconds");
    figures.print(COLUMNS, 24, |ns| format!("{ns:.1}"));
    Ok(())
}

/// `benches deadline PEER --workers N SETS BLOCKS TRIPS`: one process, which prints one line.
pub(crate) fn child(args: Args) -> Result<(), Failure> {
    let (peer, workers, [sets, blocks, trips]) = rounds::child_args(args, ["SETS", "BLOCKS", "TRIPS"])?;
    let plan = Plan { sets, blocks, trips };
    rounds::tell(match peer {
        Peer::Tokio => Tokio::run(workers, measure::<Tokio>(plan)),
        Peer::Smol => Smol::run(workers, measure::<Smol>(plan)),
        Peer::Gopark => Gopark::run(workers, measure::<Gopark>(plan)),
        Peer::Raw | Peer::May | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }??);
    Ok(())
}

async fn measure<R: Runtime>(plan: Plan) -> io::Result<[f64; COLUMNS.len()]> {
    let clock = each(plan.sets, || _ = black_box(Instant::now()));
    let (mut left, mut right) = pair::<R>().await?;
    R::set_read_deadline(&mut left, AHEAD)?;
    let set = {
        let start = Instant::now();
        for _ in 0..plan.sets {
            R::set_read_deadline(&mut left, AHEAD)?;
        }
        start.elapsed().as_nanos() as f64 / plan.sets as f64
    };
    let mut differences = Vec::new();
    for _ in 0..plan.blocks {
        let mut cpu = [0.0; 2];
        for (guarded, cpu) in [false, true].into_iter().zip(&mut cpu) {
            let before = sys::own_cpu();
            let other = R::spawn(async move {
                let result = ping_pong::<R>(&mut right, plan.trips, guarded, false).await;
                result.map(|()| right)
            });
            ping_pong::<R>(&mut left, plan.trips, guarded, true).await?;
            right = other.await?;
            *cpu = (sys::own_cpu() - before) as f64;
        }
        // Each message of a round trip is one read.
        differences.push((cpu[1] - cpu[0]) / (2 * plan.trips) as f64);
    }
    let read = Spread::of(differences).map_or(0.0, |spread| spread.median);
    Ok([clock, set - clock, read])
}

fn each(times: u64, mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..times).for_each(|_| f());
    start.elapsed().as_nanos() as f64 / times as f64
}

async fn pair<R: Runtime>() -> io::Result<(R::Stream, R::Stream)> {
    let listener = R::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let left = R::from_std(std::net::TcpStream::connect(R::local_addr(&listener)?)?)?;
    Ok((left, R::accept(&listener).await?))
}

async fn ping_pong<R: Runtime>(stream: &mut R::Stream, trips: u64, guarded: bool, first: bool) -> io::Result<()> {
    let mut buf = [0; MESSAGE];
    for _ in 0..trips {
        if first {
            R::write_all(stream, &buf).await?;
        }
        let mut have = 0;
        while have < MESSAGE {
            have += match guarded {
                true => R::read_within(stream, &mut buf[have..], AHEAD).await?,
                false => R::read(stream, &mut buf[have..]).await?,
            };
        }
        if !first {
            R::write_all(stream, &buf).await?;
        }
    }
    Ok(())
}
