//! Deadlines: what Go's net/timeout_test.go asks, by its names, and what gopark promises beyond.
//!
//! No test depends on how fast the machine is: a deadline is never early, and one that must not strike is watched until
//! later ones have struck.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::channel::oneshot;
use futures::future::join_all;
use futures::io::AsyncRead;
use futures::join;
use gopark::JoinHandle;
use gopark::net::{RuntimeGone, TcpListener, TcpStream, UdpSocket};
use net::*;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The test, as a task on one worker, and on two.
fn on_each<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
    for workers in [1, 2] {
        runtime(workers).run(test());
    }
}

/// Spawns a read of one byte; it waits when this returns.
async fn waiting_read(stream: &Arc<TcpStream>) -> JoinHandle<io::Result<usize>> {
    let (waits, told) = oneshot::channel();
    let stream = stream.clone();
    let task = gopark::spawn(async move {
        let mut buf = [0];
        let mut read = Box::pin(stream.read(&mut buf));
        assert!(is_pending(&mut read).await);
        waits.send(()).unwrap();
        read.await
    });
    told.await.unwrap();
    task
}

/// Go's AcceptTimeout: with a deadline in the past, accept takes nothing, though a connection is there; with one ahead, it
/// waits until then.
#[test]
fn accept_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_deadline(past()).unwrap();
        is_timeout(listener.accept().await);
        is_timeout(listener.accept().await);
        listener.set_deadline(NEVER).unwrap();
        listener.accept().await.unwrap();
        let at = ahead(10);
        listener.set_deadline(at).unwrap();
        is_timeout(listener.accept().await);
        assert!(Some(Instant::now()) >= at);
    });
}

/// Go's AcceptTimeoutMustReturn: no deadline is no obstacle to the next.
#[test]
fn accept_timeout_must_return() {
    let _alone = alone(60);
    on_each(|| async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        listener.set_deadline(NEVER).unwrap();
        listener.set_deadline(ahead(10)).unwrap();
        is_timeout(listener.accept().await);
    });
}

/// Go's AcceptTimeoutMustNotReturn: a deadline that was taken back, in the past or ahead, ends nothing.
#[test]
fn accept_timeout_must_not_return() {
    let _alone = alone(60);
    on_each(|| async {
        for before in [past(), ahead(5)] {
            let listener = TcpListener::bind(ANY).await.unwrap();
            listener.set_deadline(before).unwrap();
            listener.set_deadline(NEVER).unwrap();
            let mut accept = Box::pin(listener.accept());
            assert!(is_pending(&mut accept).await);
            deadlines_until(Instant::now() + Duration::from_millis(10)).await;
            assert!(is_pending(&mut accept).await);
            listener.close();
            assert!(is_closed(&accept.await.unwrap_err()));
        }
    });
}

/// Go's ReadTimeout: with a deadline in the past, a read takes nothing, though something is there; with one ahead, reads
/// take what there is and wait until then.
#[test]
fn read_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, mut peer) = std_pair().await;
        peer.write_all(b"READ TIMEOUT TEST").unwrap();
        stream.readable().await.unwrap();
        stream.set_read_deadline(past()).unwrap();
        is_timeout(stream.read(&mut [0]).await);
        is_timeout(stream.read(&mut [0]).await);
        let at = ahead(50);
        stream.set_read_deadline(at).unwrap();
        let (mut text, mut buf) = (Vec::new(), [0]);
        let error = loop {
            match stream.read(&mut buf).await {
                Ok(n) => text.extend_from_slice(&buf[..n]),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(Some(Instant::now()) >= at);
        // On a machine that was busy elsewhere for 50 ms there is a rest.
        stream.set_read_deadline(NEVER).unwrap();
        while text.len() < 17 {
            assert_eq!(stream.read(&mut buf).await.unwrap(), 1);
            text.push(buf[0]);
        }
        assert_eq!(text, b"READ TIMEOUT TEST");
    });
}

/// The same of reads.
#[test]
fn read_timeout_must_return() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, _peer) = pair().await;
        stream.set_read_deadline(NEVER).unwrap();
        stream.set_read_deadline(ahead(10)).unwrap();
        is_timeout(stream.read(&mut [0]).await);
    });
}

/// Go's ReadTimeoutMustNotReturn: nor does the deadline of writes.
#[test]
fn read_timeout_must_not_return() {
    let _alone = alone(60);
    on_each(|| async {
        for before in [past(), ahead(5)] {
            let (stream, _peer) = pair().await;
            stream.set_deadline(before).unwrap();
            stream.set_write_deadline(past()).unwrap();
            stream.set_read_deadline(NEVER).unwrap();
            let mut buf = [0];
            let mut read = Box::pin(stream.read(&mut buf));
            assert!(is_pending(&mut read).await);
            deadlines_until(Instant::now() + Duration::from_millis(10)).await;
            assert!(is_pending(&mut read).await);
            is_timeout(stream.write(b"x").await);
            stream.close();
            assert!(is_closed(&read.await.unwrap_err()));
        }
    });
}

/// Go's WriteTimeout: with a deadline in the past, a write sends nothing, though there is room; with one ahead, writes fill
/// what there is and wait until then.
#[test]
fn write_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, mut peer) = std_pair().await;
        stream.set_write_deadline(past()).unwrap();
        is_timeout(stream.write(b"WRITE TIMEOUT TEST").await);
        is_timeout(stream.write(b"WRITE TIMEOUT TEST").await);
        let at = ahead(10);
        stream.set_write_deadline(at).unwrap();
        let (mut sent, mut total) = (Pattern::new(3), 0);
        let error = loop {
            match stream.write(sent.peek(1000)).await {
                Ok(n) => sent.take(n),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(Some(Instant::now()) >= at);
        // What was written before arrives, and no more.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut received, mut buf) = (Pattern::new(3), [0; 65_536]);
        while let n @ 1.. = peer.read(&mut buf).unwrap() {
            received.check(&buf[..n]);
            total += n;
        }
        assert_eq!(total, sent.taken());
    });
}

/// The same of writes.
#[test]
fn write_timeout_must_return() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, _peer) = pair().await;
        fill(&stream).await;
        stream.set_write_deadline(NEVER).unwrap();
        stream.set_write_deadline(ahead(10)).unwrap();
        is_timeout(stream.write(b"x").await);
    });
}

/// Go's WriteTimeoutMustNotReturn.
#[test]
fn write_timeout_must_not_return() {
    let _alone = alone(60);
    on_each(|| async {
        for before in [past(), ahead(5)] {
            let (stream, _peer) = pair().await;
            fill(&stream).await;
            stream.set_deadline(before).unwrap();
            stream.set_read_deadline(past()).unwrap();
            stream.set_write_deadline(NEVER).unwrap();
            let mut write = Box::pin(stream.write(b"x"));
            assert!(is_pending(&mut write).await);
            deadlines_until(Instant::now() + Duration::from_millis(10)).await;
            assert!(is_pending(&mut write).await);
            is_timeout(stream.read(&mut [0]).await);
            stream.close();
            assert!(is_closed(&write.await.unwrap_err()));
        }
    });
}

/// Raises the time until an operation with that deadline ends before twice of it is over, and never early. A machine that
/// needs eight seconds for four has lost the deadline.
async fn fluctuation(stream: &TcpStream, set: fn(&TcpStream, Option<Instant>) -> io::Result<()>, write: bool) {
    let mut time = Duration::from_millis(1);
    loop {
        let start = Instant::now();
        set(stream, Some(start + time)).unwrap();
        is_timeout(if write { stream.write(&[0; 64]).await } else { stream.read(&mut [0; 64]).await });
        let actual = start.elapsed();
        assert!(actual >= time, "{time:?} were over after {actual:?}");
        if actual <= time * 2 {
            return;
        }
        assert!(time < Duration::from_secs(4), "{time:?} were over after {actual:?}");
        time = actual;
    }
}

/// Go's ReadTimeoutFluctuation: a deadline comes when it should, as near as the machine can.
#[test]
fn read_timeout_fluctuation() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, _peer) = pair().await;
        fluctuation(&stream, TcpStream::set_read_deadline, false).await;
    });
}

/// Go's WriteTimeoutFluctuation.
#[test]
fn write_timeout_fluctuation() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, _peer) = pair().await;
        fill(&stream).await;
        fluctuation(&stream, TcpStream::set_write_deadline, true).await;
    });
}

/// Where both directions have one deadline, who has seen it pass in one has seen it pass in the other: both are one moment,
/// though a timer each.
#[test]
fn deadline_of_both_directions_is_one_moment() {
    let _alone = alone(60);
    // Not a task: it would have to let others run after some tries.
    runtime(2).block_on(async {
        let (stream, _peer) = pair().await;
        for n in 0..3000 {
            stream.set_deadline(Some(Instant::now() + Duration::from_micros(20))).unwrap();
            let seen = |result: io::Result<usize>| result.is_err_and(|e| e.kind() == ErrorKind::TimedOut);
            let (read, write) = (|| stream.try_read(&mut [0]), || stream.try_write(b"x"));
            match (n / 1000 + 2) % 3 {
                0 => {
                    while !seen(read()) {}
                    assert!(seen(write()), "{n}");
                }
                1 => {
                    while !seen(write()) {}
                    assert!(seen(read()), "{n}");
                }
                _ => {
                    while !matches!(futures::poll!(std::pin::pin!(stream.readable())), Poll::Ready(Err(_))) {}
                    assert!(seen(write()), "{n}");
                }
            }
            gopark::yield_now().await;
        }
    });
}

/// From a nanosecond to a tenth of a second: each ends a read, none early.
fn various_deadlines(workers: usize) {
    let _alone = alone(60);
    runtime(workers).run(async {
        let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
        let addr = listener.local_addr().unwrap();
        let server = gopark::spawn({
            let listener = listener.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    gopark::spawn(async move { stream.read(&mut [0]).await });
                }
            }
        });
        let one = move |nanos| async move {
            let stream = TcpStream::connect(addr).await.unwrap();
            let at = Instant::now() + Duration::from_nanos(nanos);
            stream.set_deadline(Some(at)).unwrap();
            is_timeout(stream.read(&mut [0; 512]).await);
            assert!(Instant::now() >= at);
            is_timeout(stream.write(b"x").await);
        };
        let times = [
            1,
            2,
            5,
            50,
            100,
            200,
            500,
            750,
            1_000,
            5_000,
            25_000,
            250_000,
            500_000,
            1_000_000,
            5_000_000,
            20_000_000,
            100_000_000,
        ];
        // One after the other, and then all at once.
        for nanos in times {
            one(nanos).await;
        }
        let all = [times; 3].concat().into_iter().map(|nanos| gopark::spawn(one(nanos)));
        join_all(all.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
        listener.close();
        server.await.unwrap();
    });
}

#[test]
fn various_deadlines_1_proc() {
    various_deadlines(1);
}

#[test]
fn various_deadlines_4_proc() {
    various_deadlines(4);
}

/// Go's ReadWriteProlongedTimeout: each side moves its deadline before each operation, as servers do.
#[test]
fn read_write_prolonged_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, peer) = pair().await;
        let stream = Arc::new(stream);
        let reader = gopark::spawn({
            let stream = stream.clone();
            async move {
                let mut total = 0;
                loop {
                    stream.set_read_deadline(far()).unwrap();
                    match stream.read(&mut [0]).await.unwrap() {
                        0 => return total,
                        n => total += n,
                    }
                }
            }
        });
        let writer = gopark::spawn(async move {
            for _ in 0..1000 {
                stream.set_write_deadline(far()).unwrap();
                assert_eq!(stream.write(b"x").await.unwrap(), 1);
            }
        });
        for _ in 0..1000 {
            peer.write_all(b"x").await.unwrap();
            peer.read_exact(&mut [0]).await.unwrap();
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        writer.await.unwrap();
        assert_eq!(reader.await.unwrap(), 1000);
    });
}

/// Go's ReadWriteDeadlineRace: deadlines two microseconds ahead, set anew all the time, by a task and by a thread; whoever
/// reads or writes gets what he wants or a timeout. Then the connection is as good as ever.
#[test]
fn read_write_deadline_race() {
    const N: usize = 1000;
    let _alone = alone(60);
    on_each(|| async {
        let (stream, mut peer) = std_pair().await;
        let stream = Arc::new(stream);
        let set = |stream: &TcpStream| {
            let soon = || Some(Instant::now() + Duration::from_micros(2));
            stream.set_read_deadline(soon()).unwrap();
            stream.set_write_deadline(soon()).unwrap();
        };
        let thread = std::thread::spawn({
            let stream = stream.clone();
            move || (0..N).for_each(|_| set(&stream))
        });
        let setter = gopark::spawn({
            let stream = stream.clone();
            async move {
                for _ in 0..N {
                    set(&stream);
                    gopark::yield_now().await;
                }
            }
        });
        let reader = gopark::spawn({
            let stream = stream.clone();
            async move {
                for _ in 0..N {
                    is_timeout(stream.read(&mut [0]).await);
                }
            }
        });
        let writer = gopark::spawn({
            let stream = stream.clone();
            async move {
                let mut sent = 0;
                for _ in 0..N {
                    match stream.write(b"x").await {
                        Ok(n) => sent += n,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
                    }
                }
                sent
            }
        });
        // Until the first deadline is set, a read waits; after the last, it does not.
        let (set, read, sent) = join!(setter, reader, writer);
        set.unwrap();
        read.unwrap();
        gopark::block_in_place(|| thread.join().unwrap());
        stream.set_deadline(NEVER).unwrap();
        peer.write_all(b"y").unwrap();
        let mut buf = [0];
        stream.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"y");
        stream.write_all(b"z").await.unwrap();
        let mut received = vec![0; sent.unwrap() + 1];
        peer.read_exact(&mut received).unwrap();
        assert!(received.ends_with(b"z"));
    });
}

/// Go's ConcurrentSetDeadline: many tasks set earlier and earlier deadlines for many connections. The last word counts.
#[test]
fn concurrent_set_deadline() {
    let _alone = alone(60);
    on_each(|| async {
        let mut all = Vec::new();
        for _ in 0..10 {
            let (stream, peer) = pair().await;
            let stream = Arc::new(stream);
            all.push((waiting_read(&stream).await, stream, peer));
        }
        let now = Instant::now();
        let setters = (0..8u64).map(|i| {
            let streams: Vec<_> = all.iter().map(|(_, stream, _)| stream.clone()).collect();
            gopark::spawn(async move {
                for j in (1..=100).rev() {
                    for (k, stream) in (0..).zip(&streams) {
                        let more = Duration::from_secs(i * j * k);
                        stream.set_read_deadline(Some(now + Duration::from_secs(7200) + more)).unwrap();
                        stream.set_write_deadline(Some(now + Duration::from_secs(3600) + more)).unwrap();
                    }
                    gopark::yield_now().await;
                }
            })
        });
        join_all(setters.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
        deadlines_until(Instant::now() + Duration::from_millis(1)).await;
        for (i, (read, stream, peer)) in all.into_iter().enumerate() {
            assert!(!read.is_finished());
            if i % 2 == 0 {
                stream.set_read_deadline(ahead(1)).unwrap();
                is_timeout(read.await.unwrap());
            } else {
                peer.write_all(b"x").await.unwrap();
                assert_eq!(read.await.unwrap().unwrap(), 1);
            }
        }
    });
}

/// Go's CloseUnblocksRead: the peer's close is a waiting read's end; its own, an error.
#[test]
fn close_unblocks_read() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, peer) = pair().await;
        let stream = Arc::new(stream);
        stream.set_deadline(far()).unwrap();
        let read = waiting_read(&stream).await;
        peer.close();
        assert_eq!(read.await.unwrap().unwrap(), 0);
        let (stream, _peer) = pair().await;
        let stream = Arc::new(stream);
        stream.set_deadline(far()).unwrap();
        let read = waiting_read(&stream).await;
        stream.close();
        assert!(is_closed(&read.await.unwrap().unwrap_err()));
        // From then on, deadlines or not.
        assert!(is_closed(&stream.set_read_deadline(NEVER).unwrap_err()));
        assert!(is_closed(&stream.set_deadline(past()).unwrap_err()));
        assert!(is_closed(&stream.read(&mut [0]).await.unwrap_err()));
    });
}

/// Go's CloseUnblocksReadUDP: a receive that waits, of a socket that has no connection which could end.
#[test]
fn close_unblocks_read_udp() {
    let _alone = alone(60);
    on_each(|| async {
        let socket = UdpSocket::bind(ANY).await.unwrap();
        let mut buf = [0; 8];
        let (mut one, mut other) = ([0; 8], [0; 8]);
        let mut first = Box::pin(socket.recv_from(&mut one));
        let mut second = Box::pin(socket.recv(&mut other));
        assert!(is_pending(&mut first).await);
        assert!(is_pending(&mut second).await);
        socket.close();
        assert!(is_closed(&first.await.unwrap_err()));
        assert!(is_closed(&second.await.unwrap_err()));
        assert!(is_closed(&socket.recv_from(&mut buf).await.unwrap_err()));
        assert!(is_closed(&socket.send_to(b"x", ANY).await.unwrap_err()));
    });
}

/// Go's ReadFromTimeout: with a deadline in the past, a receive takes no datagram, though one is there; with one ahead, it
/// waits until then.
#[test]
fn read_from_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let (socket, peer) = (UdpSocket::bind(ANY).await.unwrap(), UdpSocket::bind(ANY).await.unwrap());
        peer.send_to(b"READFROM TIMEOUT TEST", socket.local_addr().unwrap()).await.unwrap();
        socket.readable().await.unwrap();
        let mut buf = [0; 64];
        socket.set_read_deadline(past()).unwrap();
        is_timeout(socket.recv_from(&mut buf).await);
        is_timeout(socket.recv_from(&mut buf).await);
        socket.set_read_deadline(far()).unwrap();
        assert_eq!(socket.recv_from(&mut buf).await.unwrap(), (21, peer.local_addr().unwrap()));
        let at = ahead(10);
        socket.set_read_deadline(at).unwrap();
        is_timeout(socket.recv_from(&mut buf).await);
        assert!(Some(Instant::now()) >= at);
    });
}

/// Go's WriteToTimeout: there is nearly always room, so a deadline tells only before and after.
#[test]
fn write_to_timeout() {
    let _alone = alone(60);
    on_each(|| async {
        let (socket, peer) = (UdpSocket::bind(ANY).await.unwrap(), UdpSocket::bind(ANY).await.unwrap());
        let to = peer.local_addr().unwrap();
        socket.set_write_deadline(past()).unwrap();
        is_timeout(socket.send_to(b"WRITETO TIMEOUT TEST", to).await);
        is_timeout(socket.send_to(b"WRITETO TIMEOUT TEST", to).await);
        let at = ahead(5);
        socket.set_write_deadline(at).unwrap();
        let error = loop {
            match socket.send_to(b"WRITETO TIMEOUT TEST", to).await {
                Ok(n) => assert_eq!(n, 20),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(Some(Instant::now()) >= at);
        socket.set_write_deadline(NEVER).unwrap();
        socket.send_to(b"WRITETO TIMEOUT TEST", to).await.unwrap();
    });
}

/// Go's ReadTimeoutUnblocksRead: a deadline in the past ends a read that waits, set by a task or by a thread.
#[test]
fn read_timeout_unblocks_read() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, _peer) = pair().await;
        let stream = Arc::new(stream);
        for by_thread in [false, true] {
            stream.set_read_deadline(NEVER).unwrap();
            let read = waiting_read(&stream).await;
            change(&stream, by_thread, |stream| stream.set_read_deadline(past()).unwrap()).await;
            is_timeout(read.await.unwrap());
        }
    });
}

/// Has a task, or a thread that is none of the runtime's, do something to a connection.
async fn change<R: Send + 'static>(
    stream: &Arc<TcpStream>,
    by_thread: bool,
    what: impl FnOnce(&TcpStream) -> R + Send + 'static,
) -> R {
    let stream = stream.clone();
    if by_thread {
        let thread = std::thread::spawn(move || what(&stream));
        gopark::block_in_place(|| thread.join().unwrap())
    } else {
        gopark::spawn(async move { what(&stream) }).await.unwrap()
    }
}

/// A deadline is set earlier while a read and a write wait, by a task and by a thread: then it counts.
#[test]
fn set_earlier_while_operations_wait() {
    let _alone = alone(60);
    on_each(|| async {
        for (by_thread, before) in [(false, NEVER), (false, far()), (true, NEVER), (true, far())] {
            let (stream, _peer) = pair().await;
            fill(&stream).await;
            let stream = Arc::new(stream);
            stream.set_deadline(before).unwrap();
            let read = waiting_read(&stream).await;
            let mut write = Box::pin(stream.write(b"x"));
            assert!(is_pending(&mut write).await);
            let at = ahead(5);
            change(&stream, by_thread, move |stream| stream.set_deadline(at).unwrap()).await;
            is_timeout(read.await.unwrap());
            is_timeout(write.await);
            assert!(Some(Instant::now()) >= at);
        }
    });
}

/// A deadline is set later while a read and a write wait, or taken back: the first then counts no more.
#[test]
fn set_later_while_operations_wait() {
    let _alone = alone(60);
    on_each(|| async {
        for (by_thread, after) in [(false, NEVER), (false, far()), (true, NEVER), (true, far())] {
            loop {
                let (stream, mut peer) = std_pair().await;
                let filled = fill(&stream).await;
                let stream = Arc::new(stream);
                let read = waiting_read(&stream).await;
                let mut write = Box::pin(stream.write(b"x"));
                assert!(is_pending(&mut write).await);
                let first = Instant::now() + Duration::from_millis(5);
                let in_time = change(&stream, by_thread, move |stream| {
                    stream.set_deadline(Some(first)).unwrap();
                    stream.set_deadline(after).unwrap();
                    Instant::now() < first
                });
                if !in_time.await {
                    // The machine was busy elsewhere, and the first may have come in between.
                    stream.close();
                    let _ = read.await;
                    continue;
                }
                deadlines_until(first + Duration::from_millis(1)).await;
                assert!(!read.is_finished());
                assert!(is_pending(&mut write).await);
                peer.write_all(b"x").unwrap();
                assert_eq!(read.await.unwrap().unwrap(), 1);
                peer.read_exact(&mut vec![0; filled]).unwrap();
                assert_eq!(write.await.unwrap(), 1);
                break;
            }
        }
    });
}

/// Moved into the future again and again, as a server does before each request; the timer of the first comes and finds that.
/// (That it is no operation on the timers, net_leaks.rs shows.)
#[test]
fn moved_back_again_and_again() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, peer) = pair().await;
        let stream = Arc::new(stream);
        let first = Instant::now() + Duration::from_millis(5);
        stream.set_read_deadline(Some(first)).unwrap();
        let hour = Instant::now() + Duration::from_secs(3600);
        stream.set_read_deadline(Some(hour)).unwrap();
        let read = waiting_read(&stream).await;
        for by_thread in [false, true] {
            change(&stream, by_thread, move |stream| {
                for i in 1..10_000 {
                    stream.set_read_deadline(Some(hour + Duration::from_millis(i))).unwrap();
                }
            })
            .await;
        }
        deadlines_until(first + Duration::from_millis(1)).await;
        assert!(!read.is_finished());
        // And forth again.
        stream.set_read_deadline(ahead(1)).unwrap();
        is_timeout(read.await.unwrap());
        drop(peer);
    });
}

/// What is expired stays so, for every operation of that direction and whatever happens to the connection, until the
/// deadline is set anew; then all is as it was.
#[test]
fn expired_until_set_anew() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, mut peer) = std_pair().await;
        for at in [past(), ahead(1)] {
            stream.set_deadline(at).unwrap();
            deadlines_until(at.unwrap()).await;
            peer.write_all(b"hello").unwrap();
            for _ in 0..2 {
                let mut buf = [0; 8];
                is_timeout(stream.read(&mut buf).await);
                is_timeout(stream.read_exact(&mut buf).await);
                is_timeout(stream.peek(&mut buf).await);
                is_timeout(stream.try_read(&mut buf));
                is_timeout(stream.readable().await);
                is_timeout(stream.read_vectored(&mut [IoSliceMut::new(&mut buf)]).await);
                is_timeout(stream.try_read_vectored(&mut [IoSliceMut::new(&mut buf)]));
                let polled = poll_read(&stream, &mut Context::from_waker(&noop()));
                is_timeout(match polled {
                    Poll::Ready(result) => result.map(Some),
                    Poll::Pending => Ok(None),
                });
                is_timeout(stream.write(b"x").await);
                is_timeout(stream.write_all(b"x").await);
                is_timeout(stream.try_write(b"x"));
                is_timeout(stream.writable().await);
                is_timeout(stream.write_vectored(&[IoSlice::new(b"x")]).await);
                is_timeout(stream.try_write_vectored(&[IoSlice::new(b"x")]));
            }
            // One direction after the other.
            stream.set_read_deadline(NEVER).unwrap();
            stream.readable().await.unwrap();
            let mut buf = [0; 5];
            stream.read_exact(&mut buf).await.unwrap();
            assert_eq!(&buf, b"hello");
            is_timeout(stream.write(b"x").await);
            stream.set_write_deadline(far()).unwrap();
            stream.writable().await.unwrap();
            stream.write_all(b"world").await.unwrap();
            peer.read_exact(&mut buf).unwrap();
            assert_eq!(&buf, b"world");
        }
    });
}

fn poll_read(mut stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    Pin::new(&mut stream).poll_read(cx, &mut [0])
}

/// `None`, now, a time before the runtime, and the last that `Instant` knows.
#[test]
fn never_now_and_the_ends_of_time() {
    let _alone = alone(60);
    let early = Instant::now();
    on_each(move || async move {
        let mut more = Duration::MAX;
        let last = loop {
            match Instant::now().checked_add(more) {
                Some(last) => break last,
                None => more /= 2,
            }
        };
        let centuries = Instant::now() + Duration::from_secs(400 * 365 * 86_400);
        let (stream, peer) = pair().await;
        let stream = Arc::new(stream);
        for none in [NEVER, Some(last), Some(centuries)] {
            for expired in [early, Instant::now()] {
                stream.set_deadline(none).unwrap();
                let read = waiting_read(&stream).await;
                deadlines_until(Instant::now()).await;
                peer.write_all(b"xy").await.unwrap();
                assert_eq!(read.await.unwrap().unwrap(), 1);
                stream.readable().await.unwrap();
                // Before this returns, and although something is there.
                stream.set_deadline(Some(expired)).unwrap();
                is_timeout(stream.try_read(&mut [0]));
                is_timeout(stream.try_write(b"x"));
                stream.set_deadline(none).unwrap();
                assert_eq!(stream.try_read(&mut [0]).unwrap(), 1);
                // The longest waits are taken back, and set again, like any other.
                stream.set_deadline(NEVER).unwrap();
                stream.set_deadline(none).unwrap();
            }
        }
    });
}

/// One deadline ends everything that waits in its direction, of whatever kind and executor, and nothing else.
#[test]
fn many_waiters_and_one_deadline() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, peer) = pair().await;
        let stream = Arc::new(stream);
        fill(&stream).await;
        let mut write = Box::pin(stream.write(b"x"));
        assert!(is_pending(&mut write).await);
        let mut reads = Vec::new();
        for _ in 0..64 {
            reads.push(waiting_read(&stream).await);
        }
        let (counts, wakers): (Vec<_>, Vec<_>) = (0..3).map(|_| Count::new()).unzip();
        for waker in &wakers {
            assert!(poll_read(&stream, &mut Context::from_waker(waker)).is_pending());
        }
        let mut readable = Box::pin(stream.readable());
        assert!(is_pending(&mut readable).await);
        let at = ahead(5);
        stream.set_read_deadline(at).unwrap();
        for read in reads {
            is_timeout(read.await.unwrap());
        }
        is_timeout(readable.await);
        gopark::block_in_place(|| counts.iter().for_each(|count| count.wait(1)));
        assert!(Some(Instant::now()) >= at);
        assert!(is_pending(&mut write).await);
        drop(peer);
    });
}

/// A `write_all` that waits for room and one that waits for its turn end by the same deadline; the turn is not lost.
#[test]
fn write_all_and_its_lock() {
    let _alone = alone(60);
    on_each(|| async {
        let (stream, mut peer) = std_pair().await;
        let filled = fill(&stream).await;
        stream.set_write_deadline(far()).unwrap();
        let (mut first, mut second) = (Box::pin(stream.write_all(b"1")), Box::pin(stream.write_all(b"2")));
        assert!(is_pending(&mut first).await);
        assert!(is_pending(&mut second).await);
        stream.set_write_deadline(ahead(2)).unwrap();
        is_timeout(second.await);
        is_timeout(first.await);
        is_timeout(stream.write_all(b"3").await);
        stream.set_write_deadline(NEVER).unwrap();
        let mut fourth = Box::pin(stream.write_all(b"4"));
        assert!(is_pending(&mut fourth).await);
        peer.read_exact(&mut vec![0; filled]).unwrap();
        fourth.await.unwrap();
        stream.write_all(b"5").await.unwrap();
        let mut buf = [0; 2];
        peer.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"45");
    });
}

/// Trap P1, of deadlines: what the old owner of a descriptor had set ends nothing of the new one.
#[test]
fn old_deadlines_and_new_sockets() {
    let _alone = alone(60);
    on_each(|| async {
        let mut last = Instant::now();
        for _ in 0..10 {
            let mut old = Vec::new();
            for i in 0..20 {
                let (a, b) = pair().await;
                last = Instant::now() + Duration::from_micros(50 * i);
                a.set_deadline(Some(last)).unwrap();
                b.set_deadline(Some(last)).unwrap();
                old.push((a, b));
            }
            // They strike while these come and those go.
            let mut new = Vec::new();
            for pair_of_old in old {
                drop(pair_of_old);
                new.push(pair().await);
            }
            deadlines_until(last).await;
            for (a, b) in new {
                assert_eq!(a.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                assert_eq!(a.write(b"x").await.unwrap(), 1);
                b.read_exact(&mut [0]).await.unwrap();
            }
        }
    });
}

/// On an executor of another kind, while the runtime has nothing to do: the sleeping poller is told.
#[test]
fn foreign_executor_and_idle_workers() {
    let _alone = alone(60);
    for workers in [1, 2] {
        let runtime = runtime(workers);
        let (stream, _peer) = runtime.block_on(pair());
        for _ in 0..20 {
            let at = ahead(1);
            stream.set_read_deadline(at).unwrap();
            is_timeout(futures::executor::block_on(stream.read(&mut [0])));
            assert!(Some(Instant::now()) >= at);
        }
    }
}

/// And while every worker is busy with a task that never yields: sysmon sees to it.
#[test]
fn foreign_executor_and_busy_workers() {
    let _alone = alone(60);
    for workers in [1, 2] {
        let runtime = runtime(workers);
        let (stream, _peer) = runtime.block_on(pair());
        let (stop, busy) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..workers {
            let (stop, busy) = (stop.clone(), busy.clone());
            runtime.spawn(async move {
                busy.fetch_add(1, SeqCst);
                while !stop.load(SeqCst) {
                    std::thread::yield_now();
                }
            });
        }
        while busy.load(SeqCst) < workers {
            std::thread::yield_now();
        }
        let at = ahead(5);
        stream.set_read_deadline(at).unwrap();
        is_timeout(futures::executor::block_on(stream.read(&mut [0])));
        assert!(Some(Instant::now()) >= at);
        // A stuck task delays no `block_on`, be it for a sleep.
        runtime.block_on(async { gopark::time::sleep(Duration::from_millis(1)).await });
        stop.store(true, SeqCst);
    }
}

/// When the runtime is gone, that is what everybody hears, deadline or not.
#[test]
fn shutdown_and_deadlines() {
    let _alone = alone(60);
    let gone = |error: io::Error| assert!(error.get_ref().is_some_and(|e| e.is::<RuntimeGone>()), "{error}");
    let runtime = runtime(1);
    let (expired, ahead) = runtime.block_on(pair());
    expired.set_deadline(past()).unwrap();
    ahead.set_deadline(far()).unwrap();
    let mut buf = [0];
    let mut read = Box::pin(ahead.read(&mut buf));
    assert!(poll(&mut read, &noop()).is_pending());
    drop(runtime);
    gone(futures::executor::block_on(read).unwrap_err());
    for stream in [expired, ahead] {
        gone(stream.try_read(&mut [0]).unwrap_err());
        gone(stream.set_deadline(far()).unwrap_err());
        gone(stream.set_deadline(past()).unwrap_err());
        gone(stream.set_write_deadline(NEVER).unwrap_err());
    }
}
