//! Connecting, addresses, options.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::Builder;
use gopark::io::copy;
use gopark::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixDatagram, UnixStream, lookup_host};
use gopark::time::timeout;
use net::*;
use socket2::SockRef;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

#[test]
fn refused() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (_held, addr) = refusing();
        let error = TcpStream::connect(addr).await.unwrap_err();
        is_address_error(&error, ErrorKind::ConnectionRefused, &addr.to_string());
    });
}

/// TCP knows no connection to a broadcast address, whatever routes there are.
#[test]
fn unreachable() {
    let _alone = alone(20);
    runtime(1).run(async {
        let error = TcpStream::connect("255.255.255.255:9").await.unwrap_err();
        is_address_error(&error, ErrorKind::NetworkUnreachable, "255.255.255.255:9");
    });
}

/// The first address that answers is taken; if none does, the first one's error is told.
#[test]
fn several_addresses() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (_held, refused) = refusing();
        let listener = TcpListener::bind(ANY).await.unwrap();
        let good = listener.local_addr().unwrap();
        let stream = TcpStream::connect(&[refused, good][..]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let unreachable: SocketAddr = "255.255.255.255:9".parse().unwrap();
        let error = TcpStream::connect(&[refused, unreachable][..]).await.unwrap_err();
        is_address_error(&error, ErrorKind::ConnectionRefused, &refused.to_string());
        let none: &[SocketAddr] = &[];
        assert_eq!(TcpStream::connect(none).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(TcpListener::bind(none).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

/// Every form of address, as an argument that is a value and as a reference.
#[test]
fn forms_of_addresses() {
    let _alone = alone(20);
    async fn reaches(listener: &TcpListener, addr: impl ToSocketAddrs) {
        let (connected, accepted) = futures::join!(TcpStream::connect(addr), listener.accept());
        assert_eq!(connected.unwrap().local_addr().unwrap(), accepted.unwrap().1);
    }
    runtime(1).run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (l, port, text) = (&listener, addr.port(), addr.to_string());
        reaches(l, addr).await;
        reaches(l, &addr).await;
        reaches(l, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).await;
        reaches(l, (Ipv4Addr::LOCALHOST, port)).await;
        reaches(l, (IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await;
        reaches(l, ("127.0.0.1", port)).await;
        reaches(l, ("127.0.0.1".to_owned(), port)).await;
        reaches(l, ("localhost", port)).await;
        reaches(l, &("localhost".to_owned(), port)).await;
        reaches(l, text.as_str()).await;
        reaches(l, text.clone()).await;
        reaches(l, &text).await;
        reaches(l, format!("localhost:{port}")).await;
        reaches(l, &format!("localhost:{port}")).await;
        reaches(l, &[addr][..]).await;
        reaches(l, &&addr).await;
    });
}

#[test]
fn ipv6() {
    let _alone = alone(20);
    runtime(1).run(async {
        let listener = match TcpListener::bind("[::1]:0").await {
            Ok(listener) => listener,
            // A machine without it has nothing to test.
            Err(e) => return assert_ne!(e.kind(), ErrorKind::InvalidInput),
        };
        let addr = listener.local_addr().unwrap();
        for _ in 0..2 {
            let (a, b) = futures::join!(TcpStream::connect((Ipv6Addr::LOCALHOST, addr.port())), listener.accept());
            assert_eq!(a.unwrap().local_addr().unwrap(), b.unwrap().1);
        }
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, addr.port(), 0, 0);
        TcpStream::connect(v6).await.unwrap();
        TcpStream::connect(("::1", addr.port())).await.unwrap();
        TcpStream::connect(addr.to_string()).await.unwrap();
    });
}

/// Text that is no address is refused without a question to any resolver.
#[test]
fn bad_addresses() {
    let _alone = alone(20);
    runtime(1).run(async {
        for bad in ["", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:http", "[::1]"] {
            let error = TcpStream::connect(bad).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(
                error.to_string().contains(&format!("{bad:?}")) && error.to_string().contains("HOST:PORT"),
                "{error}"
            );
            assert_eq!(TcpListener::bind(bad).await.unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(lookup_host(bad).await.is_err());
        }
        // No label of a name is longer than 63 bytes, so the resolver need not ask either.
        let name = "x".repeat(64);
        lookup_host((name.as_str(), 80)).await.map(|_| ()).unwrap_err();
        let error = TcpStream::connect((name.clone(), 80)).await.unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        let nul = "nul\0byte:80";
        assert_eq!(TcpStream::connect(nul).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn lookup() {
    let _alone = alone(20);
    runtime(1).run(async {
        let addrs: Vec<_> = lookup_host("localhost:80").await.unwrap().collect();
        assert!(!addrs.is_empty());
        assert!(addrs.iter().all(|a| a.ip().is_loopback() && a.port() == 80));
        let one: Vec<_> = lookup_host("192.0.2.7:1").await.unwrap().collect();
        assert_eq!(one, ["192.0.2.7:1".parse().unwrap()]);
        let two: [SocketAddr; 2] = ["192.0.2.7:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap()];
        assert!(lookup_host(&two[..]).await.unwrap().eq(two));
        // A lookup that is given up goes on unheard.
        let mut lookup = Box::pin(lookup_host("localhost:80"));
        let _ = is_pending(&mut lookup).await;
    });
}

/// As in Go: no delay, and a probe after 15 s of silence; on both ends, though accepting sets nothing.
#[test]
fn default_options() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (connected, accepted) = pair().await;
        for stream in [&connected, &accepted] {
            let socket = SockRef::from(stream);
            assert!(stream.nodelay().unwrap());
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
            assert_eq!(socket.linger().unwrap(), None);
            assert!(socket.nonblocking().unwrap());
            // Not inherited by the programs that this one starts.
            // SAFETY: F_GETFD takes nothing.
            let flags = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
    });
}

#[test]
fn set_options() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, _peer) = pair().await;
        let socket = SockRef::from(&stream);
        stream.set_nodelay(false).unwrap();
        assert!(!socket.tcp_nodelay().unwrap() && !stream.nodelay().unwrap());
        stream.set_nodelay(true).unwrap();
        assert!(socket.tcp_nodelay().unwrap());
        stream.set_keepalive(None).unwrap();
        assert!(!socket.keepalive().unwrap());
        stream.set_keepalive(Some(Duration::from_secs(77))).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        stream.set_linger(Some(Duration::from_secs(3))).unwrap();
        let three = Some(Duration::from_secs(3));
        assert_eq!((socket.linger().unwrap(), stream.linger().unwrap()), (three, three));
        // None becomes zero, which would throw away what is not yet sent.
        let seconds = [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), ((1 << 32) * 1000, i32::MAX as u64)];
        for (millis, seconds) in seconds {
            stream.set_linger(Some(Duration::from_millis(millis))).unwrap();
            let least = stream.linger().unwrap().unwrap().min(Duration::from_secs(seconds));
            assert_eq!(least, Duration::from_secs(seconds), "{millis} ms");
        }
        stream.set_keepalive(Some(Duration::from_millis(1900))).unwrap();
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(2));
        stream.set_linger(None).unwrap();
        assert_eq!((socket.linger().unwrap(), stream.linger().unwrap()), (None, None));
        stream.set_ttl(42).unwrap();
        assert_eq!((socket.ttl_v4().unwrap(), stream.ttl().unwrap()), (42, 42));
        assert!(stream.take_error().unwrap().is_none());
        assert_eq!(stream.as_fd().as_raw_fd(), stream.as_raw_fd());
    });
}

/// An error that is pending is told once.
#[test]
fn pending_error() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (stream, peer) = std_pair().await;
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        stream.readable().await.unwrap();
        assert_eq!(stream.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionReset);
        assert!(stream.take_error().unwrap().is_none());
    });
}

/// Outside a runtime, one sentence says what to do; and, where a call is no `async fn`, whose line it was.
#[test]
fn outside_a_runtime() {
    let _alone = alone(20);
    let message = |f: Box<dyn FnOnce() + std::panic::UnwindSafe>| {
        let payload = std::panic::catch_unwind(f).unwrap_err();
        payload.downcast_ref::<String>().unwrap().clone()
    };
    let std = std::net::TcpListener::bind(ANY).unwrap();
    let addr = std.local_addr().unwrap();
    for text in [
        message(Box::new(move || drop(TcpListener::from_std(std)))),
        message(Box::new(move || drop(futures::executor::block_on(TcpStream::connect(addr))))),
        message(Box::new(|| drop(futures::executor::block_on(TcpListener::bind(ANY))))),
        message(Box::new(|| drop(futures::executor::block_on(lookup_host("localhost:1"))))),
    ] {
        assert!(text.contains("needs a runtime") && text.contains("gopark::run"), "{text}");
    }
    let line = |f: fn()| {
        let (tell, told) = std::sync::mpsc::channel();
        let tell = std::sync::Mutex::new(tell);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tell.lock().unwrap().send(panic.location().unwrap().line()).unwrap()
        }));
        std::panic::catch_unwind(f).unwrap_err();
        std::panic::set_hook(before);
        told.recv().unwrap()
    };
    let (here, found) = (line!(), line(|| drop(gopark::Handle::current())));
    assert_eq!(found, here);
    let (here, found) = (line!(), line(|| drop(gopark::time::sleep(gopark::time::Duration::ZERO))));
    assert_eq!(found, here);
    let (here, found) = (line!(), line(|| drop(gopark::io::PollFd::new(std::fs::File::open("/dev/null").unwrap()))));
    assert_eq!(found, here);
    // An address that is written out needs none to be told.
    assert_eq!(futures::executor::block_on(lookup_host("192.0.2.7:1")).unwrap().count(), 1);
}

/// Trap S22: a loop over what fails, or ends, without waiting for anything lets others run, and a timeout end it.
#[test]
fn what_fails_at_once_and_a_timeout() {
    let _alone = alone(60);
    macro_rules! ends {
        ($again:expr) => {
            let loops = async {
                loop {
                    let _ = $again.await;
                }
            };
            timeout(Duration::from_millis(5), loops).await.map(|(): ()| ()).unwrap_err();
        };
    }
    Builder::new().workers(1).retake(false).build().unwrap().run(async {
        let long = "x".repeat(200);
        ends!(UnixStream::connect("/nowhere/at/all"));
        ends!(UnixStream::connect(&long));
        let datagram = UnixDatagram::unbound().unwrap();
        ends!(datagram.send_to(b"", &long));
        ends!(TcpStream::connect("255.255.255.255:1"));
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        ends!(TcpListener::bind(addr));
        let (a, b) = pair().await;
        ends!(a.write_all(b""));
        ends!(copy(&a, &b).limit(0));
        a.close();
        ends!(a.write_all(b"x"));
        let socket = UdpSocket::bind(ANY).await.unwrap();
        ends!(socket.send_many(&[]));
        ends!(socket.recv_many(&mut [], &mut Vec::new()));
    });
}
