//! UDP: datagrams one by one and many at once, with a peer and without, empty, cut, refused.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::net::{Closed, RuntimeGone, UdpSocket};
use net::{ANY, alone, has_ipv6, is_pending, runtime};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn bound() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(ANY).await.unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// Two sockets, each the other's peer.
async fn connected() -> (UdpSocket, UdpSocket) {
    let ((a, a_addr), (b, b_addr)) = (bound().await, bound().await);
    a.connect(b_addr).await.unwrap();
    b.connect(a_addr).await.unwrap();
    assert_eq!((a.peer_addr().unwrap(), b.peer_addr().unwrap()), (b_addr, a_addr));
    (a, b)
}

#[test]
fn send_to_and_recv_from() {
    let _alone = alone(20);
    runtime(1).run(async {
        let ((a, a_addr), (b, b_addr)) = (bound().await, bound().await);
        let mut buf = [0; 16];
        let mut recv = Box::pin(b.recv_from(&mut buf));
        assert!(is_pending(&mut recv).await);
        assert_eq!(a.send_to(b"there", b_addr).await.unwrap(), 5);
        assert_eq!(recv.await.unwrap(), (5, a_addr));
        assert_eq!(&buf[..5], b"there");
        assert_eq!(b.try_send_to(b"back", a_addr).unwrap(), 4);
        assert_eq!(a.peek_from(&mut buf).await.unwrap(), (4, b_addr));
        assert_eq!(a.peek(&mut buf).await.unwrap(), 4);
        assert_eq!(a.try_recv_from(&mut buf).unwrap(), (4, b_addr));
        assert_eq!(&buf[..4], b"back");
        assert_eq!(a.try_recv_from(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        // Without a peer there is nobody to send to.
        assert!(a.peer_addr().is_err() && a.send(b"x").await.is_err());
        let nowhere: &[SocketAddr] = &[];
        assert_eq!(a.send_to(b"x", nowhere).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(UdpSocket::bind(nowhere).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let error = UdpSocket::bind(a_addr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&a_addr.to_string()), "{error}");
        // The first that can be had.
        assert_eq!(UdpSocket::bind(&[a_addr, ANY.parse().unwrap()][..]).await.unwrap().peer_addr().ok(), None);
        a.send_to(b"by name", ("localhost", b_addr.port())).await.unwrap();
    });
}

#[test]
fn connect_and_only_the_peer_is_heard() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = connected().await;
        let (stranger, _) = bound().await;
        stranger.send_to(b"stranger", a.local_addr().unwrap()).await.unwrap();
        assert_eq!(b.send(b"peer").await.unwrap(), 4);
        let mut buf = [0; 16];
        assert_eq!(a.recv(&mut buf).await.unwrap(), 4);
        assert_eq!(&buf[..4], b"peer");
        assert_eq!(a.try_send(b"answer").unwrap(), 6);
        b.readable().await.unwrap();
        assert_eq!(b.try_recv(&mut buf).unwrap(), 6);
        a.send_vectored(&[IoSlice::new(b"two "), IoSlice::new(b"parts")]).await.unwrap();
        let (mut x, mut y) = ([0; 4], [0; 8]);
        let got = b.recv_msg(&mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)]).await.unwrap();
        assert_eq!((got.len, got.addr, got.truncated), (9, a.local_addr().unwrap(), false));
        assert_eq!((&x, &y[..5]), (b"two ", &b"parts"[..]));
    });
}

/// Go's TestUDPZeroBytePayload and TestUDPZeroByteBuffer.
#[test]
fn zero_byte_datagrams_and_empty_buffers() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = connected().await;
        let from = a.local_addr().unwrap();
        let mut buf = [7; 4];
        let mut recv = Box::pin(b.recv(&mut buf));
        assert!(is_pending(&mut recv).await);
        assert_eq!(a.send(b"").await.unwrap(), 0);
        assert_eq!(recv.await.unwrap(), 0);
        for _ in 0..3 {
            assert_eq!(a.send_to(b"", b.local_addr().unwrap()).await.unwrap(), 0);
        }
        assert_eq!(b.recv_from(&mut buf).await.unwrap(), (0, from));
        let got = b.recv_msg(&mut [IoSliceMut::new(&mut buf)]).await.unwrap();
        assert_eq!((got.len, got.truncated), (0, false));
        assert_eq!(b.try_recv(&mut buf).unwrap(), 0);
        // An empty buffer takes a datagram all the same.
        for _ in 0..4 {
            a.send(b"lost").await.unwrap();
        }
        assert_eq!(b.recv(&mut []).await.unwrap(), 0);
        assert_eq!(b.peek(&mut []).await.unwrap(), 0);
        assert_eq!(b.try_recv(&mut []).unwrap(), 0);
        assert_eq!(b.recv_from(&mut []).await.unwrap(), (0, from));
        let got = b.recv_msg(&mut []).await.unwrap();
        assert_eq!((got.len, got.addr, got.truncated), (0, from, true));
        let mut recv = Box::pin(b.recv(&mut []));
        assert!(is_pending(&mut recv).await);
        let mut peek = Box::pin(b.peek(&mut []));
        assert!(is_pending(&mut peek).await);
    });
}

#[test]
fn datagram_is_longer_than_the_buffer() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = connected().await;
        for _ in 0..4 {
            a.send(b"too long").await.unwrap();
        }
        a.send(b"fits").await.unwrap();
        let mut buf = [0; 4];
        assert_eq!(b.recv(&mut buf).await.unwrap(), 4);
        assert_eq!(&buf, b"too ");
        let got = b.recv_msg(&mut [IoSliceMut::new(&mut buf)]).await.unwrap();
        assert_eq!((got.len, got.truncated), (4, true));
        let got = b.try_recv_msg(&mut [IoSliceMut::new(&mut buf)]).unwrap();
        assert_eq!((got.len, got.truncated), (4, true));
        let (mut one, mut two) = ([0; 7], [0; 4]);
        let (bufs, mut got) = (&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)], Vec::new());
        assert_eq!(b.recv_many(bufs, &mut got).await.unwrap(), 2);
        assert_eq!(got.iter().map(|r| (r.len, r.truncated)).collect::<Vec<_>>(), [(7, true), (4, false)]);
        assert_eq!((&one, &two), (b"too lon", b"fits"));
        let error = a.send(&[0; 70_000]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    });
}

#[test]
fn many_to_many() {
    let _alone = alone(20);
    runtime(1).run(async {
        let ((a, a_addr), (b, b_addr), (c, c_addr)) = (bound().await, bound().await, bound().await);
        // More than one call takes, to two receivers in turn, of growing lengths.
        let texts: Vec<_> = (0..50).map(|i| vec![i as u8; i]).collect();
        let to = |i: usize| Some(if i % 2 == 0 { b_addr } else { c_addr });
        let datagrams: Vec<_> = texts.iter().enumerate().map(|(i, t)| (IoSlice::new(t), to(i))).collect();
        let mut sent = 0;
        while sent < datagrams.len() {
            let n = a.send_many(&datagrams[sent..]).await.unwrap();
            assert!((1..=32).contains(&n));
            sent += n;
        }
        for (socket, first) in [(&b, 0), (&c, 1)] {
            let mut space = vec![[0xff; 64]; 40];
            let mut bufs: Vec<_> = space.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let mut received = Vec::new();
            while received.len() < 25 {
                // Appended to what the calls before have brought.
                let at = received.len();
                let n = socket.recv_many(&mut bufs[at..], &mut received).await.unwrap();
                assert_eq!(received.len(), at + n);
            }
            assert_eq!(received.len(), 25);
            for (k, (got, buf)) in received.iter().zip(&space).enumerate() {
                let i = first + 2 * k;
                assert_eq!((got.len, got.addr, got.truncated), (i, a_addr, false));
                assert!(buf[..i].iter().all(|byte| *byte == i as u8) && buf[i..].iter().all(|byte| *byte == 0xff));
            }
        }
        // Nothing asked for: nothing waited for.
        assert!(is_pending(&mut Box::pin(b.recv(&mut []))).await);
        assert_eq!(b.recv_many(&mut [], &mut Vec::new()).await.unwrap(), 0);
        assert_eq!(a.send_many(&[]).await.unwrap(), 0);

        // To the peer. One that waits is given what is there, not what would fill its buffers.
        a.connect(b_addr).await.unwrap();
        let (mut x, mut y) = ([0; 8], [0; 8]);
        let bufs = &mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        let mut received = Vec::new();
        let mut recv = Box::pin(b.recv_many(bufs, &mut received));
        assert!(is_pending(&mut recv).await);
        assert_eq!(a.send_many(&[(IoSlice::new(b""), None)]).await.unwrap(), 1);
        assert_eq!(recv.await.unwrap(), 1);
        assert_eq!((received.len(), received[0].len, received[0].addr), (1, 0, a_addr));
        // An error of the second comes when it is the first.
        let long = [0; 70_000];
        let datagrams = [(IoSlice::new(b"x"), None), (IoSlice::new(&long), None)];
        assert_eq!(a.send_many(&datagrams).await.unwrap(), 1);
        let error = a.send_many(&datagrams[1..]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    });
}

#[test]
fn nobody_is_there_and_the_error_passes() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _) = bound().await;
        let (nobody, addr) = bound().await;
        a.connect(addr).await.unwrap();
        drop(nobody);
        let mut buf = [0; 8];
        let mut recv = Box::pin(a.recv(&mut buf));
        assert!(is_pending(&mut recv).await);
        a.send(b"anybody?").await.unwrap();
        assert_eq!(recv.await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // Somebody is there again.
        let b = UdpSocket::bind(addr).await.unwrap();
        b.send_to(b"here", a.local_addr().unwrap()).await.unwrap();
        assert_eq!(a.recv(&mut buf).await.unwrap(), 4);
        assert!(a.take_error().unwrap().is_none());
    });
}

/// Every datagram reaches one of the tasks that wait, and each of them gets one.
#[test]
fn many_tasks_on_one_socket() {
    const N: usize = 20;
    let _alone = alone(30);
    runtime(2).run(async {
        let (a, b) = connected().await;
        let b = Arc::new(b);
        let tasks: Vec<_> = (0..N)
            .map(|_| {
                let b = b.clone();
                gopark::spawn(async move {
                    let mut buf = [0; 8];
                    assert_eq!(b.recv(&mut buf).await.unwrap(), 1);
                    buf[0]
                })
            })
            .collect();
        for i in 0..N as u8 {
            a.send(&[i]).await.unwrap();
        }
        let mut got = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        got.sort_unstable();
        assert_eq!(got, (0..N as u8).collect::<Vec<_>>());
    });
}

#[test]
fn close_wakes_whoever_waits() {
    let _alone = alone(20);
    runtime(2).run(async {
        // With a peer and without: shutdown(2) does nothing for the latter.
        for socket in [bound().await.0, connected().await.0] {
            let (mut x, mut y, mut z) = ([0; 8], [0; 8], [0; 8]);
            let (bufs, received) = (&mut [IoSliceMut::new(&mut z)], &mut Vec::new());
            let (mut recv, mut from) = (Box::pin(socket.recv(&mut x)), Box::pin(socket.recv_from(&mut y)));
            let (mut many, mut readable) = (Box::pin(socket.recv_many(bufs, received)), Box::pin(socket.readable()));
            assert!(is_pending(&mut recv).await && is_pending(&mut from).await);
            assert!(is_pending(&mut many).await && is_pending(&mut readable).await);
            socket.close();
            socket.close();
            let errors = [
                recv.await.unwrap_err(),
                from.await.unwrap_err(),
                many.await.unwrap_err(),
                readable.await.unwrap_err(),
                socket.send_to(b"x", ANY).await.unwrap_err(),
                socket.writable().await.unwrap_err(),
                socket.set_deadline(None).unwrap_err(),
            ];
            for error in errors {
                assert!(error.get_ref().unwrap().is::<Closed>(), "{error}");
            }
        }
    });
}

#[test]
fn deadlines() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = connected().await;
        let mut buf = [0; 8];
        let mut recv = Box::pin(b.recv(&mut buf));
        assert!(is_pending(&mut recv).await);
        b.set_read_deadline(Some(Instant::now() + Duration::from_millis(2))).unwrap();
        assert_eq!(recv.await.unwrap_err().kind(), ErrorKind::TimedOut);
        // It stays so, even with something there, and sending is another matter.
        a.send(b"x").await.unwrap();
        assert_eq!(b.recv(&mut buf).await.unwrap_err().kind(), ErrorKind::TimedOut);
        b.send(b"y").await.unwrap();
        b.set_read_deadline(None).unwrap();
        assert_eq!(b.recv(&mut buf).await.unwrap(), 1);
        b.set_write_deadline(Some(Instant::now())).unwrap();
        assert_eq!(b.send(b"y").await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(b.send_many(&[(IoSlice::new(b"y"), None)]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        b.set_deadline(None).unwrap();
        b.send(b"y").await.unwrap();
    });
}

#[test]
fn options() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _) = bound().await;
        assert!(!a.broadcast().unwrap());
        a.set_broadcast(true).unwrap();
        assert!(a.broadcast().unwrap());
        a.set_ttl(7).unwrap();
        assert_eq!(a.ttl().unwrap(), 7);
        a.set_multicast_loop_v4(false).unwrap();
        assert!(!a.multicast_loop_v4().unwrap());
        a.set_multicast_ttl_v4(5).unwrap();
        assert_eq!(a.multicast_ttl_v4().unwrap(), 5);
        let (group, interface) = ("239.255.77.88".parse().unwrap(), "127.0.0.1".parse().unwrap());
        a.join_multicast_v4(&group, &interface).unwrap();
        a.leave_multicast_v4(&group, &interface).unwrap();
        if has_ipv6() {
            let a = UdpSocket::bind("[::1]:0").await.unwrap();
            a.set_multicast_loop_v6(false).unwrap();
            assert!(!a.multicast_loop_v6().unwrap());
        }
    });
}

#[test]
fn std_and_back_and_after_the_runtime() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let socket = runtime.run(async {
        let std = std::net::UdpSocket::bind(ANY).unwrap();
        let (fd, addr) = (std.as_raw_fd(), std.local_addr().unwrap());
        let socket = UdpSocket::from_std(std).unwrap();
        assert!(socket.as_raw_fd() == fd && socket.as_fd().as_raw_fd() == fd);
        assert!(is_pending(&mut Box::pin(socket.recv(&mut [0; 1]))).await);
        let std = socket.into_std().unwrap();
        assert_eq!(std.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        std.send_to(b"self", addr).unwrap();
        let socket = UdpSocket::from_std(std).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).await.unwrap(), (4, addr));
        socket
    });
    drop(runtime);
    let error = futures::executor::block_on(socket.recv(&mut [0; 8])).unwrap_err();
    assert!(error.get_ref().unwrap().is::<RuntimeGone>());
}
