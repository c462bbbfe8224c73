//! Many who wait on one socket: whom an edge wakes, who has the next turn, and what others' wakers may do.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::future::{FutureExt, join_all, select_all};
use futures::io::AsyncRead;
use gopark::net::{TcpListener, TcpStream};
use gopark::yield_now;
use net::*;
use std::io::{self, ErrorKind, Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

type Reading = Pin<Box<dyn Future<Output = io::Result<u8>> + Send>>;

/// A read of one byte, as a future that owns what it needs.
fn read_one(stream: &'static TcpStream) -> Reading {
    Box::pin(async move {
        let mut buf = [0];
        stream.read_exact(&mut buf).await.map(|()| buf[0])
    })
}

fn ready(poll: Poll<io::Result<u8>>) -> Option<u8> {
    match poll {
        Poll::Ready(result) => Some(result.unwrap()),
        Poll::Pending => None,
    }
}

/// Trap P21: one edge, many readers; each gets its byte.
#[test]
fn many_readers_and_one_edge() {
    let _alone = alone(20);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let (stream, peer) = std_pair().await;
            let stream = leak(stream);
            let armed = Arc::new(AtomicUsize::new(0));
            let readers: Vec<_> = (0..64)
                .map(|_| {
                    let armed = armed.clone();
                    gopark::spawn(async move {
                        let mut read = read_one(stream);
                        assert!(is_pending(&mut read).await);
                        armed.fetch_add(1, Ordering::Relaxed);
                        read.await.unwrap()
                    })
                })
                .collect();
            while armed.load(Ordering::Relaxed) < 64 {
                yield_now().await;
            }
            let sent: Vec<u8> = (0..64).collect();
            (&peer).write_all(&sent).unwrap();
            let mut got: Vec<_> = join_all(readers).await.into_iter().map(Result::unwrap).collect();
            got.sort_unstable();
            assert_eq!(got, sent);
        });
    }
}

/// Trap P21: many that only observe; one edge is news for all of them.
#[test]
fn many_observers_and_one_edge() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let mut all: Vec<_> = (0..64).map(|_| Box::pin(stream.readable())).collect();
        for readable in &mut all {
            assert!(is_pending(readable).await);
        }
        (&peer).write_all(b"x").unwrap();
        join_all(all).await.into_iter().for_each(Result::unwrap);
    });
}

/// Trap P21, the other direction; and readers wait beside the writers.
#[test]
fn many_writers_and_one_edge() {
    let _alone = alone(20);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let (stream, mut peer) = std_pair().await;
            let stream = leak(stream);
            let filled = fill(stream).await;
            let armed = Arc::new(AtomicUsize::new(0));
            let writers: Vec<_> = (0..64u8)
                .map(|i| {
                    let armed = armed.clone();
                    gopark::spawn(async move {
                        let byte = [i];
                        let mut write = Box::pin(stream.write(&byte));
                        assert!(is_pending(&mut write).await);
                        armed.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(write.await.unwrap(), 1);
                    })
                })
                .collect();
            let readers: Vec<_> = (0..8).map(|_| gopark::spawn(read_one(stream))).collect();
            while armed.load(Ordering::Relaxed) < 64 {
                yield_now().await;
            }
            let mut got = vec![0; filled];
            peer.read_exact(&mut got).unwrap();
            join_all(writers).await.into_iter().for_each(Result::unwrap);
            let mut got = [0; 64];
            peer.read_exact(&mut got).unwrap();
            got.sort_unstable();
            assert!(got.iter().copied().eq(0..64));
            peer.write_all(&[1; 8]).unwrap();
            join_all(readers).await.into_iter().for_each(|r| assert_eq!(r.unwrap().unwrap(), 1));
        });
    }
}

/// The first to wait is the first to be woken, and alone: an edge is no herd.
#[test]
fn readers_in_order() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let mut readers: Vec<_> = (0..5).map(|_| (read_one(stream), Count::new())).collect();
    for (read, (_, waker)) in &mut readers {
        assert!(ready(poll(read, waker)).is_none());
    }
    for i in 0..5 {
        peer.write_all(&[i]).unwrap();
        let (read, (count, waker)) = &mut readers[i as usize];
        count.wait(1);
        assert_eq!(ready(poll(read, waker)), Some(i));
    }
    // The last turns may still have been handed on, but never a turn to all.
    assert!(readers.iter().map(|(_, (count, _))| count.wakes()).sum::<usize>() <= 10);
}

/// Trap P22: the one that was woken is dropped before it reads; the next has its turn.
#[test]
fn woken_then_dropped() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let (first, first_waker) = Count::new();
    let (second, second_waker) = Count::new();
    let (mut a, mut b) = (read_one(stream), read_one(stream));
    assert!(poll(&mut a, &first_waker).is_pending() && poll(&mut b, &second_waker).is_pending());
    peer.write_all(b"x").unwrap();
    first.wait(1);
    drop(a);
    second.wait(1);
    assert_eq!(ready(poll(&mut b, &second_waker)), Some(b'x'));
}

/// Trap P22 on workers: tasks are aborted at all moments, and no byte waits for nobody.
#[test]
fn woken_and_aborted() {
    let _alone = alone(30);
    runtime(2).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        for i in 0..500u32 {
            let victim = gopark::spawn(async { stream.readable().await.unwrap() });
            let heir = gopark::spawn(read_one(stream));
            for _ in 0..i % 5 {
                yield_now().await;
            }
            (&peer).write_all(b"x").unwrap();
            for _ in 0..i % 3 {
                yield_now().await;
            }
            victim.abort();
            assert_eq!(heir.await.unwrap().unwrap(), b'x');
            let _ = victim.await;
        }
    });
}

/// Trap P23: a future that was polled once and is kept, but never polled again, keeps nobody else waiting. It was first.
#[test]
fn forgotten_first_and_task_second() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        let mut forgotten = read_one(stream);
        assert!(is_pending(&mut forgotten).await);
        let other = gopark::spawn(read_one(stream));
        yield_now().await;
        (&peer).write_all(b"x").unwrap();
        assert_eq!(other.await.unwrap().unwrap(), b'x');
        // It was not harmed.
        (&peer).write_all(b"y").unwrap();
        assert_eq!(forgotten.await.unwrap(), b'y');
    });
}

/// Trap P23, within one task: `select` polls one branch on.
#[test]
fn forgotten_in_the_same_task() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        let (mut forgotten, mut read) = (read_one(stream), read_one(stream));
        assert!(is_pending(&mut forgotten).await);
        assert!(is_pending(&mut read).await);
        (&peer).write_all(b"x").unwrap();
        assert_eq!(read.await.unwrap(), b'x');
        std::mem::forget(forgotten);
    });
}

/// Trap P23 with several of them, all before the one that counts, on a machine that is otherwise asleep.
#[test]
fn several_forgotten_and_a_foreign_waker() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    for _ in 0..5 {
        let mut forgotten = read_one(stream);
        assert!(poll(&mut forgotten, &noop()).is_pending());
        std::mem::forget(forgotten);
    }
    let (count, waker) = Count::new();
    let mut read = read_one(stream);
    assert!(poll(&mut read, &waker).is_pending());
    peer.write_all(b"x").unwrap();
    count.wait(1);
    assert_eq!(ready(poll(&mut read, &waker)), Some(b'x'));
}

/// Trap P23: those who forgot are tasks, and gone.
#[test]
fn several_forgotten_by_tasks_that_ended() {
    let _alone = alone(20);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let (stream, peer) = std_pair().await;
            let stream = leak(stream);
            for _ in 0..5 {
                let task = gopark::spawn(async {
                    let mut forgotten = read_one(stream);
                    assert!(is_pending(&mut forgotten).await);
                    std::mem::forget(forgotten);
                });
                task.await.unwrap();
            }
            let mut read = read_one(stream);
            assert!(is_pending(&mut read).await);
            (&peer).write_all(b"x").unwrap();
            assert_eq!(read.await.unwrap(), b'x');
        });
    }
}

/// Trap P23 on a machine that never falls asleep: a task yields for ever on the only worker.
#[test]
fn forgotten_beside_a_busy_task() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        for _ in 0..50 {
            let mut forgotten = read_one(stream);
            assert!(poll(&mut forgotten, &noop()).is_pending());
            std::mem::forget(forgotten);
        }
        let done = Arc::new(AtomicBool::new(false));
        let busy = gopark::spawn({
            let done = done.clone();
            async move {
                while !done.load(Ordering::Relaxed) {
                    yield_now().await;
                }
            }
        });
        let mut read = read_one(stream);
        assert!(is_pending(&mut read).await);
        (&peer).write_all(b"x").unwrap();
        assert_eq!(read.await.unwrap(), b'x');
        done.store(true, Ordering::Relaxed);
        busy.await.unwrap();
    });
}

/// Trap P23: the forgotten one has been chosen already when the next comes.
#[test]
fn forgotten_chosen_then_newcomer() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let (count, waker) = Count::new();
    let mut forgotten = read_one(stream);
    assert!(poll(&mut forgotten, &waker).is_pending());
    peer.write_all(b"x").unwrap();
    count.wait(1);
    let mut newcomer = read_one(stream);
    assert_eq!(ready(poll(&mut newcomer, &noop())), Some(b'x'));
    std::mem::forget(forgotten);
}

/// Trap P23: a read that leaves something hands the turn to a forgotten one, from a thread that is no worker's.
#[test]
fn left_over_and_forgotten_and_waiting() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let (first, first_waker) = Count::new();
    let (last, last_waker) = Count::new();
    let mut reader = read_one(stream);
    assert!(poll(&mut reader, &first_waker).is_pending());
    for _ in 0..2 {
        let mut forgotten = read_one(stream);
        assert!(poll(&mut forgotten, &noop()).is_pending());
        std::mem::forget(forgotten);
    }
    let mut waiting = read_one(stream);
    assert!(poll(&mut waiting, &last_waker).is_pending());
    peer.write_all(b"xy").unwrap();
    first.wait(1);
    let one = ready(poll(&mut reader, &first_waker)).or_else(|| ready(poll(&mut reader, &first_waker)));
    last.wait(1);
    let two = ready(poll(&mut waiting, &last_waker));
    assert_eq!((one, two), (Some(b'x'), Some(b'y')));
}

/// Trap P23 in the queue of `write_all`, where no edge ever comes: the turn is handed on by a thread that is no worker.
#[test]
fn forgotten_among_write_alls() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let filled = runtime.block_on(fill(stream));
    let mut holder = Box::pin(stream.write_all(b"holds the lock"));
    assert!(poll(&mut holder, &noop()).is_pending());
    for _ in 0..3 {
        let mut forgotten = Box::pin(stream.write_all(b"never"));
        assert!(poll(&mut forgotten, &noop()).is_pending());
        std::mem::forget(forgotten);
    }
    let (count, waker) = Count::new();
    let mut last = Box::pin(stream.write_all(b"last"));
    assert!(poll(&mut last, &waker).is_pending());
    drop(holder);
    count.wait(1);
    peer.read_exact(&mut vec![0; filled]).unwrap();
    loop {
        let wakes = count.wakes();
        if poll(&mut last, &waker).is_ready() {
            break;
        }
        count.wait(wakes + 1);
    }
    let mut got = [0; 4];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"last");
}

/// Trap P23 for writes and for accepts.
#[test]
fn forgotten_write_and_forgotten_accept() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let filled = runtime.block_on(fill(stream));
    for _ in 0..3 {
        let mut forgotten = Box::pin(stream.write(b"never"));
        assert!(poll(&mut forgotten, &noop()).is_pending());
        std::mem::forget(forgotten);
    }
    let (count, waker) = Count::new();
    let mut write = Box::pin(stream.write(b"w"));
    assert!(poll(&mut write, &waker).is_pending());
    peer.read_exact(&mut vec![0; filled]).unwrap();
    count.wait(1);
    assert!(matches!(poll(&mut write, &waker), Poll::Ready(Ok(1))));

    let listener = leak(runtime.block_on(TcpListener::bind(ANY)).unwrap());
    for _ in 0..3 {
        let mut forgotten = Box::pin(listener.accept());
        assert!(poll(&mut forgotten, &noop()).is_pending());
        std::mem::forget(forgotten);
    }
    let (count, waker) = Count::new();
    let mut accept = Box::pin(listener.accept());
    assert!(poll(&mut accept, &waker).is_pending());
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    count.wait(1);
    let _enter = runtime.enter();
    match poll(&mut accept, &waker) {
        Poll::Ready(Ok((_, addr))) => assert_eq!(addr, peer.local_addr().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// `poll_*` methods have no end, so each distinct waker is kept, and an edge wakes all of them.
#[test]
fn distinct_wakers_and_one_edge() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = &stream;
    let wakers: Vec<_> = (0..10).map(|_| Count::new()).collect();
    let poll_read = |waker: &Waker| {
        let mut reader = stream;
        Pin::new(&mut reader).poll_read(&mut Context::from_waker(waker), &mut [0; 4])
    };
    for _ in 0..3 {
        for (_, waker) in &wakers {
            assert!(poll_read(waker).is_pending());
        }
    }
    // An operation waits behind them, and is no worse off.
    let (op, op_waker) = Count::new();
    let mut buf = [0; 4];
    let mut read = Box::pin(stream.peek(&mut buf));
    assert!(poll(&mut read, &op_waker).is_pending());
    let (behind, behind_waker) = Count::new();
    assert!(poll_read(&behind_waker).is_pending());
    peer.write_all(b"abc").unwrap();
    for (count, _) in &wakers {
        count.wait(1);
    }
    behind.wait(1);
    op.wait(1);
    assert!(matches!(poll(&mut read, &op_waker), Poll::Ready(Ok(3))));
    assert!(matches!(poll_read(&wakers[0].1), Poll::Ready(Ok(3))));
    assert!(poll_read(&wakers[1].1).is_pending());
    // A waker that was polled with three times was kept once.
    assert!(wakers.iter().all(|(count, _)| count.wakes() <= 2));

    let listener = runtime.block_on(TcpListener::bind(ANY)).unwrap();
    for (_, waker) in &wakers {
        assert!(listener.poll_accept(&mut Context::from_waker(waker)).is_pending());
    }
    let before: Vec<_> = wakers.iter().map(|(count, _)| count.wakes()).collect();
    let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for ((count, _), before) in wakers.iter().zip(before) {
        count.wait(before + 1);
    }
}

/// Trap P21: each connection goes to exactly one of many acceptors, and each acceptor that waits gets one in the end.
#[test]
fn many_acceptors() {
    let _alone = alone(20);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let listener = leak(TcpListener::bind(ANY).await.unwrap());
            let addr = listener.local_addr().unwrap();
            let acceptors: Vec<_> =
                (0..50).map(|_| gopark::spawn(async { listener.accept().await.unwrap().1 })).collect();
            yield_now().await;
            let clients: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
            let mut accepted: Vec<_> = join_all(acceptors).await.into_iter().map(Result::unwrap).collect();
            let mut connected: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
            accepted.sort_unstable();
            connected.sort_unstable();
            assert_eq!(accepted, connected);
        });
    }
}

/// Acceptors are served in the order in which they came.
#[test]
fn acceptors_in_order() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let _enter = runtime.enter();
    let listener = runtime.block_on(TcpListener::bind(ANY)).unwrap();
    let mut acceptors: Vec<_> = (0..5).map(|_| (Box::pin(listener.accept()), Count::new())).collect();
    for (accept, (_, waker)) in &mut acceptors {
        assert!(poll(accept, waker).is_pending());
    }
    for (accept, (count, waker)) in &mut acceptors {
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        count.wait(1);
        match poll(accept, waker) {
            Poll::Ready(Ok((_, addr))) => assert_eq!(addr, client.local_addr().unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

/// From the first byte to the last, no other `write_all` writes in between, however often the buffer is full.
#[test]
fn write_all_and_write_all() {
    let _alone = alone(30);
    const LEN: usize = 1 << 20;
    for workers in [1, 2] {
        runtime(workers).run(async {
            let (stream, reader) = pair().await;
            let stream = leak(stream);
            let writers: Vec<_> = (0..12u8)
                .map(|i| gopark::spawn(async move { stream.write_all(&vec![i; LEN]).await.unwrap() }))
                .collect();
            let mut seen = [false; 12];
            let mut buf = vec![0; 30_000];
            for _ in 0..12 {
                reader.read_exact(&mut buf[..1]).await.unwrap();
                let (who, mut left) = (buf[0], LEN - 1);
                assert!(!std::mem::replace(&mut seen[who as usize], true));
                while left > 0 {
                    let max = left.min(buf.len());
                    let n = reader.read(&mut buf[..max]).await.unwrap();
                    assert!(buf[..n].iter().all(|&b| b == who), "two writes mixed");
                    left -= n;
                }
            }
            join_all(writers).await.into_iter().for_each(Result::unwrap);
        });
    }
}

/// One that writes on and on lets another write in between: on the same worker, on another, and in the same task.
#[test]
fn write_all_beside_one_that_never_rests() {
    let _alone = alone(60);
    for (workers, len) in [(1, 100), (1, 1 << 20), (2, 100), (2, 1 << 20)] {
        runtime(workers).run(async move {
            let (stream, mut peer) = std_pair().await;
            let stream = leak(stream);
            let reader = std::thread::spawn(move || io::copy(&mut peer, &mut io::sink()).unwrap());
            let on_and_on = async move |begun: &AtomicBool| {
                let bytes = vec![1; len];
                loop {
                    stream.write_all(&bytes).await.unwrap();
                    begun.store(true, Ordering::SeqCst);
                }
            };
            let begun = leak(AtomicBool::new(false));
            let other = gopark::spawn(async move { on_and_on(begun).await });
            while !begun.load(Ordering::SeqCst) {
                yield_now().await;
            }
            for _ in 0..10 {
                stream.write_all(b"x").await.unwrap();
            }
            other.abort();
            assert!(other.await.unwrap_err().is_cancelled());
            let other = std::pin::pin!(on_and_on(begun));
            let this = std::pin::pin!(async {
                for _ in 0..10 {
                    stream.write_all(b"x").await.unwrap();
                }
            });
            let _ = futures::future::select(other, this).await;
            stream.close();
            let _ = gopark::spawn_blocking(|| reader.join()).await.unwrap();
        });
    }
}

/// A `write_all` that is dropped in the middle, or while it waits for its turn, lets the others on.
#[test]
fn write_all_dropped_and_write_all() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        let big = leak(vec![b'b'; 16 << 20]);
        let mut dropped = Box::pin(stream.write_all(big));
        assert!(is_pending(&mut dropped).await);
        let mut queued: Vec<_> = (0..3).map(|_| Box::pin(stream.write_all(b"queued"))).collect();
        for write in &mut queued {
            assert!(is_pending(write).await);
        }
        let last = gopark::spawn(stream.write_all(b"last"));
        yield_now().await;
        let reader = std::thread::spawn(move || {
            let (mut all, mut peer) = (Vec::new(), peer);
            peer.read_to_end(&mut all).unwrap();
            all
        });
        // Chosen, then dropped: the lock passes them by.
        drop(dropped);
        drop(queued);
        last.await.unwrap().unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let all = reader.join().unwrap();
        let (bulk, tail) = all.split_at(all.len() - 4);
        assert_eq!(tail, b"last");
        assert!(bulk.len() < big.len() && bulk.iter().all(|&b| b == b'b'));
    });
}

/// Abort and drop at every stage of a crowd of writers.
#[test]
fn write_alls_aborted_and_one_that_is_not() {
    let _alone = alone(30);
    runtime(2).run(async {
        let (stream, reader) = pair().await;
        let stream = leak(stream);
        let drain = gopark::spawn(async move {
            let mut buf = vec![0; 1 << 16];
            let mut total = 0;
            loop {
                match reader.read(&mut buf).await.unwrap() {
                    0 => return total,
                    n => total += n,
                }
            }
        });
        for i in 0..200usize {
            let crowd: Vec<_> =
                (0..4).map(|_| gopark::spawn(async { stream.write_all(&[b'c'; 300_000]).await.unwrap() })).collect();
            for _ in 0..i % 7 {
                yield_now().await;
            }
            crowd.iter().for_each(|task| task.abort());
            if i % 10 == 0 {
                stream.write_all(&[b'd'; 1000]).await.unwrap();
            }
        }
        stream.write_all(b"end").await.unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(drain.await.unwrap() >= 20 * 1000 + 3);
    });
}

/// `write_all` excludes `write_all` only: a plain write, and reads, go on.
#[test]
fn write_all_waiting_and_reads() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let big = vec![0; 16 << 20];
        let mut write = Box::pin(stream.write_all(&big));
        assert!(is_pending(&mut write).await);
        (&peer).write_all(b"x").unwrap();
        let mut buf = [0; 4];
        assert_eq!(stream.read(&mut buf).await.unwrap(), 1);
    });
}

/// One future of many that wait on the same socket is dropped after another was ready; nothing is lost.
#[test]
fn select_of_readers() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        let stream = leak(stream);
        for i in 0..100 {
            let writer = gopark::spawn({
                let peer = peer.try_clone().unwrap();
                async move {
                    yield_now().await;
                    (&peer).write_all(&[i]).unwrap();
                }
            });
            let (byte, _, rest) = select_all((0..5).map(|_| read_one(stream))).await;
            assert_eq!(byte.unwrap(), i);
            drop(rest);
            writer.await.unwrap();
        }
    });
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum On {
    Clone,
    Wake,
    Drop,
}

/// A waker that does something when it is cloned, woken, dropped.
struct Hook(Box<dyn Fn(On) + Send + Sync>);

impl Hook {
    fn waker(f: impl Fn(On) + Send + Sync + 'static) -> Waker {
        const TABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                // SAFETY: a borrowed waker's data is a live `Arc<Hook>`; the count is raised for the clone.
                unsafe {
                    Arc::increment_strong_count(data.cast::<Hook>());
                    ((*data.cast::<Hook>()).0)(On::Clone);
                }
                RawWaker::new(data, &TABLE)
            },
            |data| {
                // SAFETY: the waker is given up, and its count with it.
                let hook = unsafe { Arc::from_raw(data.cast::<Hook>()) };
                (hook.0)(On::Wake);
            },
            // SAFETY: a borrowed waker's data is a live `Arc<Hook>`.
            |data| unsafe { ((*data.cast::<Hook>()).0)(On::Wake) },
            |data| {
                // SAFETY: as in `wake`.
                let hook = unsafe { Arc::from_raw(data.cast::<Hook>()) };
                (hook.0)(On::Drop);
            },
        );
        let hook: Arc<Hook> = Arc::new(Hook(Box::new(f)));
        // SAFETY: the table keeps RawWaker's contract for the pointer of an `Arc<Hook>`.
        unsafe { Waker::from_raw(RawWaker::new(Arc::into_raw(hook).cast(), &TABLE)) }
    }
}

/// Beside a waker that does `what`, a task and another foreign waker on the same and on other sockets are served as ever.
fn beside(on: On, what: fn(&TcpStream)) {
    for workers in [1, 2] {
        let runtime = runtime(workers);
        let (stream, mut peer) = runtime.block_on(std_pair());
        let (other, mut other_peer) = runtime.block_on(std_pair());
        let stream = Arc::new(stream);
        let waker = Hook::waker({
            let stream = stream.clone();
            move |now| {
                if now == on {
                    what(&stream);
                }
            }
        });
        let mut reader = &*stream;
        assert!(Pin::new(&mut reader).poll_read(&mut Context::from_waker(&waker), &mut [0; 1]).is_pending());
        let task = runtime.spawn({
            let stream = stream.clone();
            async move { stream.readable().await }
        });
        let elsewhere = runtime.spawn(async move {
            let mut buf = [0; 5];
            other.read_exact(&mut buf).await.unwrap();
            buf
        });
        let (count, counted) = Count::new();
        let mut behind = Box::pin(stream.readable());
        let _ = poll(&mut behind, &counted);
        // The waker's code may take some of it.
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // It may have been closed.
                    let _ = peer.write_all(b"x");
                    std::thread::yield_now();
                }
            }
        });
        other_peer.write_all(b"hello").unwrap();
        assert_eq!(&runtime.block_on(elsewhere).unwrap(), b"hello");
        let _ = runtime.block_on(task).unwrap();
        loop {
            let wakes = count.wakes();
            if poll(&mut behind, &counted).is_ready() {
                break;
            }
            count.wait(wakes + 1);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        drop(waker);
    }
}

/// Traps S18 and S23: a foreign waker panics when it is woken.
#[test]
fn waker_that_panics_when_woken() {
    let _alone = alone(20);
    beside(On::Wake, |_| panic!("this waker panics when it is woken, as the test wants"));
}

/// Traps S18 and S23: and when it is dropped.
#[test]
fn waker_that_panics_when_dropped() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let mut reader = &stream;
    let waker = Hook::waker(|on| assert!(on != On::Drop, "this waker panics when it is dropped, as the test wants"));
    assert!(Pin::new(&mut reader).poll_read(&mut Context::from_waker(&waker), &mut [0; 1]).is_pending());
    std::mem::forget(waker);
    // A place in the queue is given to another: the old waker is dropped, by the caller of a poll.
    let mut read = Box::pin(stream.peek(leak_mut([0; 1])));
    let bad = Hook::waker(|on| assert!(on != On::Drop, "this waker panics when it is dropped, as the test wants"));
    let (count, good) = Count::new();
    assert!(poll(&mut read, &bad).is_pending());
    assert!(poll(&mut read, &good).is_pending());
    std::mem::forget(bad);
    peer.write_all(b"x").unwrap();
    count.wait(1);
    assert!(matches!(poll(&mut read, &good), Poll::Ready(Ok(1))));
    // The worker lives.
    assert_eq!(runtime.run(async { 1 }), 1);
}

/// Traps S18 and S23: and when it is cloned. That is its own poll's affair, and holds nobody else up.
#[test]
fn waker_that_panics_when_cloned() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = leak(stream);
    let mut read = read_one(stream);
    let waker = Hook::waker(|on| assert!(on != On::Clone, "this waker panics when it is cloned, as the test wants"));
    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut read, &waker).is_pending()));
    assert!(polled.is_err());
    let (count, good) = Count::new();
    let mut other = read_one(stream);
    assert!(poll(&mut other, &good).is_pending());
    drop(read);
    peer.write_all(b"x").unwrap();
    count.wait(1);
    assert_eq!(ready(poll(&mut other, &good)), Some(b'x'));
}

/// Trap S18: a waker's code calls the socket that wakes it, and waits on it anew.
#[test]
fn waker_that_calls_back() {
    let _alone = alone(20);
    beside(On::Wake, call_back);
    beside(On::Clone, call_back);
}

/// Reads what there is, and waits for more; writes.
fn call_back(stream: &TcpStream) {
    let _ = stream.try_write(b"from a waker");
    let _ = stream.writable().now_or_never();
    let mut reader = stream;
    let mut read = || Pin::new(&mut reader).poll_read(&mut Context::from_waker(&noop()), &mut [0; 64]);
    while matches!(read(), Poll::Ready(Ok(1..))) {}
    let mut readable = Box::pin(stream.readable());
    let _ = poll(&mut readable, &noop());
}

/// Trap S18: the same when a waker is dropped because another takes its place, or because its operation is dropped.
#[test]
fn waker_that_calls_back_when_dropped() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (stream, _peer) = runtime.block_on(std_pair());
    let stream = Arc::new(stream);
    let calls = Arc::new(AtomicUsize::new(0));
    let hook = || {
        let (stream, calls) = (stream.clone(), calls.clone());
        Hook::waker(move |on| {
            if on == On::Drop {
                call_back(&stream);
                calls.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let (mut a, mut b) = (Box::pin(stream.readable()), Box::pin(stream.readable()));
    for read in [&mut a, &mut b] {
        assert!(poll(read, &hook()).is_pending());
        // The slot holds a clone of it.
        let before = calls.load(Ordering::Relaxed);
        assert!(poll(read, &noop()).is_pending());
        assert_eq!(calls.load(Ordering::Relaxed), before + 1);
        assert!(poll(read, &hook()).is_pending());
    }
    let before = calls.load(Ordering::Relaxed);
    drop(b);
    assert_eq!(calls.load(Ordering::Relaxed), before + 1);
}

/// Trap S18: a waker's code closes the socket.
#[test]
fn waker_that_closes() {
    let _alone = alone(20);
    beside(On::Wake, TcpStream::close);
}

/// Trap S18: the last owner of a socket is the waker that waits on it.
#[test]
fn waker_that_drops_the_socket() {
    let _alone = alone(20);
    for on in [On::Wake, On::Drop] {
        let runtime = runtime(1);
        let (stream, mut peer) = runtime.block_on(std_pair());
        let holder = Arc::new(Mutex::new(Some(stream)));
        let waker = Hook::waker({
            let holder = holder.clone();
            move |now| {
                if now == on {
                    let stream = holder.lock().unwrap().take();
                    drop(stream);
                }
            }
        });
        {
            let stream = holder.lock().unwrap();
            let mut reader = stream.as_ref().unwrap();
            assert!(Pin::new(&mut reader).poll_read(&mut Context::from_waker(&waker), &mut [0; 1]).is_pending());
        }
        drop(holder);
        peer.write_all(b"x").unwrap();
        if on == On::Drop {
            drop(waker);
        }
        // A reset or an end: the socket is gone.
        match peer.read(&mut [0; 1]) {
            Ok(n) => assert_eq!(n, 0),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
        assert_eq!(runtime.run(async { 1 }), 1);
    }
}

/// Trap S18: a waker's code blocks on the runtime that wakes it.
#[test]
fn waker_that_blocks_on_a_task() {
    let _alone = alone(20);
    for workers in [1, 2] {
        let runtime = runtime(workers);
        let handle = runtime.handle().clone();
        let (stream, mut peer) = runtime.block_on(std_pair());
        let stream = Arc::new(stream);
        let (count, counted) = Count::new();
        let waker = Hook::waker({
            let stream = stream.clone();
            move |on| {
                if on == On::Wake {
                    let stream = stream.clone();
                    let task = handle.spawn(async move { stream.read(&mut [0; 8]).await.unwrap() });
                    assert_eq!(handle.block_on(task).unwrap(), 1);
                    counted.wake_by_ref();
                }
            }
        });
        let mut reader = &*stream;
        assert!(Pin::new(&mut reader).poll_read(&mut Context::from_waker(&waker), &mut [0; 1]).is_pending());
        peer.write_all(b"x").unwrap();
        count.wait(1);
        assert_eq!(runtime.run(async { 1 }), 1);
    }
}
