//! Listening: settings, many acceptors, close; and what an acceptor does when there is no descriptor left.
//!
//! Some tests of this file take every descriptor of the process, so one runs at a time.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::StreamExt;
use futures::future::join_all;
use gopark::net::{Closed, ListenConfig, TcpListener, TcpStream, UnixListener};
use gopark::{spawn, yield_now};
use net::*;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};
use support::{child, is_child};

#[test]
fn address_in_use() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let error = TcpListener::bind(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::AddrInUse, &addr.to_string());
        // The next address will do.
        let other = TcpListener::bind(&[addr, ANY.parse().unwrap()][..]).await.unwrap();
        assert_ne!(other.local_addr().unwrap(), addr);
        // Once nobody listens there, it can be listened on again, though connections linger.
        let client = TcpStream::connect(addr).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        drop((listener, server, client));
        TcpListener::bind(addr).await.unwrap();
    });
}

/// What a listening socket says of its queue: (waiting, how many may). In TCP_INFO, which has other fields for it
/// otherwise: eight bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked.
fn queue_of(listener: &TcpListener) -> (u32, u32) {
    let mut info = [0u32; 64];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe {
        libc::getsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len)
    };
    assert_eq!(result, 0);
    (info[6], info[7])
}

/// The queue is as long as the system allows.
#[test]
fn backlog() {
    let _alone = alone(60);
    runtime(1).run(async {
        let somaxconn: u32 = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        let listener = TcpListener::bind(ANY).await.unwrap();
        assert_eq!(queue_of(&listener), (0, somaxconn));
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..10).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        assert_eq!(queue_of(&listener).0, 10);
        for client in &clients {
            assert_eq!(listener.accept().await.unwrap().1, client.local_addr().unwrap());
        }
    });
}

#[test]
fn incoming_and_close() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut incoming = listener.incoming();
        let mut client = std::net::TcpStream::connect(addr).unwrap();
        let stream = incoming.next().await.unwrap().unwrap();
        client.write_all(b"x").unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 1);
        let mut next = Box::pin(incoming.next());
        assert!(is_pending(&mut next).await);
        listener.close();
        assert!(next.await.is_none());
        assert!(incoming.next().await.is_none());
        let error = std::net::TcpStream::connect(addr).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        // The connection is no worse for it.
        client.write_all(b"y").unwrap();
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 1);
    });
}

/// Every acceptor that waits learns of the close.
#[test]
fn close_and_many_acceptors() {
    let _alone = alone(60);
    runtime(2).run(async {
        let listener = std::sync::Arc::new(TcpListener::bind(ANY).await.unwrap());
        let acceptors: Vec<_> = (0..20)
            .map(|_| {
                let listener = listener.clone();
                gopark::spawn(async move { listener.accept().await.map(|_| ()).unwrap_err() })
            })
            .collect();
        gopark::yield_now().await;
        listener.close();
        for acceptor in acceptors {
            assert!(acceptor.await.unwrap().get_ref().unwrap().is::<gopark::net::Closed>());
        }
    });
}

/// A listener of std's, there and back.
#[test]
fn listener_from_std() {
    let _alone = alone(60);
    runtime(1).run(async {
        let std = std::net::TcpListener::bind(ANY).unwrap();
        let addr = std.local_addr().unwrap();
        let early = std::net::TcpStream::connect(addr).unwrap();
        let listener = TcpListener::from_std(std).unwrap();
        assert_eq!(listener.accept().await.unwrap().1, early.local_addr().unwrap());
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        let late = std::net::TcpStream::connect(addr).unwrap();
        assert_eq!(accept.await.unwrap().1, late.local_addr().unwrap());
        let std = listener.into_std().unwrap();
        std.set_nonblocking(false).unwrap();
        let last = std::net::TcpStream::connect(addr).unwrap();
        assert_eq!(std.accept().unwrap().1, last.local_addr().unwrap());
    });
}

/// Once it is closed, or dropped, its address refuses, and can be listened on at once. (Go's ListenAfterClose and
/// TestListenCloseListen.)
#[test]
fn listen_after_close() {
    let _alone = alone(60);
    runtime(1).run(async {
        let mut listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        for round in 0..20 {
            let (client, accepted) = futures::join!(TcpStream::connect(addr), listener.accept());
            let (client, (accepted, _)) = (client.unwrap(), accepted.unwrap());
            if round % 2 == 0 {
                listener.close();
                listener.close();
                assert!(listener.accept().await.unwrap_err().get_ref().unwrap().is::<Closed>());
                assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
            drop(listener);
            assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            listener = TcpListener::bind(addr).await.unwrap();
            // The connections of the one before go on.
            client.write_all(b"x").await.unwrap();
            accepted.read_exact(&mut [0]).await.unwrap();
        }
    });
}

/// Go's TestTCPConcurrentAccept: each of many connections is given to exactly one of many acceptors.
#[test]
fn tcp_concurrent_accept() {
    let _alone = alone(60);
    runtime(4).run(async {
        let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
        let addr = listener.local_addr().unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let acceptors: Vec<_> = (0..10)
            .map(|_| {
                let (listener, taken) = (listener.clone(), taken.clone());
                spawn(async move {
                    while let Ok((_, from)) = listener.accept().await {
                        taken.lock().unwrap().push(from);
                    }
                })
            })
            .collect();
        let dialled = (0..10).map(|_| {
            spawn(async move {
                let mut from = Vec::new();
                for _ in 0..30 {
                    let mut stream = TcpStream::connect(addr).await.unwrap();
                    from.push(stream.local_addr().unwrap());
                    // The acceptor drops it.
                    assert_eq!(futures::AsyncReadExt::read(&mut stream, &mut [0]).await.unwrap(), 0);
                }
                from
            })
        });
        let mut dialled: Vec<_> = join_all(dialled).await.into_iter().flat_map(Result::unwrap).collect();
        listener.close();
        for acceptor in acceptors {
            acceptor.await.unwrap();
        }
        // A port may come twice, as long as it was dialled twice.
        let mut taken = std::mem::take(&mut *taken.lock().unwrap());
        dialled.sort();
        taken.sort();
        assert_eq!(taken, dialled);
    });
}

const ACCEPTORS: usize = 5;

/// Offers `each` connections for each acceptor, one at a time when all of them wait; returns who got how many.
async fn shares(each: usize) -> [usize; ACCEPTORS] {
    let pulse = Pulse::new().await;
    let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
    let addr = listener.local_addr().unwrap();
    let waits: Arc<[AtomicBool; ACCEPTORS]> = Arc::default();
    let (taken, mut takers) = futures::channel::mpsc::unbounded();
    for id in 0..ACCEPTORS {
        let (listener, waits, taken) = (listener.clone(), waits.clone(), taken.clone());
        drop(spawn(async move {
            loop {
                let mut accept = Box::pin(listener.accept());
                let accepted = std::future::poll_fn(|cx| {
                    let polled = accept.as_mut().poll(cx);
                    waits[id].store(polled.is_pending(), Ordering::SeqCst);
                    polled
                });
                match accepted.await {
                    Ok(_) => taken.unbounded_send(id).unwrap(),
                    Err(_) => return,
                }
            }
        }));
    }
    let mut shares = [0; ACCEPTORS];
    for _ in 0..each * ACCEPTORS {
        while !waits.iter().all(|waits| waits.load(Ordering::SeqCst)) {
            yield_now().await;
        }
        // Whoever was given a turn with nothing in it has found that out, and waits again.
        pulse.beat().await;
        let _client = std::net::TcpStream::connect(addr).unwrap();
        shares[takers.next().await.unwrap()] += 1;
    }
    listener.close();
    shares
}

/// K connections for each of N acceptors, offered one at a time: each gets K of them, give or take one; with several
/// workers at least half as many. A thread that the system stops at the wrong moment can disturb that, but not always.
#[test]
fn every_acceptor_gets_its_share() {
    const K: usize = 40;
    let _alone = alone(60);
    for (workers, allowed) in [(1, K - 1..=K + 1), (4, K / 2..=K * 2)] {
        let tries = (0..5).map(|_| runtime(workers).run(shares(K)));
        let seen: Vec<_> = tries.take_while(|shares| !shares.iter().all(|n| allowed.contains(n))).collect();
        assert!(seen.len() < 5, "{workers} workers: {seen:?}");
    }
}

/// A queue as long as asked for.
#[test]
fn backlog_of_the_config() {
    let _alone = alone(60);
    runtime(1).run(async {
        for asked in [1, 7, 100] {
            let listener = ListenConfig::new().backlog(asked).listen(ANY).await.unwrap();
            assert_eq!(queue_of(&listener), (0, asked));
        }
        // More than the system allows, and more than fits the call.
        let listener = ListenConfig::new().backlog(u32::MAX).listen(ANY).await.unwrap();
        assert_eq!(queue_of(&listener), queue_of(&TcpListener::bind(ANY).await.unwrap()));
    });
}

/// Without reuse_addr, a port is in use as long as one of its connections is. (Not one that has ended and lingers: a busy
/// system remembers only so many of those.)
#[test]
fn reuse_addr() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client, accepted) = futures::join!(TcpStream::connect(addr), listener.accept());
        let _both = (client.unwrap(), accepted.unwrap());
        drop(listener);
        let error = ListenConfig::new().reuse_addr(false).listen(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::AddrInUse, &addr.to_string());
        ListenConfig::new().listen(addr).await.unwrap();
    });
}

/// Several listeners share a port, and each connection goes to one of them.
#[test]
fn reuse_port() {
    let _alone = alone(60);
    runtime(1).run(async {
        let config = ListenConfig::new().reuse_port(true);
        let first = config.listen(ANY).await.unwrap();
        let addr = first.local_addr().unwrap();
        let second = config.listen(addr).await.unwrap();
        assert_eq!(second.local_addr().unwrap(), addr);
        let mut counts = [0; 2];
        // The system shares them out by the ports, so each is given some in the end.
        while counts.contains(&0) {
            let client = TcpStream::connect(addr).await.unwrap();
            let (mut a, mut b) = (Box::pin(first.accept()), Box::pin(second.accept()));
            let (who, from) = std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
                Poll::Ready(accepted) => Poll::Ready((0, accepted.unwrap().1)),
                Poll::Pending => b.as_mut().poll(cx).map(|accepted| (1, accepted.unwrap().1)),
            })
            .await;
            assert_eq!(from, client.local_addr().unwrap());
            counts[who] += 1;
        }
        // Who does not share gets no part.
        let error = TcpListener::bind(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::AddrInUse, &addr.to_string());
    });
}

/// `[::]` takes both families, or IPv6 alone, whatever the system's default is.
#[test]
fn only_v6() {
    let _alone = alone(60);
    if !has_ipv6() {
        return;
    }
    runtime(1).run(async {
        let both = TcpListener::bind("[::]:0").await.unwrap();
        let port = both.local_addr().unwrap().port();
        let (client, accepted) = futures::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), both.accept());
        client.unwrap();
        assert_eq!(accepted.unwrap().1.ip(), Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        drop(both);

        let v6 = ListenConfig::new().only_v6(true).listen("[::]:0").await.unwrap();
        let port = v6.local_addr().unwrap().port();
        // The other half of the port is free.
        let v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap();
        for (listener, addr) in
            [(&v6, SocketAddr::from((Ipv6Addr::LOCALHOST, port))), (&v4, (Ipv4Addr::LOCALHOST, port).into())]
        {
            let (client, accepted) = futures::join!(TcpStream::connect(addr), listener.accept());
            assert_eq!(client.unwrap().local_addr().unwrap(), accepted.unwrap().1);
        }
        // It says nothing of an IPv4 address.
        ListenConfig::new().only_v6(true).listen(ANY).await.unwrap();
    });
}

/// Accepted connections have what the listener was told, though accepting sets nothing.
#[test]
fn keepalive_of_accepted_connections() {
    let _alone = alone(60);
    runtime(1).run(async {
        let secs = Duration::from_secs;
        for (asked, expected) in [
            (Some(secs(77)), Some(secs(77))),
            // The kernel counts in seconds.
            (Some(Duration::from_millis(1)), Some(secs(1))),
            (None, None),
        ] {
            let listener = ListenConfig::new().keepalive(asked).listen(ANY).await.unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let socket = SockRef::from(&accepted);
            assert_eq!(socket.keepalive().unwrap(), expected.is_some());
            if let Some(expected) = expected {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), expected);
            }
            assert!(accepted.nodelay().unwrap());
        }
    });
}

/// The hook sees each socket before it is bound, and its error gives the address up.
#[test]
fn control_of_a_listener() {
    let _alone = alone(60);
    runtime(1).run(async {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let refused: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let addrs = [refused, ANY.parse().unwrap()];
        let config = ListenConfig::new().control({
            let seen = seen.clone();
            move |socket, addr| {
                let local = SockRef::from(&socket).local_addr()?.as_socket().unwrap();
                assert!(local.ip().is_unspecified() && local.port() == 0);
                SockRef::from(&socket).set_recv_buffer_size(10_000)?;
                seen.lock().unwrap().push(addr);
                if addr == refused { Err(ErrorKind::PermissionDenied.into()) } else { Ok(()) }
            }
        });
        assert!(format!("{config:?}").contains("control"));
        let listener = config.listen(&addrs[..]).await.unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), addrs[1].ip());
        // The kernel doubles it, for its own needs.
        assert_eq!(SockRef::from(&listener).recv_buffer_size().unwrap(), 20_000);
        assert_eq!(*seen.lock().unwrap(), addrs);
        let error = config.clone().listen(refused).await.unwrap_err();
        is_address_error(&error, ErrorKind::PermissionDenied, "127.0.0.2:0");
    });
}

/// Trap P16: while there is no descriptor left an acceptor waits, its worker serves others, and it takes the connection
/// by itself when there are some again, though no further edge comes.
#[test]
fn out_of_descriptors_and_they_come_free() {
    let _alone = alone(60);
    runtime(1).run(async {
        let (a, b) = pair().await;
        drop(spawn(async move {
            let mut buf = [0; 4];
            while b.read_exact(&mut buf).await.is_ok() {
                b.write_all(&buf).await.unwrap();
            }
        }));
        let listener = TcpListener::bind(ANY).await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut accept = Box::pin(listener.accept());
        let limit = Limit::exhausted();
        assert!(is_pending(&mut accept).await);
        for _ in 0..100 {
            a.write_all(b"ping").await.unwrap();
            a.read_exact(&mut [0; 4]).await.unwrap();
        }
        assert!(is_pending(&mut accept).await);
        drop(limit);
        assert_eq!(accept.await.unwrap().1, client.local_addr().unwrap());
    });
}

/// Once in the life of a process that is said on stderr, with what may be done.
#[test]
fn out_of_descriptors_and_a_line_on_stderr() {
    const TEST: &str = "out_of_descriptors_and_a_line_on_stderr";
    let _alone = alone(60);
    if !is_child(TEST) {
        let output = child(TEST, &[]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("gopark: accept: ")).collect();
        assert!(matches!(lines[..], [line] if line.contains("raise_nofile_limit")), "{text}");
        return;
    }
    runtime(1).run(async {
        for _ in 0..3 {
            let listener = TcpListener::bind(ANY).await.unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut accept = Box::pin(listener.accept());
            let limit = Limit::exhausted();
            assert!(is_pending(&mut accept).await);
            drop(limit);
            assert_eq!(accept.await.unwrap().1, client.local_addr().unwrap());
        }
    });
}

/// Trap P16: it tries again after 5 ms, 10 ms, and so on, and is woken for nothing else, though each connection that
/// comes makes an edge.
#[test]
fn out_of_descriptors_and_nothing_spins() {
    const PAUSES: u32 = 6;
    let _alone = alone(60);
    let runtime = runtime(1);
    let _inside = runtime.handle().enter();
    let listener = runtime.block_on(TcpListener::bind(ANY)).unwrap();
    let addr = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..10).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let (count, waker) = Count::new();
    let mut accept = Box::pin(listener.accept());
    let limit = Limit::exhausted();
    let start = Instant::now();
    assert!(poll(&mut accept, &waker).is_pending());
    for (i, client) in clients.iter().enumerate() {
        client.connect(&addr.into()).unwrap();
        // An edge may wake it: it waits on.
        if i % 2 == 0 {
            assert!(poll(&mut accept, &waker).is_pending());
        }
    }
    let least = |pauses| Duration::from_millis((0..pauses).map(|i| (5 << i) - 1).sum());
    // Ten edges and the pauses, no more.
    for wakes in 1.. {
        if start.elapsed() >= least(PAUSES) {
            break;
        }
        count.wait(wakes);
        assert!(poll(&mut accept, &waker).is_pending());
        let pauses = count.wakes().saturating_sub(clients.len()) as u32;
        assert!(start.elapsed() >= least(pauses), "{pauses} pauses in {:?}", start.elapsed());
    }
    drop(limit);
    runtime.block_on(accept).unwrap();
    for _ in 1..clients.len() {
        runtime.block_on(listener.accept()).unwrap();
    }
}

/// One timer wakes one acceptor. All the others that have a connection get their turn from him.
#[test]
fn out_of_descriptors_and_many_acceptors() {
    let _alone = alone(60);
    for workers in [1, 4] {
        runtime(workers).run(async {
            let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
            let addr = listener.local_addr().unwrap();
            let mut clients: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
            let tried = Arc::new(AtomicUsize::new(0));
            let limit = Limit::exhausted();
            let acceptors: Vec<_> = (0..20)
                .map(|_| {
                    let (listener, tried) = (listener.clone(), tried.clone());
                    spawn(async move {
                        let mut accept = Box::pin(listener.accept());
                        assert!(is_pending(&mut accept).await);
                        tried.fetch_add(1, Ordering::SeqCst);
                        let (stream, _) = accept.await?;
                        stream.write_all(b"x").await
                    })
                })
                .collect();
            while tried.load(Ordering::SeqCst) < 20 {
                yield_now().await;
            }
            drop(limit);
            for acceptor in acceptors {
                acceptor.await.unwrap().unwrap();
            }
            for client in &mut clients {
                client.read_exact(&mut [0]).unwrap();
            }
        });
    }
}

/// The acceptor that began the pause is gone when it ends: another one takes the connection, be it one that waited or
/// one that comes later.
#[test]
fn out_of_descriptors_and_the_acceptor_is_dropped() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        let mut first = Box::pin(listener.accept());
        let mut second = Box::pin(listener.accept());
        let limit = Limit::exhausted();
        assert!(is_pending(&mut first).await);
        assert!(is_pending(&mut second).await);
        drop(first);
        drop(limit);
        assert_eq!(second.await.unwrap().1, clients[0].local_addr().unwrap());

        let mut first = Box::pin(listener.accept());
        let limit = Limit::exhausted();
        assert!(is_pending(&mut first).await);
        drop(first);
        drop(limit);
        assert_eq!(listener.accept().await.unwrap().1, clients[1].local_addr().unwrap());
    });
}

/// A close and a deadline end the pause as they end any other wait; another deadline lets it go on.
#[test]
fn out_of_descriptors_and_close_and_deadline() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let limit = Limit::exhausted();
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        listener.set_deadline(Some(Instant::now())).unwrap();
        assert_eq!(accept.await.unwrap_err().kind(), ErrorKind::TimedOut);
        listener.set_deadline(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        assert_eq!(listener.accept().await.unwrap_err().kind(), ErrorKind::TimedOut);
        listener.set_deadline(None).unwrap();
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        drop(limit);
        assert_eq!(accept.await.unwrap().1, client.local_addr().unwrap());

        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let limit = Limit::exhausted();
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        listener.close();
        assert!(accept.await.unwrap_err().get_ref().unwrap().is::<Closed>());
        drop(limit);
    });
}

/// What ends neither the listener nor the pause is told: here, an accept on a socket that no longer listens.
#[test]
fn other_errors_of_accept_are_told() {
    let _alone = alone(60);
    runtime(1).run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        for _ in 0..3 {
            let error: Error = listener.accept().await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    });
}

/// A listener on a Unix socket has the same patience.
#[test]
fn out_of_descriptors_and_a_unix_listener() {
    let _alone = alone(60);
    runtime(1).run(async {
        let name = format!("gopark-test-{}", std::process::id());
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&addr).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect_addr(&addr).unwrap();
        let mut accept = Box::pin(listener.accept());
        let limit = Limit::exhausted();
        assert!(is_pending(&mut accept).await);
        drop(limit);
        let (accepted, _) = accept.await.unwrap();
        accepted.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).unwrap();
    });
}
