//! `benches cores`: what would contend on machines with more cores than this one. A model, with figures of this machine.

use crate::args::Args;
use crate::gopark_peer::Gopark;
use crate::place::Place;
use crate::runtime::Runtime;
use crate::sys::{EPOLLIN, Epoll, EventBuf};
use crate::{Failure, sys};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use std::{hint, thread};

pub(crate) const HELP: &str = "\
benches cores [--work NS] [--near NS] [--dies NS] [--sockets NS] [--pollers N]

What gopark's shared cache lines would do on 2, 8, 64 and 192 cores: a model. Each core does one piece of work after the
other. For each it needs some things that all share, and that serve one core at a time: so many cache lines have to move
to it, and so long it keeps them. Mean value analysis (Reiser and Lavenberg, 1980) of that closed network says how busy
each is and how much all get done; `without` is how much if nobody shared what is the busiest. `full at` is the number of
cores from which on a thing is the limit, at the three prices of a line's move. How many lines move is read off the
source; see docs/performance.md.

Measured here, the fastest of many: the move of a line between two CPUs, one event of 64 in an epoll_wait, epoll_ctl, a
spawn, an accept.

  --work NS      CPU time of a round trip, the kernel's included (7000)
  --near NS      the move of a line on 2 and on 8 cores (as measured)
  --dies NS      the same on 64 cores, between dies of one socket (100)
  --sockets NS   the same on 192, between two sockets (200)
  --pollers N    as if there were N netpollers, with a share of the sockets each (1)

What it does not know: that waiting for a lock moves its line about as well, and what else the kernel shares. So it is
too kind.
";

const CORES: [usize; 4] = [2, 8, 64, 192];
/// What the netpoller may harvest at once.
const BATCH: usize = 64;
/// Of so many tasks that an M runs it comes by one itself, by stealing or from the network: a guess.
const RUN: f64 = 16.0;

/// Something that serves one core at a time, for one piece of work.
#[derive(Clone)]
struct Use {
    what: &'static str,
    /// Cache lines that come from other cores.
    moves: f64,
    /// What it takes beside, in nanoseconds.
    holds: f64,
}

/// A piece of work: its CPU time on a single core, in nanoseconds, and what is shared of it.
struct Work {
    name: &'static str,
    cpu: f64,
    uses: Vec<Use>,
}

/// Nanoseconds.
struct Measured {
    transfer: f64,
    event: f64,
    control: f64,
    spawn: f64,
    accept: f64,
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let mut nanos = |name| args.number(name, 1.0..=1e9);
    let (work, near, dies, sockets) = (nanos("--work")?, nanos("--near")?, nanos("--dies")?, nanos("--sockets")?);
    let (work, dies, sockets) = (work.unwrap_or(7000.0), dies.unwrap_or(100.0), sockets.unwrap_or(200.0));
    let pollers = nanos("--pollers")?.unwrap_or(1.0);
    args.finish()?;
    let measured = measure()?;
    let Measured { transfer, event, control, spawn, accept } = measured;
    println!(
        "measured: a line's move {transfer:.0} ns, an event {event:.0} ns, epoll_ctl {control:.0} ns, \
         a spawn {spawn:.0} ns, accept and close {accept:.0} ns"
    );
    let near = near.unwrap_or(transfer);
    println!(
        "taken: a line's move {near:.0} ns on 2 and 8 cores, {dies:.0} ns on 64, {sockets:.0} ns on 192; \
         a round trip {work:.0} ns\n"
    );
    let moves = [near, near, dies, sockets];
    println!("{:<36}{}    full at", "how busy, on so many cores", CORES.map(|n| format!("{n:>8}")).concat());
    for work in works(&measured, work, pollers) {
        let (speedups, busy) = work.on_all(moves);
        println!("{:<36}{}", format!("{}: times as fast", work.name), row(speedups, ""));
        for (index, used) in work.uses.iter().enumerate() {
            let full = [near, dies, sockets].map(|transfer| format!("{:>7.0}", work.cpu / used.demand(transfer)));
            let busy = row(busy.each_ref().map(|busy| busy[index] * 100.0), "%");
            println!("  {:<34}{busy}{}", used.what, full.concat());
        }
        let (without, busiest) = work.without_busiest(&busy[CORES.len() - 1]);
        println!("  {:<34}{}", format!("without {busiest}"), row(without.on_all(moves).0, ""));
    }
    Ok(())
}

fn row(figures: [f64; CORES.len()], unit: &str) -> String {
    figures.map(|figure| format!("{:>8}", format!("{figure:.1}{unit}"))).concat()
}

/// What is shared, by the source of gopark and of Linux 6.
fn works(measured: &Measured, round_trip: f64, pollers: f64) -> [Work; 4] {
    let used = |what, moves, holds| Use { what, moves, holds };
    // An event: its slot, the task's header, and the kernel's item and socket were last written where the task ran.
    // What the edge does takes some 100 instructions.
    let poll = |events: f64, controls: f64| {
        let holds = events * (measured.event + 30.0) + controls * measured.control;
        used("the poll (epoll's mutex)", 4.0 * events / pollers, holds / pollers)
    };
    // Whoever delivers a packet takes the lock of the ready list and appends to it.
    let ready = |events: f64| used("epoll's ready list", 2.0 * events / pollers, 20.0 * events / pollers);
    // An M that starts to look about and stops again.
    let idle = |tasks: f64| used("Idle::word", 2.0 * tasks / RUN, 0.0);
    // An M takes for a new task what one that was freed leaves it, and lets go of so many at once.
    let sched = |spawns_outside: f64| used("the count of Arc<Sched>", spawns_outside + 1.0 / 256.0, 0.0);
    [
        Work { name: "round trip", cpu: round_trip, uses: vec![poll(1.0, 0.0), ready(1.0), idle(1.0)] },
        Work {
            name: "spawn inside, of 1 us",
            cpu: measured.spawn + 1000.0,
            uses: vec![sched(0.0), idle(1.0), used("TaskId::next", 1.0 / 64.0, 0.0)],
        },
        Work {
            name: "spawn outside, of 1 us",
            cpu: measured.spawn + 1000.0,
            // A push: the queue, and the task before it; a pop by batches: the queue, and each task.
            uses: vec![sched(1.0), used("Global::list", 3.0 + 1.0 / RUN, 20.0), idle(1.0)],
        },
        Work {
            name: "connection, one round trip",
            cpu: round_trip + measured.accept + measured.spawn + 2.0 * measured.control,
            uses: vec![
                poll(2.0, 2.0),
                ready(2.0),
                idle(2.0),
                sched(0.0),
                used("the count of Arc<Netpoll>", 2.0, 0.0),
                used("Table::alloc", 4.0, 100.0),
            ],
        },
    ]
}

impl Use {
    /// How long it serves one core.
    fn demand(&self, transfer: f64) -> f64 {
        self.moves * transfer + self.holds
    }
}

impl Work {
    /// How much so many cores get done in a nanosecond, and the share of time in which each thing is used.
    fn on(&self, cores: usize, transfer: f64) -> (f64, Vec<f64>) {
        let demands: Vec<f64> = self.uses.iter().map(|used| used.demand(transfer)).collect();
        let alone = self.cpu - self.uses.iter().map(|used| used.holds).sum::<f64>();
        let mut queues = vec![0.0; demands.len()];
        let mut rate = 0.0;
        for n in 1..=cores {
            // Who comes finds the queue as it would be without him.
            let times: Vec<f64> = demands.iter().zip(&queues).map(|(demand, queue)| demand * (1.0 + queue)).collect();
            rate = n as f64 / (alone + times.iter().sum::<f64>());
            queues = times.iter().map(|time| rate * time).collect();
        }
        (rate, demands.iter().map(|demand| rate * demand).collect())
    }

    /// How many times as fast as one core, and how busy each thing is.
    fn on_all(&self, moves: [f64; CORES.len()]) -> ([f64; CORES.len()], [Vec<f64>; CORES.len()]) {
        let runs: [_; CORES.len()] = std::array::from_fn(|at| self.on(CORES[at], moves[at]));
        (runs.each_ref().map(|(rate, _)| rate * self.cpu), runs.map(|(_, busy)| busy))
    }

    /// As if what is the busiest were shared by nobody.
    fn without_busiest(&self, busy: &[f64]) -> (Work, &'static str) {
        let busiest = (0..busy.len()).max_by(|&a, &b| busy[a].total_cmp(&busy[b])).expect("something is shared");
        let mut uses = self.uses.clone();
        let used = uses.remove(busiest);
        (Work { name: self.name, cpu: self.cpu, uses }, used.what)
    }
}

fn measure() -> Result<Measured, Failure> {
    let spawn = Gopark::run(1, async {
        let mut fastest = f64::MAX;
        for _ in 0..50 {
            let begin = Instant::now();
            let tasks: Vec<_> = (0..1000).map(|_| Gopark::spawn(async {})).collect();
            for task in tasks {
                task.await;
            }
            fastest = fastest.min(begin.elapsed().as_nanos() as f64 / 1000.0);
        }
        fastest
    })?;
    let (event, control, accept) = network()?;
    Ok(Measured { transfer: transfer()?, event, control, spawn, accept })
}

/// One line that two threads write in turn, each on a CPU of its own.
fn transfer() -> Result<f64, Failure> {
    #[repr(align(128))]
    struct Line(AtomicU64);
    const TURNS: u64 = 500;
    let place = Place::pinned()?;
    let take_turns = |line: &Line, me: u64| {
        for turn in 0..TURNS {
            let mine = 2 * turn + me;
            while line.0.compare_exchange_weak(mine, mine + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                hint::spin_loop();
            }
        }
        Ok(())
    };
    let mut fastest = f64::MAX;
    for _ in 0..500 {
        let line = Line(AtomicU64::new(0));
        let time = thread::scope(|scope| {
            let there = scope.spawn(|| place.on_server_cpus(|| take_turns(&line, 0)));
            let time = place.on_client_cpus(|| {
                // Once both are at it.
                while line.0.load(Ordering::Relaxed) == 0 {
                    hint::spin_loop();
                }
                let begin = Instant::now();
                take_turns(&line, 1)?;
                Ok(begin.elapsed().as_nanos() as f64)
            });
            there.join().expect("it does not panic")?;
            time
        })?;
        fastest = fastest.min(time / (2 * TURNS) as f64);
    }
    Ok(fastest)
}

/// An event of a full batch, an epoll_ctl, and an accept with its close.
fn network() -> io::Result<(f64, f64, f64)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..BATCH {
        let here = TcpStream::connect(address)?;
        here.set_nodelay(true)?;
        pairs.push((here, listener.accept()?.0));
    }
    let (mut event, mut control, mut accept) = (f64::MAX, f64::MAX, f64::MAX);
    let mut events = EventBuf::new(BATCH);
    for _ in 0..200 {
        let epoll = Epoll::new()?;
        let begin = Instant::now();
        for (_, there) in &pairs {
            epoll.add(there, EPOLLIN | libc::EPOLLET, 0)?;
        }
        control = control.min(begin.elapsed().as_nanos() as f64 / BATCH as f64);
        for (here, _) in &mut pairs {
            here.write_all(&[0])?;
        }
        let begin = Instant::now();
        let ready = epoll.wait(&mut events, 0)?.count();
        let time = begin.elapsed().as_nanos() as f64 / ready.max(1) as f64;
        if ready == BATCH {
            event = event.min(time);
        }
        for (_, there) in &mut pairs {
            there.read_exact(&mut [0])?;
        }
        let here = TcpStream::connect(address)?;
        let begin = Instant::now();
        drop(sys::accept(&listener)?);
        accept = accept.min(begin.elapsed().as_nanos() as f64);
        drop(here);
    }
    Ok((event, control, accept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_used_bounds_the_rate() {
        let work = |moves| Work { name: "", cpu: 900.0, uses: vec![Use { what: "", moves, holds: 0.0 }] };
        let (rate, busy) = work(1.0).on(1, 100.0);
        assert_eq!((rate, busy[0]), (0.001, 0.1));
        let (rate, busy) = work(1.0).on(192, 100.0);
        assert!((0.0099..=0.01).contains(&rate) && (0.99..=1.0).contains(&busy[0]));
        assert_eq!(work(0.0).on(192, 100.0).0, 192.0 / 900.0);
    }
}
