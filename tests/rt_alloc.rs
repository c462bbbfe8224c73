//! What the runtime allocates: once for each spawn, never for a wake, a poll or an operation on a socket.
//!
//! One test in this binary, so that nobody else allocates meanwhile. Growth of a queue or of timer storage is counted
//! apart: each measurement runs once before it counts. What a sysmon tick or a late thread allocates would show in one
//! measurement but not in every one, so the least of a few is taken.

#[path = "support/alloc.rs"]
mod alloc;
mod support;

use alloc::{ALLOCATIONS, LIVE};
use futures::task::AtomicWaker;
use gopark::Builder;
use gopark::net::{TcpListener, TcpStream, UdpSocket};
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

/// Allocations of one run of `work`: the least of a few.
async fn allocations<F: Future<Output = ()>>(mut work: impl FnMut() -> F) -> usize {
    work().await;
    let mut least = usize::MAX;
    for _ in 0..5 {
        let before = ALLOCATIONS.load(SeqCst);
        work().await;
        least = least.min(ALLOCATIONS.load(SeqCst) - before);
    }
    least
}

const N: usize = 1000;

async fn spawn_and_join() {
    for _ in 0..N {
        gopark::spawn(async { 1 }).await.unwrap();
    }
}

async fn spawn_and_detach() {
    for _ in 0..N {
        drop(gopark::spawn(async { 1 }));
        gopark::yield_now().await;
    }
}

async fn yields() {
    for _ in 0..N {
        gopark::yield_now().await;
    }
}

/// Two tasks, made by the caller beforehand, that wake each other `N` times.
struct Pair {
    wakers: [AtomicWaker; 2],
    turn: AtomicUsize,
    over: AtomicUsize,
}

impl Pair {
    /// Ends when the other side has taken its turn, and gives it the next.
    async fn turns(&self, me: usize) {
        for _ in 0..N {
            poll_fn(|cx| {
                self.wakers[me].register(cx.waker());
                if self.turn.load(SeqCst) % 2 == me { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            self.turn.fetch_add(1, SeqCst);
            self.wakers[1 - me].wake();
        }
    }
}

async fn round_trips(stream: &TcpStream, size: usize) {
    let (out, mut back) = ([7; 4096], [0; 4096]);
    for _ in 0..N {
        stream.write_all(&out[..size]).await.unwrap();
        stream.read_exact(&mut back[..size]).await.unwrap();
    }
}

/// And none for a timer (trap TM6): dead ones make room for the next.
#[test]
fn one_allocation_per_spawn_and_none_per_wake() {
    let _watchdog = support::watchdog(60);
    for workers in [1, 2] {
        let rt = Builder::new().workers(workers).retake(false).build().unwrap();
        rt.run(async move {
            assert_eq!(allocations(spawn_and_join).await, N, "spawn and join, {workers} workers");
            assert_eq!(allocations(spawn_and_detach).await, N, "spawn and detach, {workers} workers");
            assert_eq!(allocations(yields).await, 0, "yield, {workers} workers");

            // Wakes between tasks.
            let pair = Arc::new(Pair { wakers: Default::default(), turn: 0.into(), over: 0.into() });
            let other = pair.clone();
            let partner = gopark::spawn(async move {
                loop {
                    other.turns(1).await;
                }
            });
            assert_eq!(allocations(|| pair.turns(0)).await, 0, "wake, {workers} workers");
            partner.abort();

            // Sockets.
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let echo = gopark::spawn(async move {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = server.read(&mut buf).await {
                    server.write_all(&buf[..n]).await.unwrap();
                }
            });
            for size in [1, 64, 4096] {
                let count = allocations(|| round_trips(&client, size)).await;
                assert_eq!(count, 0, "read and write of {size} bytes, {workers} workers");
            }
            // Deadlines that come while somebody waits, and edges for which two wait.
            let deadlines = || async {
                for _ in 0..50 {
                    client.set_read_deadline(Some(Instant::now() + Duration::from_micros(50))).unwrap();
                    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::TimedOut);
                }
                client.set_read_deadline(None).unwrap();
            };
            assert_eq!(allocations(deadlines).await, 0, "deadline, {workers} workers");
            // So many that sysmon harvests some.
            let edges = || async {
                for _ in 0..10 * N {
                    let (mut one, mut two) = ([0], [0]);
                    let both = futures::future::join(client.read(&mut one), client.read(&mut two));
                    futures::future::join(both, client.write(b"ab")).await.1.unwrap();
                }
            };
            assert_eq!(allocations(edges).await, 0, "two readers, {workers} workers");
            drop(client);
            echo.await.unwrap();

            // Datagrams. The one allocation is the caller's list.
            let (sender, receiver) =
                (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
            let to = Some(receiver.local_addr().unwrap());
            let datagrams = async || {
                let (mut one, mut two) = ([0; 4], [0; 4]);
                let mut bufs = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
                let mut received = Vec::with_capacity(2);
                for _ in 0..N {
                    received.clear();
                    sender.send_many(&[(IoSlice::new(b"a"), to), (IoSlice::new(b"b"), to)]).await.unwrap();
                    while received.len() < 2 {
                        receiver.recv_many(&mut bufs, &mut received).await.unwrap();
                    }
                }
            };
            assert_eq!(allocations(datagrams).await, 1, "datagrams, {workers} workers");

            // Timers, armed and fired, and armed and cancelled.
            let sleeps = || async {
                for _ in 0..100 {
                    gopark::time::sleep(Duration::from_micros(10)).await;
                }
            };
            assert_eq!(allocations(sleeps).await, 0, "sleep, {workers} workers");
            let timeouts = || async {
                for _ in 0..N {
                    let hour = Duration::from_secs(3600);
                    gopark::time::timeout(hour, gopark::yield_now()).await.unwrap();
                }
            };
            assert_eq!(allocations(timeouts).await, 0, "timeout, {workers} workers");

            // Trap TM6: cancelled timers do not pile up: after a fifty thousand, no more memory than after few.
            timeouts().await;
            let before = LIVE.load(SeqCst);
            for _ in 0..50 {
                timeouts().await;
            }
            let grown = LIVE.load(SeqCst) - before;
            assert!(grown < 64 * 1024, "{grown} bytes more after 50,000 cancelled timers");
        });
        // Wakes from a thread outside.
        let pair = Arc::new(Pair { wakers: Default::default(), turn: 0.into(), over: 0.into() });
        let (inside, outside) = (pair.clone(), pair);
        let task = rt.spawn(async move {
            let count = allocations(|| inside.turns(0)).await;
            inside.over.store(1, SeqCst);
            count
        });
        while outside.over.load(SeqCst) == 0 {
            if outside.turn.load(SeqCst) % 2 == 1 {
                outside.turn.fetch_add(1, SeqCst);
                outside.wakers[0].wake();
            } else {
                std::thread::yield_now();
            }
        }
        assert_eq!(rt.block_on(task).unwrap(), 0, "wake from outside, {workers} workers");
    }
}
