//! `Dialer`: the race of the two families, deadlines, cancelled dials, connections to oneself, settings.
//!
//! Most tests of this file count the descriptors of the process, so one runs at a time. A listener whose queue is full
//! stands in for an address that does not answer.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::net::{Dialer, TcpListener, TcpStream};
use gopark::{Builder, spawn, yield_now};
use net::*;
use socket2::{SockRef, Socket};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

type Tried = Arc<Mutex<Vec<(SocketAddr, Instant)>>>;

/// A dialer, and a list of the addresses that it tries, with the times.
fn recorded(dialer: Dialer) -> (Dialer, Tried) {
    let tried = Tried::default();
    let list = tried.clone();
    let dialer = dialer.control(move |_, addr| {
        list.lock().unwrap().push((addr, Instant::now()));
        Ok(())
    });
    (dialer, tried)
}

/// Addresses of one family: one that answers, one that refuses, and one that does neither.
struct Family {
    fast: SocketAddr,
    refused: SocketAddr,
    slow: SocketAddr,
    _held: (std::net::TcpListener, Socket, Socket, Vec<Socket>),
}

impl Family {
    fn new(any: &str) -> Self {
        let listener = std::net::TcpListener::bind(any).unwrap();
        let fast = listener.local_addr().unwrap();
        let (closed, refused) = refusing_on(any);
        let (full, clients, slow) = full_listener_on(any);
        Family { fast, refused, slow, _held: (listener, closed, full, clients) }
    }
}

/// Both families; `None` on a machine without IPv6.
fn families() -> Option<(Family, Family)> {
    has_ipv6().then(|| (Family::new(ANY), Family::new("[::1]:0")))
}

/// Go's TestDialParallel: who wins, who is tried at all, and whose error is told.
#[test]
fn dial_parallel() {
    let _alone = alone(60);
    let Some((v4, v6)) = families() else { return };
    // The second family begins when the first has failed, or at once.
    let late = || Dialer::new().fallback_delay(Duration::MAX);
    let at_once = || Dialer::new().fallback_delay(Duration::ZERO);
    runtime(1).run(async move {
        let wins: &[(Dialer, &[SocketAddr], SocketAddr, &[SocketAddr])] = &[
            (late(), &[v4.fast, v6.fast], v4.fast, &[v4.fast]),
            (late(), &[v6.fast, v4.fast], v6.fast, &[v6.fast]),
            (late(), &[v4.refused, v6.fast], v6.fast, &[v4.refused, v6.fast]),
            (late(), &[v6.refused, v4.fast], v4.fast, &[v6.refused, v4.fast]),
            (late(), &[v4.refused, v4.fast, v6.fast], v4.fast, &[v4.refused, v4.fast]),
            // The first family goes before the list's order.
            (late(), &[v4.refused, v6.fast, v4.fast], v4.fast, &[v4.refused, v4.fast]),
            (at_once(), &[v4.slow, v6.fast], v6.fast, &[v4.slow, v6.fast]),
            (at_once(), &[v6.slow, v4.fast], v4.fast, &[v6.slow, v4.fast]),
            (at_once(), &[v4.slow, v6.refused, v6.fast], v6.fast, &[v4.slow, v6.refused, v6.fast]),
        ];
        for (dialer, addrs, winner, all) in wins {
            let (dialer, tried) = recorded(dialer.clone());
            let stream = dialer.dial(*addrs).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), *winner, "of {addrs:?}");
            let tried: Vec<_> = tried.lock().unwrap().iter().map(|(addr, _)| *addr).collect();
            assert_eq!(tried, *all, "of {addrs:?}");
        }
        let second = Duration::from_secs(1);
        let errors: &[(Dialer, &[SocketAddr], ErrorKind)] = &[
            (late(), &[v4.refused, v6.refused], ErrorKind::ConnectionRefused),
            (at_once(), &[v4.refused, v6.refused], ErrorKind::ConnectionRefused),
            (late(), &[v6.refused, v4.refused, "255.255.255.255:9".parse().unwrap()], ErrorKind::ConnectionRefused),
            (late().timeout(second), &[v4.refused, v6.slow], ErrorKind::ConnectionRefused),
            (at_once().timeout(10 * MS), &[v4.slow, v6.refused], ErrorKind::TimedOut),
        ];
        for (dialer, addrs, kind) in errors {
            // It is the first one's, whoever failed first.
            is_address_error(&dialer.dial(*addrs).await.unwrap_err(), *kind, &addrs[0].to_string());
        }
    });
}

/// Both families are under way when the one fails and the other, later or earlier, gets its answer.
#[test]
fn dial_parallel_and_late_answers() {
    let _alone = alone(60);
    if !has_ipv6() {
        return;
    }
    runtime(1).run(async move {
        let full = move || (full_listener_on(ANY), full_listener_on("[::1]:0"));
        let accept_all = |(listener, clients, _): (Socket, Vec<Socket>, SocketAddr)| {
            std::thread::spawn(move || (0..=clients.len()).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>())
        };
        for v4_fails in [true, false] {
            let (v4, v6) = full();
            let addrs = [v4.2, v6.2];
            let dialer = Dialer::new().fallback_delay(Duration::ZERO);
            let mut dial = Box::pin(dialer.dial(&addrs[..]));
            let (fails, answers) = if v4_fails { (v4, v6) } else { (v6, v4) };
            let winner = answers.2;
            assert!(is_pending(&mut dial).await);
            // To the next SYN the one says no and the other yes.
            drop(fails);
            let accepted = accept_all(answers);
            let stream = dial.await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), winner);
            gopark::block_in_place(|| accepted.join().unwrap());
        }
        let (v4, v6) = full();
        let addrs = [v4.2, v6.2];
        let dialer = Dialer::new().fallback_delay(Duration::ZERO);
        let mut dial = Box::pin(dialer.dial(&addrs[..]));
        assert!(is_pending(&mut dial).await);
        drop((v4, v6));
        is_address_error(&dial.await.unwrap_err(), ErrorKind::ConnectionRefused, &addrs[0].to_string());
    });
}

/// The second family begins that much after the first; 300 ms unless told otherwise. (Go's TestDialerFallbackDelay.)
#[test]
fn fallback_delay() {
    let _alone = alone(60);
    let Some((v4, v6)) = families() else { return };
    runtime(1).run(async move {
        for (dialer, delay) in [
            (Dialer::new(), 300 * MS),
            (Dialer::new().fallback_delay(200 * MS), 200 * MS),
            (Dialer::new().fallback_delay(Duration::ZERO), Duration::ZERO),
        ] {
            let (dialer, tried) = recorded(dialer);
            let start = Instant::now();
            let stream = dialer.dial(&[v4.slow, v6.fast][..]).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), v6.fast);
            let began = tried.lock().unwrap()[1].1 - start;
            assert!(began >= delay, "{began:?}");
        }
    });
}

/// Go's TestDialerDualStackFDLeak: the loser's socket is closed, whichever family it is of.
#[test]
fn dual_stack_fd_leak() {
    let _alone = alone(60);
    let Some((v4, v6)) = families() else { return };
    runtime(2).run(async move {
        let dialer = Dialer::new().fallback_delay(Duration::ZERO);
        let before = open_fds();
        for _ in 0..30 {
            for addrs in [[v4.slow, v6.fast], [v4.fast, v6.slow], [v6.slow, v4.fast], [v6.fast, v4.slow]] {
                let stream = dialer.dial(&addrs[..]).await.unwrap();
                assert_eq!(open_fds(), before + 1, "{addrs:?}");
                drop(stream);
            }
            dialer.dial(&[v4.refused, v6.refused][..]).await.unwrap_err();
            assert_eq!(open_fds(), before);
        }
    });
}

/// A dial that is given up leaves no socket, however far it was. (Go's TestDialCancel.)
#[test]
fn dial_cancel() {
    let _alone = alone(60);
    let Some((v4, v6)) = families() else { return };
    runtime(2).run(async move {
        let (both, dialer) = ([v4.slow, v6.slow], Dialer::new().fallback_delay(Duration::ZERO));
        // The first sleep and the first lookup may leave something behind.
        drop(dialer.dial(("localhost", 1)).await);
        let before = open_fds();
        for _ in 0..30 {
            drop(dialer.dial(&both[..]));
            let mut dial = Box::pin(dialer.dial(v4.slow));
            assert!(is_pending(&mut dial).await);
            assert_eq!(open_fds(), before + 1);
            drop(dial);
            assert_eq!(open_fds(), before);
            let mut dial = Box::pin(dialer.dial(&both[..]));
            assert!(is_pending(&mut dial).await);
            assert_eq!(open_fds(), before + 2);
            drop(dial);
            assert_eq!(open_fds(), before);
            // A new budget.
            yield_now().await;
        }
        // From another thread, while it waits.
        let tasks: Vec<_> = (0..30)
            .map(|_| {
                let dialer = dialer.clone();
                spawn(async move { dialer.dial(&both[..]).await.map(drop) })
            })
            .collect();
        while open_fds() < before + 60 {
            yield_now().await;
        }
        for task in tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(open_fds(), before);
        // By a timeout around it.
        gopark::time::timeout(5 * MS, TcpStream::connect(v4.slow)).await.unwrap_err();
        assert_eq!(open_fds(), before);
    });
}

/// Timeout and deadline, whichever comes first; the error names the address.
#[test]
fn dial_timeout() {
    let _alone = alone(60);
    let (_listener, _clients, slow) = full_listener();
    let listener = std::net::TcpListener::bind(ANY).unwrap();
    let fast = listener.local_addr().unwrap();
    runtime(1).run(async move {
        let (long, short) = (Duration::from_secs(3600), 20 * MS);
        let before = open_fds();
        for settings in 0..4 {
            let (start, dialer) = (Instant::now(), Dialer::new());
            let dialer = match settings {
                0 => dialer.timeout(short),
                1 => dialer.deadline(start + short),
                2 => dialer.timeout(long).deadline(start + short),
                _ => dialer.timeout(short).deadline(start + long),
            };
            let error = dialer.dial(slow).await.unwrap_err();
            is_address_error(&error, ErrorKind::TimedOut, &slow.to_string());
            assert!(start.elapsed() >= short);
        }
        // No time at all: nobody is asked.
        let past = Instant::now();
        for dialer in [Dialer::new().timeout(Duration::ZERO), Dialer::new().deadline(past)] {
            let (dialer, tried) = recorded(dialer);
            let error = dialer.dial(&[fast, slow][..]).await.unwrap_err();
            is_address_error(&error, ErrorKind::TimedOut, &fast.to_string());
            assert_eq!(dialer.dial(("localhost", 1)).await.unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(tried.lock().unwrap().is_empty());
        }
        // All the time there is.
        Dialer::new().timeout(Duration::MAX).dial(fast).await.unwrap();
        Dialer::new().timeout(long).deadline(past + long).dial(fast).await.unwrap();
        // The lookups that nobody waits for any more come to their end.
        while open_fds() != before {
            yield_now().await;
        }
    });
}

/// The lookup is part of the dial's time: here it finds no thread to run on.
#[test]
fn dial_timeout_and_a_lookup_that_takes_long() {
    let _alone = alone(60);
    let runtime = Builder::new().workers(1).max_threads(1).build().unwrap();
    // One in a closure and one in a task: both threads are taken until the end.
    let (begun, end) = (Arc::new(Barrier::new(3)), Arc::new(Barrier::new(3)));
    let block = {
        let (begun, end) = (begun.clone(), end.clone());
        move || {
            begun.wait();
            end.wait();
        }
    };
    drop(runtime.spawn_blocking(block.clone()));
    drop(runtime.spawn(async move { block() }));
    begun.wait();
    let start = Instant::now();
    let error = runtime.block_on(Dialer::new().timeout(20 * MS).dial(("localhost", 1))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= 20 * MS);
    end.wait();
}

/// Go's partialDeadline: an address that does not answer takes its share of the time, not all of it.
#[test]
fn partial_deadline() {
    let _alone = alone(60);
    let (_listener, _clients, slow) = full_listener();
    let listener = std::net::TcpListener::bind(ANY).unwrap();
    runtime(1).run(async move {
        let mut addrs = vec![slow];
        addrs.resize(20, listener.local_addr().unwrap());
        let start = Instant::now();
        let dialer = Dialer::new().timeout(Duration::from_secs(40));
        let stream = dialer.dial(&addrs[..]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addrs[1]);
        assert!(start.elapsed() >= Duration::from_secs(2));
    });
}

/// The dial's deadline is not the connection's.
#[test]
fn deadline_and_the_connection_after_it() {
    let _alone = alone(60);
    runtime(1).run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        let stream = Dialer::new().deadline(deadline).dial(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        gopark::time::sleep_until(deadline + MS).await;
        stream.write_all(b"x").await.unwrap();
        peer.read_exact(&mut [0]).await.unwrap();
        peer.write_all(b"y").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    });
}

/// A port of this machine on which nobody listens, dialled from that same port, answers to itself. Such a connection is
/// given up and another one made, twice at most, unless it was asked for. (Go's TestSelfConnect.)
#[test]
fn self_connect() {
    let _alone = alone(60);
    for any in [ANY, "[::1]:0"] {
        if any != ANY && !has_ipv6() {
            return;
        }
        let free = move || {
            let listener = std::net::TcpListener::bind(any).unwrap();
            listener.local_addr().unwrap()
        };
        // The hook does what the system does by chance: the socket gets the port that it is to connect to.
        let unlucky = move |times: usize| {
            let calls = Arc::new(Mutex::new(0));
            let count = calls.clone();
            let dialer = Dialer::new().control(move |socket, addr| {
                let mut calls = count.lock().unwrap();
                *calls += 1;
                let socket = SockRef::from(&socket);
                // Nothing lingers, so that the port is free again at once.
                socket.set_linger(Some(Duration::ZERO))?;
                if *calls <= times { socket.bind(&addr.into()) } else { Ok(()) }
            });
            (dialer, calls)
        };
        runtime(1).run(async move {
            let before = open_fds();
            for times in [1, 2] {
                let ((dialer, calls), addr) = (unlucky(times), free());
                let error = dialer.dial(addr).await.unwrap_err();
                is_address_error(&error, ErrorKind::ConnectionRefused, &addr.to_string());
                assert_eq!(*calls.lock().unwrap(), times + 1);
                assert_eq!(open_fds(), before);
            }
            // So much bad luck is no luck: it is what somebody wants.
            let ((dialer, calls), addr) = (unlucky(usize::MAX), free());
            let stream = dialer.dial(addr).await.unwrap();
            assert_eq!((stream.local_addr().unwrap(), stream.peer_addr().unwrap()), (addr, addr));
            assert_eq!(*calls.lock().unwrap(), 3);
            drop(stream);

            let ((dialer, calls), addr) = (unlucky(0), free());
            let stream = dialer.local_addr(addr).dial(addr).await.unwrap();
            assert_eq!(*calls.lock().unwrap(), 1);
            stream.write_all(b"me").await.unwrap();
            let mut buf = [0; 2];
            stream.read_exact(&mut buf).await.unwrap();
            assert_eq!(&buf, b"me");
            drop(stream);
            assert_eq!(open_fds(), before);
        });
    }
}

/// The port alone does not make it the same end.
#[test]
fn same_port_of_another_address() {
    let _alone = alone(60);
    runtime(1).run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let local = SocketAddr::from(([127, 0, 0, 5], addr.port()));
        let calls = Arc::new(Mutex::new(0));
        let seen = calls.clone();
        let dialer = Dialer::new().control(move |socket, _| {
            *seen.lock().unwrap() += 1;
            SockRef::from(&socket).bind(&local.into())
        });
        let stream = dialer.dial(addr).await.unwrap();
        assert_eq!(stream.local_addr().unwrap(), local);
        assert_eq!(*calls.lock().unwrap(), 1);
    });
}

/// Where to connect from: only addresses of that family are tried.
#[test]
fn local_addr() {
    let _alone = alone(60);
    runtime(1).run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
        let from = |local: &str| recorded(Dialer::new().local_addr(local.parse().unwrap()));

        let (dialer, tried) = from("127.0.0.3:0");
        let mixed = [v6, addr, v6];
        let (stream, accepted) = futures::join!(dialer.dial(&mixed[..]), listener.accept());
        assert_eq!(stream.unwrap().local_addr().unwrap(), accepted.unwrap().1);
        assert_eq!(tried.lock().unwrap().iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [addr]);

        let (_held, refused) = refusing();
        let error = dialer.dial(&[v6, refused][..]).await.unwrap_err();
        is_address_error(&error, ErrorKind::ConnectionRefused, &refused.to_string());
        assert_eq!(tried.lock().unwrap().len(), 2);
        let error = dialer.dial(v6).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("127.0.0.3:0"), "{error}");

        // A port of one's own choice.
        let (held, local) = refusing_on("127.0.0.3:0");
        let error = Dialer::new().local_addr(local).dial(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::AddrInUse, &addr.to_string());
        drop(held);
        let stream = Dialer::new().local_addr(local).dial(addr).await.unwrap();
        assert_eq!(stream.local_addr().unwrap(), local);

        // An address of somebody else. The system's answer can mean that it found no port, so it is asked again.
        let (dialer, tried) = from("198.51.100.7:0");
        let error = dialer.dial(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::AddrNotAvailable, &addr.to_string());
        assert_eq!(tried.lock().unwrap().len(), 3);
    });
}

#[test]
fn keepalive_of_a_dialled_connection() {
    let _alone = alone(60);
    runtime(1).run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let secs = Duration::from_secs;
        for (asked, expected) in [(Some(secs(77)), Some(secs(77))), (Some(MS), Some(secs(1))), (None, None)] {
            let stream = Dialer::new().keepalive(asked).dial(listener.local_addr().unwrap()).await.unwrap();
            let socket = SockRef::from(&stream);
            assert_eq!(socket.keepalive().unwrap(), expected.is_some());
            if let Some(expected) = expected {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), expected);
            }
            assert!(stream.nodelay().unwrap());
        }
    });
}

/// The hook sees the socket before it is bound or connected, and its error gives the address up.
#[test]
fn control_of_a_dialer() {
    let _alone = alone(60);
    runtime(1).run(async move {
        let (one, other) = (TcpListener::bind(ANY).await.unwrap(), TcpListener::bind(ANY).await.unwrap());
        let addrs = [one.local_addr().unwrap(), other.local_addr().unwrap()];
        let dialer = Dialer::new().local_addr("127.0.0.4:0".parse().unwrap()).control(move |socket, addr| {
            let socket = SockRef::from(&socket);
            assert!(socket.local_addr()?.as_socket().unwrap().ip().is_unspecified());
            assert!(socket.peer_addr().is_err() && socket.nonblocking()?);
            socket.set_recv_buffer_size(10_000)?;
            if addr == addrs[0] { Err(io::Error::from_raw_os_error(libc::EPERM)) } else { Ok(()) }
        });
        let before = open_fds();
        let stream = dialer.dial(&addrs[..]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addrs[1]);
        assert_eq!(SockRef::from(&stream).recv_buffer_size().unwrap(), 20_000);
        drop(stream);
        is_address_error(&dialer.dial(addrs[0]).await.unwrap_err(), ErrorKind::PermissionDenied, &addrs[0].to_string());
        assert_eq!(open_fds(), before);
    });
}

/// On another executor, in a runtime's context: the race and the deadline need no worker of that executor's.
#[test]
fn dial_from_another_executor() {
    let _alone = alone(60);
    let Some((v4, v6)) = families() else { return };
    let runtime = runtime(1);
    let _inside = runtime.handle().enter();
    futures::executor::block_on(async {
        let dialer = Dialer::new().fallback_delay(5 * MS).timeout(Duration::from_secs(30));
        let stream = dialer.dial(&[v4.slow, v6.fast][..]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), v6.fast);
        let error = dialer.timeout(20 * MS).dial(&[v4.slow, v6.slow][..]).await.unwrap_err();
        is_address_error(&error, ErrorKind::TimedOut, &v4.slow.to_string());
    });
}
