//! `benches deadlines`: what it costs to say until when a read may wait.

use crate::args::Args;
use crate::child::Proc;
use crate::gopark_peer::Gopark;
use crate::peer::{Peer, Peers};
use crate::runtime::Runtime;
use crate::stats::Spread;
use crate::tokio_peer::Tokio;
use crate::{Failure, go, sys};
use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

pub(crate) const HELP: &str = "\
benches deadlines [--quick] [--rounds K] [--peers A,..]

What a deadline costs that never passes, in a process of its own for each peer and with one worker:

  set    moving the read deadline of a connection to 30 s from now, a million times, each beyond one reading of the
         clock. For tokio, which has no deadlines: a `timeout` of 30 s, created, polled and dropped.
  read   two tasks send 64 bytes to and fro, and every read has 30 s: the process's CPU time for each read beyond what
         it is without. Blocks of 2,000 round trips with and without take turns; the median of their differences.

K rounds (5), in rotating order; shown are medians and, in parentheses, quartiles. go takes part where it is in PATH.

  --quick   one short round

What it does not measure: deadlines that pass, many connections (the timers of tokio and Go then meet in one place).
";

pub(crate) const AHEAD: Duration = Duration::from_secs(30);
const CHILD_LIMIT: Duration = Duration::from_secs(120);
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
    let rounds = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { 5 });
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    args.finish()?;

    let plan = match quick {
        true => Plan { sets: 10_000, blocks: 4, trips: 100 },
        false => Plan { sets: 1_000_000, blocks: 40, trips: 2_000 },
    };
    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Tokio, Peer::Gopark]).and_go()).runtimes_only()?;
    let go = peers.contains(&Peer::Go).then(|| go::Program::build(go::DEADLINES)).transpose()?;
    let mut samples = vec![Vec::new(); peers.len()];
    for round in 0..rounds {
        for turn in 0..peers.len() {
            let index = (turn + round) % peers.len();
            let numbers = [plan.sets, plan.blocks, plan.trips].map(|n| n.to_string());
            let [sets, blocks, trips] = &numbers;
            let child = match &go {
                Some(go) if peers[index] == Peer::Go => Proc::start("go", go.command(1).args(&numbers)),
                _ => Proc::start_self(&["deadline", peers[index].name(), sets, blocks, trips]),
            }?;
            samples[index].push(read(child)?);
        }
    }

    println!("a deadline that never passes, in nanoseconds");
    println!("  {:<8}{}", "", COLUMNS.map(|name| format!("{name:<24}")).concat().trim_end());
    for (peer, samples) in peers.iter().zip(samples) {
        let columns = std::array::from_fn::<_, { COLUMNS.len() }, _>(|column| {
            let spread = Spread::of(samples.iter().map(|sample| sample[column])).expect("a round at least");
            format!("{:<24}", spread.show(|ns| format!("{ns:.1}")))
        });
        println!("  {:<8}{}", peer.name(), columns.concat().trim_end());
    }
    Ok(())
}

fn read(mut child: Proc) -> Result<[f64; COLUMNS.len()], Failure> {
    let line = child.line(CHILD_LIMIT)?;
    child.finish(CHILD_LIMIT)?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| Failure::run(format!("a child with deadlines said {line:?}")))
}

/// `benches deadline PEER SETS BLOCKS TRIPS`: one process, which prints one line.
pub(crate) fn child(mut args: Args) -> Result<(), Failure> {
    let peer: Peer = args.word("a peer")?.parse().map_err(|()| Failure::usage("no such peer"))?;
    let mut number = |wants| args.word(wants)?.parse::<u64>().map_err(|_| Failure::usage(wants));
    let plan = Plan { sets: number("SETS")?, blocks: number("BLOCKS")?, trips: number("TRIPS")? };
    args.finish()?;
    let numbers = match peer {
        Peer::Tokio => Tokio::run(1, measure::<Tokio>(plan)),
        Peer::Gopark => Gopark::run(1, measure::<Gopark>(plan)),
        Peer::Raw | Peer::Go => return Err(Failure::usage("no runtime of this program")),
    }??;
    println!("{}", numbers.map(|n| n.to_string()).join(" "));
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
