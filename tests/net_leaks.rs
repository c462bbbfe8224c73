//! Connections leave nothing behind, however they end: no descriptor, no task, no timer, no memory.
//!
//! The allocator counts what the process holds, so one test runs at a time.

#[path = "support/alloc.rs"]
mod alloc;
#[path = "support/net.rs"]
mod net;
mod support;

use alloc::{ALLOCATIONS, LIVE};
use futures::StreamExt;
use gopark::net::{TcpListener, TcpStream};
use gopark::time::{sleep, timeout};
use gopark::{Builder, JoinHandle, yield_now};
use net::*;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// splitmix64.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn fork(&mut self) -> Random {
        Random(self.below(u64::MAX))
    }

    /// A moment that is over soon: none, some turns of the scheduler, some microseconds.
    async fn pause(&mut self) {
        match self.below(3) {
            0 => {}
            1 => {
                for _ in 0..self.below(10) {
                    yield_now().await;
                }
            }
            _ => sleep(Duration::from_micros(self.below(150))).await,
        }
    }

    /// Sets a deadline, or not: far away, soon enough to come while the connection lives, or past.
    fn deadline(&mut self, stream: &TcpStream) -> io::Result<()> {
        let at = match self.below(5) {
            0 => NEVER,
            1 => Some(Instant::now() + Duration::from_micros(self.below(300))),
            _ => far(),
        };
        match self.below(3) {
            0 => stream.set_deadline(at),
            1 => stream.set_read_deadline(at),
            _ => stream.set_write_deadline(at),
        }
    }
}

/// Futures that exist of tasks with a connection.
static TASKS: AtomicUsize = AtomicUsize::new(0);

/// What such a future drops last.
struct Alive;

impl Alive {
    fn new() -> Alive {
        TASKS.fetch_add(1, SeqCst);
        Alive
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        TASKS.fetch_sub(1, SeqCst);
    }
}

/// The serving end: echoes, under ever new deadlines, until something ends it.
async fn serve(_alive: Alive, stream: TcpStream, mut random: Random) {
    let mut buf = [0; 2000];
    let _: io::Result<()> = async {
        loop {
            random.deadline(&stream)?;
            match stream.read(&mut buf).await? {
                0 => return Ok(()),
                n => stream.write_all(&buf[..n]).await?,
            }
        }
    }
    .await;
}

/// The dialing end: a few exchanges, to the end.
async fn exchange(stream: &TcpStream, random: &mut Random) -> io::Result<()> {
    let mut buf = [0; 3000];
    for _ in 0..random.below(4) {
        random.deadline(stream)?;
        let n = 1 + random.below(buf.len() as u64) as usize;
        stream.write_all(&buf[..n]).await?;
        if random.below(4) == 0 {
            // Given up, perhaps in the midst of it.
            let _ = timeout(Duration::from_micros(random.below(100)), stream.read(&mut buf)).await;
            return Ok(());
        }
        stream.read_exact(&mut buf[..n]).await?;
    }
    Ok(())
}

/// A task that must not outlive whoever began it: it would keep the connection open.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One connection's life at the dialing end: some exchanges, and an end of one of these kinds.
async fn dial(_alive: Alive, addr: SocketAddr, kind: u64, mut random: Random) {
    let Ok(stream) = TcpStream::connect(addr).await else { return };
    let _ = exchange(&stream, &mut random).await;
    match kind {
        // Without a word: what is unread makes it a reset.
        0 => {}
        1 => stream.set_linger(Some(Duration::ZERO)).unwrap(),
        2 => drop(stream.shutdown([Shutdown::Read, Shutdown::Write, Shutdown::Both][random.below(3) as usize])),
        3 => {
            stream.close();
            stream.close();
        }
        4 => {
            // Others wait on it when it is closed. The last of them closes it, and then says so.
            let shared = Arc::new((stream, Alive::new()));
            let mut waiting = [(); 2].map(|()| {
                let shared = shared.clone();
                AbortOnDrop(gopark::spawn(async move { shared.0.readable().await.unwrap_or(()) }))
            });
            random.pause().await;
            shared.0.close();
            for AbortOnDrop(task) in &mut waiting {
                task.await.unwrap();
            }
        }
        5 => {
            let (read, write) = stream.into_split();
            drop(write);
            let _ = read.read(&mut [0; 8]).await;
        }
        6 => drop(stream.into_std().unwrap()),
        // Forgotten here, aborted there.
        _ => stream.readable().await.unwrap_or(()),
    }
}
const KINDS: u64 = 8;

/// `n` connections, 50 at a time, half of them aborted from outside at random moments: the dialing task, in or after its
/// connect, or the serving one.
async fn round(n: usize, mut random: Random) {
    let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
    let addr = listener.local_addr().unwrap();
    let server = gopark::spawn({
        let (listener, mut random) = (listener.clone(), random.fork());
        async move {
            let mut served = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let task = gopark::spawn(serve(Alive::new(), stream, random.fork()));
                served.push(gopark::spawn(abort_at_random(task, random.below(4) == 0, random.fork())));
                served.retain(|task: &JoinHandle<()>| !task.is_finished());
            }
            for task in served {
                task.await.unwrap();
            }
        }
    });
    let mut under_way = Vec::new();
    for i in 0..n {
        let kind = random.below(KINDS);
        let task = gopark::spawn(dial(Alive::new(), addr, kind, random.fork()));
        // What ends by itself only if the server does is always aborted.
        let abort = kind == KINDS - 1 || random.below(2) == 0;
        under_way.push(abort_at_random(task, abort, random.fork()));
        if under_way.len() == 50 || i == n - 1 {
            futures::future::join_all(under_way.drain(..)).await;
        }
    }
    listener.close();
    server.await.unwrap();
    // All was waited for but those tasks that others aborted when they were dropped.
    while TASKS.load(SeqCst) > 0 {
        yield_now().await;
    }
}

async fn abort_at_random(task: JoinHandle<()>, abort: bool, mut random: Random) {
    if abort {
        random.pause().await;
        random.pause().await;
        task.abort();
    }
    if let Err(error) = task.await {
        assert!(error.is_cancelled());
    }
}

/// Frees what crossbeam keeps of the queues and the threads that are gone.
fn collect_queues() {
    for _ in 0..1000 {
        crossbeam_epoch::pin().flush();
    }
}

/// 10,000 connections in ten rounds, more than half of them aborted. After each round the descriptors are as many as before
/// it, and no task is left; when what grows once has grown, the memory stays as it is, but for what comes and goes (a timer
/// that was cancelled, an emptied queue: they are freed some time later). When the runtime is gone, so is all of it.
///
/// Threads grow, too, where the machine is busy: sysmon starts one for a worker that it takes for stuck, and one for the
/// waker of a future outside. Each brings 6 KiB, and stays for ten seconds. So here is neither.
#[test]
fn ten_thousand_connections() {
    const ROUNDS: usize = 10;
    const EBB_AND_FLOW: isize = 16 << 10;
    let alone = alone(120);
    let seed = std::env::var("GOPARK_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
    // Past the harness, which would keep it for itself if the watchdog ended the process.
    let _ = writeln!(io::stderr(), "net_leaks: GOPARK_SEED={seed}");
    let mut random = Random(seed);
    let warm = runtime(2);
    warm.run(round(100, random.fork()));
    drop(warm);
    collect_queues();
    let before = LIVE.load(SeqCst);
    // The runtime's own: an epoll and an eventfd.
    let others = open_fds();
    let runtime = gopark::Builder::new().workers(2).retake(false).build().unwrap();
    let own = open_fds() - others;
    let mut memory = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        runtime.block_on(runtime.spawn(round(1000, random.fork()))).unwrap();
        alone.check(own);
        collect_queues();
        memory.push(LIVE.load(SeqCst));
    }
    // What doubles when it is full would have doubled in between.
    let (early, late) = (memory[..3].iter().max(), memory[6..].iter().min());
    assert!(late.unwrap() - early.unwrap() < EBB_AND_FLOW, "bytes after each round: {memory:?}");
    drop(memory);
    drop(runtime);
    collect_queues();
    assert_eq!(LIVE.load(SeqCst) - before, 0, "bytes that are left");
}

/// A deadline that moves further into the future is no operation on the timers: it allocates nothing, though so many
/// would not fit into the heap. The counterproof is one that moves nearer.
#[test]
fn deadline_moved_back_and_the_timers() {
    const MOVES: u64 = 10_000;
    let _alone = alone(60);
    // What a thread of the runtime allocates meanwhile, it does not allocate each time: the least of a few.
    let allocations = (0..5).map(|_| {
        runtime(1).block_on(async {
            // Among so many that live, the dead ones of a heap are kept.
            let mut all = Vec::new();
            for _ in 0..100 {
                let (a, b) = pair().await;
                a.set_deadline(far()).unwrap();
                b.set_deadline(far()).unwrap();
                all.push((a, b));
            }
            let (stream, _peer) = pair().await;
            let hour = Instant::now() + Duration::from_secs(3600);
            stream.set_deadline(Some(hour)).unwrap();
            let before = ALLOCATIONS.load(SeqCst);
            for millis in 0..MOVES {
                stream.set_deadline(Some(hour + Duration::from_millis(millis))).unwrap();
            }
            let further = ALLOCATIONS.load(SeqCst);
            for millis in 0..MOVES {
                stream.set_deadline(Some(hour - Duration::from_millis(millis))).unwrap();
            }
            let nearer = ALLOCATIONS.load(SeqCst);
            assert!(nearer > further, "this test shows nothing");
            further - before
        })
    });
    assert_eq!(allocations.min(), Some(0));
}

/// What the slots know of their last waiters holds no runtime that is gone: neither another one's, whose task has waited, nor
/// the socket's own.
#[test]
fn sockets_outlive_the_runtimes_of_those_that_waited() {
    let _alone = alone(60);
    let hook = Arc::new(());
    let with_hook = || {
        let held = hook.clone();
        Builder::new().workers(1).on_thread_start(move || drop(held.clone())).build().unwrap()
    };
    let home = with_hook();
    let mut sockets = Vec::new();
    for ends_by_itself in [true, false] {
        for owner in [true, false] {
            let (a, b) = home.block_on(pair());
            let a = Arc::new(a);
            sockets.push((a.clone(), b));
            let other = (!owner).then(with_hook);
            let runtime = other.as_ref().unwrap_or(&home);
            let (waits, waiting) = channel();
            let task = runtime.spawn(async move {
                let mut buf = [0];
                let mut read = Box::pin(a.read(&mut buf));
                assert!(is_pending(&mut read).await);
                waits.send(()).unwrap();
                if ends_by_itself {
                    assert_eq!(read.await.unwrap(), 1);
                }
            });
            waiting.recv().unwrap();
            home.block_on(sockets.last().unwrap().1.write_all(b"x")).unwrap();
            runtime.block_on(task).unwrap();
            drop(other);
            assert_eq!(Arc::strong_count(&hook), 2, "{ends_by_itself}, {owner}");
        }
    }
    drop(home);
    assert_eq!(Arc::strong_count(&hook), 1);
}

/// A task of some size is freed when it is over, though the socket at which it has waited is open still.
#[test]
fn large_tasks_are_freed_before_their_sockets() {
    const SIZE: usize = 100_000;
    const SOCKETS: usize = 20;
    let _alone = alone(60);
    runtime(1).run(async {
        let mut sockets = Vec::new();
        for _ in 0..SOCKETS {
            let (a, b) = pair().await;
            sockets.push((Arc::new(a), b));
        }
        let before = LIVE.load(SeqCst);
        for (a, b) in &sockets {
            let (a, waits) = (a.clone(), Arc::new(AtomicUsize::new(0)));
            let waiting = waits.clone();
            let task = gopark::spawn(async move {
                let mut large = [0; SIZE];
                let mut read = std::pin::pin!(a.read(&mut large));
                std::future::poll_fn(|cx| {
                    let polled = read.as_mut().poll(cx);
                    waiting.fetch_add(1, SeqCst);
                    polled
                })
                .await
                .unwrap()
            });
            while waits.load(SeqCst) == 0 {
                yield_now().await;
            }
            b.write_all(b"x").await.unwrap();
            assert_eq!(task.await.unwrap(), 1);
        }
        let more = LIVE.load(SeqCst) - before;
        assert!(more < SIZE as isize, "{more} bytes are held");
    });
}

/// The same by a `poll_*` method, which has no end, of one socket on which nothing happens.
#[test]
fn large_tasks_are_freed_before_a_socket_they_polled() {
    const SIZE: usize = 100_000;
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let before = LIVE.load(SeqCst);
        for _ in 0..300 {
            let listener = listener.clone();
            let task = gopark::spawn(async move {
                let large = [0u8; SIZE];
                let mut incoming = listener.incoming();
                std::future::poll_fn(|cx| {
                    assert!(incoming.poll_next_unpin(cx).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                yield_now().await;
                std::hint::black_box(&large);
            });
            task.await.unwrap();
        }
        let more = LIVE.load(SeqCst) - before;
        assert!(more < 50 * SIZE as isize, "{more} bytes are held");
    });
}

fn clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
