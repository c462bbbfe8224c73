//! What an edge says, and what it does not: merged, spurious, late and early ones; and who polls for them.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::net::{TcpListener, TcpStream};
use gopark::yield_now;
use net::*;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

/// Traps P14 and P19: data and the end come as one edge. The end is not lost to the short read before it, nor the data
/// to the end.
#[test]
fn data_and_end_in_one_edge() {
    let _alone = alone(20);
    runtime(1).run(async {
        for len in [1, 100, 4096] {
            let (stream, peer) = std_pair().await;
            let mut buf = vec![0; 4096];
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
            // The only worker is here: nobody polls in between.
            let data = Pattern::new(2).bytes(len);
            (&peer).write_all(&data).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read.await.unwrap(), len);
            assert!(buf[..len] == data[..]);
            assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
            assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        }
    });
}

/// Trap P14: they are there before the connection is registered.
#[test]
fn data_and_end_before_accept() {
    let _alone = alone(20);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(b"early").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut buf = [0; 16];
        assert_eq!(stream.read(&mut buf).await.unwrap(), 5);
        assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
    });
}

/// Trap P14: the end comes after the short read, as an edge of its own.
#[test]
fn short_read_then_end() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, mut peer) = std_pair().await;
        let mut buf = [0; 16];
        peer.write_all(b"x").unwrap();
        assert_eq!(stream.read(&mut buf).await.unwrap(), 1);
        let mut read = Box::pin(stream.read(&mut buf));
        assert!(is_pending(&mut read).await);
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read.await.unwrap(), 0);
    });
}

/// Trap P19: both sides are shut, so the socket is hung up; all of the data is read first.
#[test]
fn data_and_hangup() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        for reset in [false, true] {
            let (stream, mut peer) = std_pair().await;
            let data = Pattern::new(6).bytes(100_000);
            peer.write_all(&data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            if reset {
                SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(peer);
            pulse.beat().await;
            let mut got = vec![0; data.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert!(got == data);
            match stream.read(&mut got).await {
                Ok(n) => assert_eq!(n, 0),
                Err(e) => assert!(reset && e.kind() == ErrorKind::ConnectionReset, "{e}"),
            }
        }
    });
}

/// Trap P15: a hang-up that comes without EPOLLIN still wakes who waits to read. (A socket that was never connected.)
#[test]
fn hangup_alone_and_readable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (socket, _) = refusing();
        let stream = TcpStream::from_std(socket.into()).unwrap();
        stream.readable().await.unwrap();
        stream.writable().await.unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap_err().kind(), ErrorKind::NotConnected);
    });
}

/// Trap P15: a reset wakes both directions.
#[test]
fn reset_and_both_directions() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        fill(&stream).await;
        let (mut readable, mut writable) = (Box::pin(stream.readable()), Box::pin(stream.writable()));
        assert!(is_pending(&mut readable).await && is_pending(&mut writable).await);
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        readable.await.unwrap();
        writable.await.unwrap();
    });
}

/// Trap P17: what made it ready is gone by the time of the call, because another descriptor of the same socket took it.
#[test]
fn ready_then_taken_by_another() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, mut peer) = std_pair().await;
        let mut thief = SockRef::from(&stream).try_clone().unwrap();
        let mut buf = [0; 4];
        for _ in 0..10 {
            peer.write_all(b"x").unwrap();
            stream.readable().await.unwrap();
            thief.read_exact(&mut buf[..1]).unwrap();
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
            peer.write_all(b"y").unwrap();
            assert_eq!(read.await.unwrap(), 1);
            assert_eq!(buf[0], b'y');
        }

        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let thief = SockRef::from(&listener).try_clone().unwrap();
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        let _first = std::net::TcpStream::connect(addr).unwrap();
        thief.accept().unwrap();
        Pulse::new().await.beat().await;
        assert!(is_pending(&mut accept).await);
        let second = std::net::TcpStream::connect(addr).unwrap();
        assert_eq!(accept.await.unwrap().1, second.local_addr().unwrap());
    });
}

/// Trap P17: a read that fills its buffer leaves "ready" behind; the next one finds nothing, and waits.
#[test]
fn full_read_then_nothing() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, mut peer) = std_pair().await;
        let mut buf = [0; 4];
        for _ in 0..10 {
            peer.write_all(b"four").unwrap();
            stream.read_exact(&mut buf).await.unwrap();
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
            peer.write_all(b"more").unwrap();
            assert_eq!(read.await.unwrap(), 4);
        }
    });
}

/// Trap P7: however many edges come between two reads, there is news.
#[test]
fn many_edges_and_one_read() {
    let _alone = alone(30);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (stream, mut peer) = std_pair().await;
        let mut buf = vec![0; 1 << 16];
        for edges in [1, 2, 3, 4, 127, 128, 255, 256, 257, 511, 512, 4096] {
            for edge in 0..edges {
                peer.write_all(&[edge as u8]).unwrap();
                pulse.beat().await;
            }
            stream.readable().await.unwrap();
            let mut got = 0;
            while got < edges {
                got += stream.read(&mut buf).await.unwrap();
            }
            assert!(is_pending(&mut Box::pin(stream.read(&mut buf))).await);
        }
    });
}

/// Trap P8: each direction has its own readiness. An edge for reading says nothing of writing.
#[test]
fn read_edge_and_full_writes() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (stream, mut peer) = std_pair().await;
        let filled = fill(&stream).await;
        let mut writable = Box::pin(stream.writable());
        let mut buf = [0; 8];
        for _ in 0..10 {
            peer.write_all(b"x").unwrap();
            stream.readable().await.unwrap();
            pulse.beat().await;
            assert!(is_pending(&mut writable).await);
            assert_eq!(stream.read(&mut buf).await.unwrap(), 1);
            assert!(is_pending(&mut writable).await);
        }
        peer.read_exact(&mut vec![0; filled]).unwrap();
        writable.await.unwrap();
    });
}

/// Trap P8: and an edge for writing does not undo what a read that found nothing has noted.
#[test]
fn write_edge_and_drained_reads() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (stream, mut peer) = std_pair().await;
        for _ in 0..3 {
            let mut buf = [0; 8];
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
            let mut readable = Box::pin(stream.readable());
            let filled = fill(&stream).await;
            assert!(is_pending(&mut readable).await);
            peer.read_exact(&mut vec![0; filled]).unwrap();
            stream.writable().await.unwrap();
            pulse.beat().await;
            assert!(is_pending(&mut readable).await && is_pending(&mut read).await);
            peer.write_all(b"x").unwrap();
            readable.await.unwrap();
            assert_eq!(read.await.unwrap(), 1);
        }
    });
}

/// Trap P25: a read ends at the urgent mark, with bytes behind it, and no edge follows.
#[test]
fn urgent_mark_and_bytes_behind_it() {
    let _alone = alone(20);
    runtime(1).run(async {
        for registered_first in [true, false] {
            for rounds in [1, 3] {
                let (stream, mut peer) = std_pair().await;
                let stream =
                    if registered_first { stream } else { TcpStream::from_std(stream.into_std().unwrap()).unwrap() };
                let mut buf = [0; 64];
                let mut read = Box::pin(stream.read(&mut buf));
                assert!(is_pending(&mut read).await);
                let mut expected = Vec::new();
                for _ in 0..rounds {
                    peer.write_all(b"before").unwrap();
                    SockRef::from(&peer).send_out_of_band(b"!").unwrap();
                    peer.write_all(b"behind").unwrap();
                    expected.extend_from_slice(b"beforebehind");
                }
                let n = read.await.unwrap();
                let mut got = buf[..n].to_vec();
                // A newer mark makes the older urgent byte an ordinary one.
                while got.len() < expected.len() + rounds - 1 {
                    let n = stream.read(&mut buf).await.unwrap();
                    assert!(n > 0);
                    got.extend_from_slice(&buf[..n]);
                }
                got.retain(|&b| b != b'!');
                assert!(got == expected);
            }
        }
    });
}

/// Trap P25: the urgent byte comes while the reader waits after a short read, and in the stream itself (SO_OOBINLINE).
#[test]
fn urgent_mark_in_line() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, mut peer) = std_pair().await;
        SockRef::from(&stream).set_out_of_band_inline(true).unwrap();
        let mut got = Vec::new();
        let mut buf = [0; 64];
        for _ in 0..5 {
            peer.write_all(b"a").unwrap();
            SockRef::from(&peer).send_out_of_band(b"b!").unwrap();
            peer.write_all(b"c").unwrap();
            got.clear();
            while got.len() < 4 {
                let n = stream.read(&mut buf).await.unwrap();
                assert!(n > 0);
                got.extend_from_slice(&buf[..n]);
            }
            assert_eq!(got, b"ab!c");
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
        }
    });
}

/// A connection handed from runtime to std and back many times: a stale edge of the old registration is nobody's.
/// Trap P1.
#[test]
fn old_edges_and_new_sockets() {
    let _alone = alone(30);
    runtime(2).run(async {
        let pulse = Pulse::new().await;
        for _ in 0..300 {
            // An edge is under way when the first of them goes.
            let (old, mut peer) = std_pair().await;
            peer.write_all(b"x").unwrap();
            drop(old);
            let (new, mut peer) = std_pair().await;
            let mut readable = Box::pin(new.readable());
            pulse.beat().await;
            assert!(is_pending(&mut readable).await);
            peer.write_all(b"y").unwrap();
            readable.await.unwrap();
        }
    });
}

/// Is one of the process's threads in an epoll wait without end? (The time limit is the call's fourth argument.)
fn somebody_waits_in_epoll() -> Option<bool> {
    let mut readable = false;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("syscall")) else { continue };
        readable = true;
        let words: Vec<_> = text.split(' ').collect();
        let number = words[0].parse::<i64>().unwrap_or(-1);
        #[cfg(target_arch = "x86_64")]
        let waits = number == libc::SYS_epoll_wait || number == libc::SYS_epoll_pwait;
        #[cfg(not(target_arch = "x86_64"))]
        let waits = number == libc::SYS_epoll_pwait;
        if waits && words.get(4).is_some_and(|timeout| timeout.ends_with("ffffffff")) {
            return Some(true);
        }
    }
    readable.then_some(false)
}

/// Trap P3: however many have waited and gone, in whichever way, somebody blocks in the poll in the end, and nobody who
/// waits has been forgotten.
#[test]
fn a_hundred_thousand_cancelled_waits_and_a_block_in_poll() {
    let _alone = alone(60);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let stream = Arc::new(stream);
    runtime.run({
        let stream = stream.clone();
        async move {
            for _ in 0..100_000 {
                let mut readable = Box::pin(stream.readable());
                assert!(is_pending(&mut readable).await);
            }
        }
    });
    for _ in 0..1000 {
        let task = runtime.spawn({
            let stream = stream.clone();
            async move { stream.read(&mut [0; 4]).await.unwrap() }
        });
        task.abort();
        assert!(runtime.block_on(task).unwrap_err().is_cancelled());
    }
    // It spins, if it does, with a poll that does not block, or with none.
    while somebody_waits_in_epoll() == Some(false) {
        std::thread::yield_now();
    }
    let read = runtime.spawn(async move { stream.read(&mut [0; 4]).await.unwrap() });
    peer.write_all(b"x").unwrap();
    assert_eq!(runtime.block_on(read).unwrap(), 1);
}

fn thread_cpu_time() -> Duration {
    // SAFETY: all zeroes is a valid timespec, which the call fills.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time), 0);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Trap P5: the only worker is never idle; it looks at the network between tasks, and not only as often as sysmon (10 ms).
/// Measured in the worker's own CPU time, and at the median, so that other processes do not matter.
#[test]
fn busy_worker_and_loopback() {
    let _alone = alone(60);
    runtime(1).run(async {
        let done = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (from, to) = pair().await;
        let receiver = gopark::spawn({
            let sent = sent.clone();
            async move {
                let mut late = Vec::new();
                let mut buf = [0; 8];
                for _ in 0..51 {
                    let mut read = Box::pin(to.read(&mut buf));
                    if read.as_mut().now_or_pending().await.is_none() {
                        assert_eq!(read.await.unwrap(), 1);
                    }
                    late.push(thread_cpu_time() - Duration::from_nanos(sent.load(Ordering::Relaxed)));
                    to.write_all(b"!").await.unwrap();
                }
                late.sort_unstable();
                late[25]
            }
        });
        let busy = gopark::spawn({
            let done = done.clone();
            async move {
                while !done.load(Ordering::Relaxed) {
                    yield_now().await;
                }
            }
        });
        let mut buf = [0; 8];
        for _ in 0..51 {
            for _ in 0..3 {
                yield_now().await;
            }
            sent.store(thread_cpu_time().as_nanos() as u64, Ordering::Relaxed);
            from.write_all(b"?").await.unwrap();
            assert_eq!(from.read(&mut buf).await.unwrap(), 1);
        }
        let median = receiver.await.unwrap();
        done.store(true, Ordering::Relaxed);
        busy.await.unwrap();
        assert!(median < Duration::from_millis(4), "a loopback message took {median:?} of the worker's time");
    });
}

trait NowOrPending: Future {
    /// One poll with the caller's own waker.
    async fn now_or_pending(self: Pin<&mut Self>) -> Option<Self::Output>;
}

impl<F: Future> NowOrPending for F {
    async fn now_or_pending(mut self: Pin<&mut Self>) -> Option<Self::Output> {
        std::future::poll_fn(|cx| {
            Poll::Ready(match self.as_mut().poll(cx) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }
}

/// Trap P6: a timer of a P that is busy in one long poll is taken by the others; as is a socket's edge.
#[test]
fn stuck_worker_and_its_timer() {
    let _alone = alone(20);
    runtime(2).run(async {
        let (stream, mut peer) = std_pair().await;
        for _ in 0..5 {
            let fired = Arc::new(AtomicBool::new(false));
            let stuck = gopark::spawn({
                let fired = fired.clone();
                async move {
                    let sleeper = gopark::spawn({
                        let fired = fired.clone();
                        let mut sleep = Box::pin(gopark::time::sleep(Duration::from_millis(2)));
                        // Armed by this worker, in its P's heap.
                        assert!(is_pending(&mut sleep).await);
                        async move {
                            sleep.await;
                            fired.store(true, Ordering::Relaxed);
                        }
                    });
                    // One poll that does not end before another worker has served the timer.
                    while !fired.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    sleeper.await.unwrap();
                }
            });
            stuck.await.unwrap();
            peer.write_all(b"x").unwrap();
            assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 1);
        }
    });
}

/// S1's other half, for sockets: the worker that polled is stuck in a task, and edges are served all the same.
#[test]
fn stuck_worker_and_a_socket() {
    let _alone = alone(20);
    runtime(2).run(async {
        let (stream, peer) = std_pair().await;
        for _ in 0..20 {
            let seen = Arc::new(AtomicBool::new(false));
            let reader = gopark::spawn({
                let (seen, stream) = (seen.clone(), TcpStream::from_std(dup(&stream)).unwrap());
                async move {
                    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 1);
                    seen.store(true, Ordering::Relaxed);
                }
            });
            yield_now().await;
            (&peer).write_all(b"x").unwrap();
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            reader.await.unwrap();
        }
    });
}

fn dup(stream: &TcpStream) -> std::net::TcpStream {
    SockRef::from(stream).try_clone().unwrap().into()
}

/// Trap P24: one worker is busy and does not get to it; a spawn from outside breaks the wait of the other, every time.
#[test]
fn spawns_and_a_sleeping_worker() {
    let _alone = alone(60);
    let runtime = runtime(2);
    let (stop, free) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    // Goes idle and polls all the time, and stands still while the other worker has something to do.
    let busy = runtime.spawn({
        let (stop, free) = (stop.clone(), free.clone());
        async move {
            let pulse = Pulse::new().await;
            while !stop.load(Ordering::Relaxed) {
                pulse.beat().await;
                while !free.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            }
        }
    });
    for i in 0..2000u32 {
        free.store(false, Ordering::Relaxed);
        let task = runtime.spawn({
            let free = free.clone();
            async move { free.store(true, Ordering::Release) }
        });
        runtime.block_on(task).unwrap();
        for _ in 0..i % 64 {
            std::hint::spin_loop();
        }
    }
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(busy).unwrap();
}

/// The descriptors are the user's to see.
#[test]
fn raw_descriptors() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        assert_ne!(a.as_raw_fd(), b.as_raw_fd());
        assert_eq!(a.local_addr().unwrap(), b.peer_addr().unwrap());
        assert!(SockRef::from(&a).nonblocking().unwrap());
    });
}
