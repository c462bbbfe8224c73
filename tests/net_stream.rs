//! One connection: its operations, readiness, and transfers that must arrive byte for byte.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::net::{TcpStream, UdpSocket};
use gopark::yield_now;
use net::*;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

#[test]
fn write_and_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        assert_eq!(a.write(b"over").await.unwrap(), 4);
        let mut buf = [0; 16];
        assert_eq!(b.read(&mut buf).await.unwrap(), 4);
        assert_eq!(&buf[..4], b"over");
        b.write_all(b"and out").await.unwrap();
        assert_eq!(a.read(&mut buf).await.unwrap(), 7);
        assert_eq!(&buf[..7], b"and out");
        drop(b);
        assert_eq!(a.read(&mut buf).await.unwrap(), 0);
        assert_eq!(a.read(&mut buf).await.unwrap(), 0);
    });
}

#[test]
fn peek_and_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let mut buf = [0; 16];
        let mut peek = Box::pin(b.peek(&mut buf));
        assert!(is_pending(&mut peek).await);
        a.write_all(b"twice").await.unwrap();
        assert_eq!(peek.await.unwrap(), 5);
        assert_eq!(&buf[..5], b"twice");
        buf.fill(0);
        // A peek takes nothing: neither the bytes nor the readiness.
        assert_eq!(b.peek(&mut buf).await.unwrap(), 5);
        b.readable().await.unwrap();
        assert_eq!(b.read(&mut buf).await.unwrap(), 5);
        assert_eq!(&buf[..5], b"twice");
        drop(a);
        assert_eq!(b.peek(&mut buf).await.unwrap(), 0);
    });
}

#[test]
fn vectored_write_and_vectored_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let n = a.write_vectored(&[IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")]).await.unwrap();
        assert_eq!(n, 7);
        let (mut x, mut y) = ([0; 3], [0; 9]);
        let n = b.read_vectored(&mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)]).await.unwrap();
        assert_eq!((n, &x, &y[..4]), (7, b"one", &b" two"[..]));
        // Waiting, not only found at once.
        let mut bufs = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        let mut read = Box::pin(b.read_vectored(&mut bufs));
        assert!(is_pending(&mut read).await);
        a.write_all(b"three").await.unwrap();
        assert_eq!(read.await.unwrap(), 5);
        assert_eq!((&x, &y[..2]), (b"thr", &b"ee"[..]));
    });
}

/// Trap P14: one call takes 1,024 buffers at most (IOV_MAX), so it moves less than the sum of them though the kernel
/// has more, or could take more; no edge follows.
#[test]
fn more_buffers_than_a_call_takes_and_another_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        a.write_all(&[7; 3000]).await.unwrap();
        Pulse::new().await.beat().await;
        let mut bytes = vec![[0u8; 1]; 2000];
        let mut bufs: Vec<_> = bytes.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let n = b.read_vectored(&mut bufs).await.unwrap();
        assert!((1..=2000).contains(&n));
        let mut rest = vec![0; 3000 - n];
        b.read_exact(&mut rest).await.unwrap();
        assert!(rest.iter().all(|&b| b == 7));
    });
}

/// Trap P14, the same of writes.
#[test]
fn more_buffers_than_a_call_takes_and_another_write() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        Pulse::new().await.beat().await;
        let bufs: Vec<_> = (0..2000).map(|_| IoSlice::new(b"v")).collect();
        let n = a.write_vectored(&bufs).await.unwrap();
        assert!((1..=2000).contains(&n));
        a.write_all(b"on").await.unwrap();
        let mut got = vec![0; n + 2];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(&got[n..], b"on");
    });
}

#[test]
fn read_exact_and_end() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let writer = gopark::spawn(async move {
            for part in [&b"ex"[..], b"act", b"ly", b"les"] {
                a.write_all(part).await.unwrap();
                yield_now().await;
            }
        });
        let mut buf = [0; 7];
        b.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"exactly");
        let error = b.read_exact(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(&buf[..3], b"les");
        b.read_exact(&mut []).await.unwrap();
        writer.await.unwrap();
    });
}

#[test]
fn empty_buffers() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        assert_eq!(a.write(b"").await.unwrap(), 0);
        assert_eq!(b.read(&mut []).await.unwrap(), 0);
        a.write_all(b"").await.unwrap();
        a.write_all(b"x").await.unwrap();
        let mut buf = [0; 1];
        b.read_exact(&mut buf).await.unwrap();
        assert_eq!(b.read(&mut []).await.unwrap(), 0);
    });
}

/// Readiness is only observed: a second `readable` without a read between them completes as the first did.
#[test]
fn readable_and_readable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        a.write_all(b"x").await.unwrap();
        b.readable().await.unwrap();
        b.readable().await.unwrap();
        a.writable().await.unwrap();
        a.writable().await.unwrap();
        let mut buf = [0; 4];
        assert_eq!(b.try_read(&mut buf).unwrap(), 1);
        assert_eq!(b.try_read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        let mut readable = Box::pin(b.readable());
        assert!(is_pending(&mut readable).await);
        drop(a);
        readable.await.unwrap();
        b.readable().await.unwrap();
        assert_eq!(b.try_read(&mut buf).unwrap(), 0);
    });
}

/// Nothing is there, so nobody says there is, however the connection was made. That it was too early to tell is
/// excluded by a byte that goes round on another connection meanwhile.
#[test]
fn idle_and_readable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (connected, accepted) = pair().await;
        let (there, peer) = std_pair().await;
        let taken_over = TcpStream::from_std(there.into_std().unwrap()).unwrap();
        let mut all: Vec<_> = [&connected, &accepted, &taken_over].map(|s| Box::pin(s.readable())).into();
        for _ in 0..50 {
            for readable in &mut all {
                assert!(is_pending(readable).await);
            }
            pulse.beat().await;
        }
        // And each says so once there is.
        accepted.write_all(b"x").await.unwrap();
        all.remove(0).await.unwrap();
        assert!(is_pending(&mut all[0]).await && is_pending(&mut all[1]).await);
        connected.write_all(b"x").await.unwrap();
        all.remove(0).await.unwrap();
        assert!(is_pending(&mut all[0]).await);
        (&peer).write_all(b"x").unwrap();
        all.remove(0).await.unwrap();
    });
}

/// A fresh connection can be written to, and says so.
#[test]
fn fresh_and_writable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (connected, accepted) = pair().await;
        connected.writable().await.unwrap();
        accepted.writable().await.unwrap();
        let taken_over = TcpStream::from_std(connected.into_std().unwrap()).unwrap();
        taken_over.writable().await.unwrap();
    });
}

#[test]
fn try_operations() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let mut buf = [0; 4];
        assert_eq!(b.try_read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        let error = b.try_read_vectored(&mut [IoSliceMut::new(&mut buf)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        a.writable().await.unwrap();
        assert_eq!(a.try_write(b"ab").unwrap(), 2);
        a.writable().await.unwrap();
        assert_eq!(a.try_write_vectored(&[IoSlice::new(b"c"), IoSlice::new(b"d")]).unwrap(), 2);
        let mut got = Vec::new();
        while got.len() < 4 {
            b.readable().await.unwrap();
            let (mut x, mut y) = ([0; 1], [0; 1]);
            let mut both = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
            match b.try_read_vectored(&mut both) {
                Ok(n) => got.extend_from_slice(&[x[0], y[0]][..n]),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(got, b"abcd");
        drop(a);
        b.readable().await.unwrap();
        assert_eq!(b.try_read(&mut buf).unwrap(), 0);
    });
}

/// Writes until the kernel takes no more; then `writable` waits for the peer to read.
#[test]
fn full_and_writable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (a, mut peer) = std_pair().await;
        let (mut sent, mut received) = (Pattern::new(5), Pattern::new(5));
        loop {
            match a.try_write(sent.peek(10_000)) {
                Ok(n) => sent.take(n),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    // What lay in flight may have been taken off since.
                    pulse.beat().await;
                    if is_pending(&mut Box::pin(a.writable())).await {
                        break;
                    }
                }
            }
        }
        let mut writable = Box::pin(a.writable());
        for _ in 0..20 {
            pulse.beat().await;
            assert!(is_pending(&mut writable).await);
        }
        let mut buf = vec![0; 1 << 16];
        while received.taken() < sent.taken() {
            let n = peer.read(&mut buf).unwrap();
            received.check(&buf[..n]);
        }
        writable.await.unwrap();
        a.writable().await.unwrap();
        assert!(a.try_write(b"more").unwrap() > 0);
    });
}

#[test]
fn fragmenting_writer() {
    let _alone = alone(20);
    const TOTAL: usize = 200_000;
    runtime(2).run(async {
        let (a, peer) = std_pair().await;
        let writer = std::thread::spawn(move || {
            let (mut pattern, mut len) = (Pattern::new(1), 0);
            while pattern.taken() < TOTAL {
                len = len % 97 + 1;
                let n = (&peer).write(pattern.peek(len.min(TOTAL - pattern.taken()))).unwrap();
                pattern.take(n);
            }
        });
        let (mut pattern, mut len) = (Pattern::new(1), 0);
        let mut buf = [0; 512];
        loop {
            len = (len + 61) % 512;
            match a.read(&mut buf[..len + 1]).await.unwrap() {
                0 => break,
                n => pattern.check(&buf[..n]),
            }
        }
        assert_eq!(pattern.taken(), TOTAL);
        writer.join().unwrap();
    });
}

/// Sends `total` bytes in pieces of up to `piece`, then ends the stream.
async fn send(stream: &TcpStream, seed: u32, total: usize, piece: usize) {
    let mut pattern = Pattern::new(seed);
    while pattern.taken() < total {
        let n = stream.write(pattern.peek(piece.min(total - pattern.taken()))).await.unwrap();
        assert!(n > 0);
        pattern.take(n);
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end, in pieces of up to `piece`, with `slow` yields after each.
async fn receive(stream: &TcpStream, seed: u32, total: usize, piece: usize, slow: usize) {
    let mut pattern = Pattern::new(seed);
    let mut buf = vec![0; piece];
    loop {
        match stream.read(&mut buf).await.unwrap() {
            0 => break,
            n => pattern.check(&buf[..n]),
        }
        for _ in 0..slow {
            yield_now().await;
        }
    }
    assert_eq!(pattern.taken(), total);
}

async fn both_ways(total: usize, write: usize, read: usize, slow: usize) {
    let (a, b) = pair().await;
    let there = gopark::spawn(async move {
        futures::join!(send(&b, 3, total, write), receive(&b, 4, total, read, slow));
    });
    futures::join!(send(&a, 4, total, write), receive(&a, 3, total, read, slow));
    there.await.unwrap();
}

/// Trap P14: no byte and no end is lost to a short read that was taken for "drained".
#[test]
fn a_mebibyte_both_ways() {
    let _alone = alone(20);
    for workers in [1, 2] {
        let runtime = runtime(workers);
        for (write, read, slow) in [(1 << 16, 1 << 16, 0), (4096, 1000, 3), (100_000, 777, 1), (333, 1 << 16, 2)] {
            runtime.run(both_ways(1 << 20, write, read, slow));
        }
    }
}

/// Trap P14, past everything that buffers hold.
#[test]
fn sixty_four_mebibytes_both_ways() {
    let _alone = alone(120);
    runtime(2).run(both_ways(64 << 20, 1 << 18, 1 << 16, 1));
}

/// The same against threads that know nothing of gopark.
#[test]
fn eight_mebibytes_both_ways_with_a_blocking_peer() {
    let _alone = alone(20);
    const TOTAL: usize = 8 << 20;
    runtime(2).run(async {
        let (a, peer) = std_pair().await;
        let reader = peer.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let mut pattern = Pattern::new(8);
            while pattern.taken() < TOTAL {
                let n = (&peer).write(pattern.peek(TOTAL - pattern.taken())).unwrap();
                pattern.take(n);
            }
            peer.shutdown(Shutdown::Write).unwrap();
        });
        let reading = std::thread::spawn(move || {
            let mut pattern = Pattern::new(9);
            let mut buf = vec![0; 3001];
            loop {
                match (&reader).read(&mut buf).unwrap() {
                    0 => return assert_eq!(pattern.taken(), TOTAL),
                    n => pattern.check(&buf[..n]),
                }
            }
        });
        futures::join!(send(&a, 9, TOTAL, 50_000), receive(&a, 8, TOTAL, 10_000, 1));
        writing.join().unwrap();
        reading.join().unwrap();
    });
}

/// A connection that is handed to std blocks again where std's mode is set so, and can come back.
#[test]
fn into_std_and_from_std() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, mut peer) = std_pair().await;
        a.write_all(b"1").await.unwrap();
        let mut std = a.into_std().unwrap();
        std.set_nonblocking(false).unwrap();
        std.write_all(b"2").unwrap();
        let mut buf = [0; 2];
        peer.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"12");
        let late = std::thread::spawn(move || {
            peer.write_all(b"3").unwrap();
            peer
        });
        std.read_exact(&mut buf[..1]).unwrap();
        let mut peer = late.join().unwrap();
        let a = TcpStream::from_std(std).unwrap();
        let mut read = Box::pin(a.read(&mut buf));
        assert!(is_pending(&mut read).await);
        peer.write_all(b"4").unwrap();
        assert_eq!(read.await.unwrap(), 1);
        assert_eq!(buf[0], b'4');
    });
}

/// Trap P9: dropping the owned write half ends the write side, and nothing else.
#[test]
fn drop_write_half_and_read_on() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let (read, write) = a.into_split();
        write.write_all(b"last").await.unwrap();
        drop(write);
        let mut buf = [0; 8];
        b.read_exact(&mut buf[..4]).await.unwrap();
        assert_eq!(b.read(&mut buf).await.unwrap(), 0);
        b.write_all(b"still").await.unwrap();
        assert_eq!(read.read(&mut buf).await.unwrap(), 5);
        // The last half closes it.
        drop(read);
        assert!(matches!(b.read(&mut buf).await, Ok(0)));
    });
}

/// Trap P9: dropping the owned read half, or a forgotten write half, ends nothing.
#[test]
fn drop_read_half_and_write_on() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (a, b) = pair().await;
        let (read, write) = a.into_split();
        drop(read);
        write.write_all(b"on").await.unwrap();
        let mut buf = [0; 8];
        b.read_exact(&mut buf[..2]).await.unwrap();
        let mut end = Box::pin(b.read(&mut buf));
        pulse.beat().await;
        assert!(is_pending(&mut end).await);
        drop(write);
        assert_eq!(end.await.unwrap(), 0);

        let (a, b) = pair().await;
        let (read, write) = a.into_split();
        write.forget();
        let mut end = Box::pin(b.read(&mut buf));
        pulse.beat().await;
        assert!(is_pending(&mut end).await);
        drop(read);
        assert_eq!(end.await.unwrap(), 0);
    });
}

#[test]
fn split_and_reunite() {
    let _alone = alone(20);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let (a, b) = pair().await;
        let (c, d) = pair().await;
        {
            let (read, write) = a.split();
            let mut buf = [0; 4];
            let (wrote, got) = futures::join!(b.write_all(b"ab"), read.read_exact(&mut buf[..2]));
            wrote.unwrap();
            got.unwrap();
            assert_eq!(&buf[..2], b"ab");
            write.write_all(b"cd").await.unwrap();
            assert_eq!(b.peek(&mut buf).await.unwrap(), 2);
            assert!(std::ptr::eq(read.stream(), write.stream()));
        }
        let ((ar, aw), (cr, cw)) = (a.into_split(), c.into_split());
        let error = ar.reunite(cw).unwrap_err();
        assert_eq!(error.to_string(), "the halves are of two connections");
        let (ar, cw) = (error.0, error.1);
        let error = cw.reunite(ar).unwrap_err();
        let (a, c) = (aw.reunite(error.0).unwrap(), cr.reunite(error.1).unwrap());
        // Nothing was shut on the way.
        let mut buf = [0; 8];
        b.read_exact(&mut buf[..2]).await.unwrap();
        for (near, far) in [(&a, &b), (&c, &d)] {
            let mut end = Box::pin(far.read(&mut buf));
            pulse.beat().await;
            assert!(is_pending(&mut end).await);
            near.write_all(b"whole").await.unwrap();
            assert_eq!(end.await.unwrap(), 5);
        }
    });
}

/// Half-closed: what was written before arrives, then the end; the other direction goes on.
#[test]
fn shutdown_and_both_directions() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        a.write_all(b"bye").await.unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut buf = [0; 8];
        b.read_exact(&mut buf[..3]).await.unwrap();
        assert_eq!(b.read(&mut buf).await.unwrap(), 0);
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        b.write_all(b"later").await.unwrap();
        a.read_exact(&mut buf[..5]).await.unwrap();
        // A shutdown of the read side ends a read that waits,
        let mut read = Box::pin(a.read(&mut buf));
        assert!(is_pending(&mut read).await);
        a.shutdown(Shutdown::Read).unwrap();
        assert_eq!(read.await.unwrap(), 0);
        // but loses nothing that has come, and lets it be answered: so a server ends (see the head of lib.rs).
        let (a, b) = pair().await;
        b.write_all(b"request").await.unwrap();
        a.readable().await.unwrap();
        a.shutdown(Shutdown::Read).unwrap();
        a.read_exact(&mut buf[..7]).await.unwrap();
        assert_eq!(a.read(&mut buf).await.unwrap(), 0);
        a.write_all(b"answer").await.unwrap();
        b.read_exact(&mut buf[..6]).await.unwrap();
    });
}

/// A reset reaches a read that waits, a write that waits, and what comes after.
#[test]
fn reset_and_waiting_operations() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let fill = async {
            let chunk = vec![0; 1 << 20];
            loop {
                if let Err(error) = a.write(&chunk).await {
                    return error;
                }
            }
        };
        let mut fill = Box::pin(fill);
        while !is_pending(&mut fill).await {}
        let mut buf = [0; 8];
        let mut read = Box::pin(a.read(&mut buf));
        assert!(is_pending(&mut read).await);
        b.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(b);
        let (wrote, read) = futures::join!(fill, read);
        // The error is reported once; the other direction learns that the connection is over.
        let reset = |kind| matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(reset(wrote.kind()), "{wrote}");
        assert!(matches!(&read, Ok(0)) || read.as_ref().is_err_and(|e| reset(e.kind())), "{read:?}");
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(a.read(&mut buf).await.unwrap(), 0);
    });
}

#[test]
fn reset_and_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let mut buf = [0; 8];
        let mut read = Box::pin(a.read(&mut buf));
        assert!(is_pending(&mut read).await);
        b.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(b);
        assert_eq!(read.await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn close_and_waiting_operations() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let mut buf = [0; 8];
        let mut read = Box::pin(a.read(&mut buf));
        let mut readable = Box::pin(a.readable());
        assert!(is_pending(&mut read).await && is_pending(&mut readable).await);
        a.close();
        a.close();
        let closed = |e: std::io::Error| {
            assert_eq!(e.kind(), ErrorKind::NotConnected);
            assert!(e.get_ref().unwrap().is::<gopark::net::Closed>());
        };
        closed(read.await.unwrap_err());
        closed(readable.await.unwrap_err());
        closed(a.write_all(b"x").await.unwrap_err());
        closed(a.try_read(&mut buf).unwrap_err());
        closed(a.writable().await.unwrap_err());
        assert_eq!(b.read(&mut buf).await.unwrap(), 0);
    });
}

/// What asks for nothing is refused by a closed socket, too, and by one past its deadline.
#[test]
fn empty_operations_and_close_and_deadline() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _b) = pair().await;
        let udp = UdpSocket::bind(ANY).await.unwrap();
        let past = Some(Instant::now());
        for (close, kind) in [(false, ErrorKind::TimedOut), (true, ErrorKind::NotConnected)] {
            if close {
                a.close();
                udp.close();
            } else {
                a.set_deadline(past).unwrap();
                udp.set_deadline(past).unwrap();
            }
            assert_eq!(a.read(&mut []).await.unwrap_err().kind(), kind);
            assert_eq!(a.peek(&mut []).await.unwrap_err().kind(), kind);
            assert_eq!(a.try_read(&mut []).unwrap_err().kind(), kind);
            assert_eq!(a.write(&[]).await.unwrap_err().kind(), kind);
            assert_eq!(udp.recv_many(&mut [], &mut Vec::new()).await.unwrap_err().kind(), kind);
            assert_eq!(udp.send_many(&[]).await.unwrap_err().kind(), kind);
        }
    });
}
