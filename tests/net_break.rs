//! Sockets where nobody looks: other executors, names that std cannot say, ends that make no edge.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::executor::block_on;
use gopark::io::{PollFd, copy, copy_bidirectional};
use gopark::net::{
    RuntimeGone, TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixStream, lookup_host,
};
use gopark::time::timeout;
use net::*;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

fn abstract_path(test: &str) -> String {
    format!("\0gopark-break-{}-{test}", std::process::id())
}

/// Trap P23: who waits for room at one receiver keeps nobody from sending to another.
#[test]
fn datagram_to_a_full_queue_and_one_to_another() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (full, free) = (abstract_path("full"), abstract_path("free"));
        let (_full, receiver) = (UnixDatagram::bind(&full).unwrap(), UnixDatagram::bind(&free).unwrap());
        let sender = UnixDatagram::unbound().unwrap();
        while sender.try_send_to(b"x", &full).is_ok() {}
        let mut stuck = Box::pin(sender.send_to(b"y", &full));
        assert!(is_pending(&mut stuck).await);
        let stuck = async { panic!("there was room: {:?}", stuck.await) };
        futures::future::select(Box::pin(sender.send_to(b"z", &free)), Box::pin(stuck)).await.factor_first().0.unwrap();
        assert_eq!(receiver.recv(&mut [0]).await.unwrap(), 1);
    });
}

/// A connection is not lost because its acceptor knows no runtime: it gets the listener's.
#[test]
fn accept_outside_a_runtime() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let path = abstract_path("accept");
    let (tcp, unix) = runtime.run({
        let path = path.clone();
        async { (TcpListener::bind(ANY).await.unwrap(), UnixListener::bind(path).unwrap()) }
    });
    let there = runtime.spawn({
        let addr = tcp.local_addr().unwrap();
        async move {
            TcpStream::connect(addr).await.unwrap().write_all(b"tcp").await.unwrap();
            UnixStream::connect(path).await.unwrap().write_all(b"unix").await.unwrap();
        }
    });
    block_on(async {
        let mut buf = [0; 4];
        let (stream, _) = tcp.accept().await.unwrap();
        stream.read_exact(&mut buf[..3]).await.unwrap();
        let (stream, _) = std::future::poll_fn(|cx| unix.poll_accept(cx)).await.unwrap();
        stream.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"unix");
    });
    runtime.block_on(there).unwrap();
}

/// A write that waits for room hears that its side was shut. The kernel makes no edge of that for a Unix socket.
#[test]
fn shut_and_writes_that_wait() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _peer) = UnixStream::pair().unwrap();
        while a.try_write(&[0; 4096]).is_ok() {}
        let mut writes = [(); 2].map(|()| Box::pin(a.write(b"x")));
        assert!(is_pending(&mut writes[0]).await && is_pending(&mut writes[1]).await);
        a.shutdown(Shutdown::Write).unwrap();
        for write in writes {
            assert_eq!(write.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        }

        let (a, _peer) = UnixDatagram::pair().unwrap();
        while a.try_send(b"x").is_ok() {}
        let mut send = Box::pin(a.send(b"x"));
        assert!(is_pending(&mut send).await);
        a.shutdown(Shutdown::Write).unwrap();
        assert_eq!(send.await.unwrap_err().kind(), ErrorKind::BrokenPipe);

        let (a, _peer) = UnixStream::pair().unwrap();
        while a.try_write(&[0; 4096]).is_ok() {}
        let (read, write) = a.into_split();
        let mut late = Box::pin(read.stream().write(b"x"));
        assert!(is_pending(&mut late).await);
        drop(write);
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// A path that fills the kernel's address to its last byte, which std's type cannot hold.
#[test]
fn peer_at_the_longest_path() {
    let _alone = alone(20);
    runtime(1).run(async {
        let bound = |kind| {
            let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
            let dir = std::env::temp_dir().join(format!("gopark-break-{}-", std::process::id()));
            let long = format!("{:x<108}", dir.display());
            // SAFETY: all zeros are an address.
            let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
            addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
            for (to, from) in addr.sun_path.iter_mut().zip(long.bytes()) {
                *to = from as libc::c_char;
            }
            let len = size_of_val(&addr) as libc::socklen_t;
            // SAFETY: the address outlives the call, and `len` is its length.
            assert_eq!(unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), len) }, 0);
            std::fs::remove_file(long).unwrap();
            socket
        };
        let path = abstract_path("long");
        let listener = UnixListener::bind(&path).unwrap();
        let peer = bound(Type::STREAM);
        peer.connect(&SockAddr::unix(&path).unwrap()).unwrap();
        let (stream, addr) = listener.accept().await.unwrap();
        assert!(addr.is_unnamed());
        assert_eq!(stream.peer_addr().unwrap().as_pathname().unwrap().as_os_str().len(), 108);

        drop(listener);
        let receiver = UnixDatagram::bind(&path).unwrap();
        bound(Type::DGRAM).send_to(b"x", &SockAddr::unix(&path).unwrap()).unwrap();
        assert_eq!(receiver.recv_from(&mut [0]).await.unwrap().0, 1);
    });
}

/// No offset is too large to be beyond the end.
#[test]
fn offsets_beyond_the_end() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _peer) = std_pair().await;
        let file = std::fs::File::open("Cargo.toml").unwrap();
        for offset in [file.metadata().unwrap().len(), 1 << 40, i64::MAX as u64, u64::MAX] {
            assert_eq!(copy(&file, &a).offset(offset).await.unwrap(), 0);
        }
    });
}

/// A copy that is dropped leaves no waker behind: the task behind it could never be freed while the sockets are idle.
#[test]
fn dropped_copies_leave_no_wakers() {
    let _alone = alone(20);
    runtime(1).run(async {
        let ((a, _reader), (b, mut writer)) = (std_pair().await, std_pair().await);
        let (count, waker) = Count::new();
        let alone = Arc::strong_count(&count);
        // Waits for the reader.
        let mut copied = Box::pin(copy(&a, &b));
        assert!(poll(&mut copied, &waker).is_pending());
        assert!(Arc::strong_count(&count) > alone);
        drop(copied);
        let mut both = Box::pin(copy_bidirectional(&a, &b));
        assert!(poll(&mut both, &waker).is_pending());
        drop(both);
        assert_eq!(Arc::strong_count(&count), alone);
        // Waits for the writer.
        fill(&a).await;
        io::Write::write_all(&mut writer, b"x").unwrap();
        b.readable().await.unwrap();
        let mut copied = Box::pin(copy(&b, &a));
        assert!(poll(&mut copied, &waker).is_pending());
        assert_eq!(copied.in_flight(), 1);
        drop(copied);
        assert_eq!(Arc::strong_count(&count), alone);
    });
}

/// One step after the other finds no descriptor; none leaves any behind.
#[test]
fn steps_without_descriptors() {
    let _alone = alone(60);
    let runtime = runtime(2);
    let steps = || async {
        const PATIENCE: Duration = Duration::from_millis(100);
        const BULK: usize = 300_000;
        let path = abstract_path("steps");
        let listener = TcpListener::bind(ANY).await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        let (server, _) = timeout(PATIENCE, listener.accept()).await??;
        let listener = UnixListener::bind(&path)?;
        let to = UnixStream::connect(&path).await?;
        let (sink, _) = timeout(PATIENCE, listener.accept()).await??;
        let _datagrams = (UnixDatagram::pair()?, UdpSocket::bind(ANY).await?);
        let (one, other) = std::os::unix::net::UnixStream::pair()?;
        let _both = (PollFd::new(one)?, PollFd::new(other)?);
        let feed = async {
            client.write_all(&vec![7; BULK]).await?;
            client.shutdown(Shutdown::Write)
        };
        let (feed, copied, drained) = futures::join!(feed, copy(&server, &to).limit(BULK as u64), async {
            sink.read_exact(&mut vec![0; BULK]).await
        });
        feed?;
        drained?;
        assert_eq!(copied?, BULK as u64);
        drop(lookup_host("localhost:1").await?);
        UnixStream::pair()
    };
    drop(runtime.run(steps()).unwrap());
    let before = open_fds();
    let all = (0..60).any(|more| {
        let limit = Limit::set((before + more) as u64);
        let result = runtime.run(steps()).map(drop);
        drop(limit);
        assert_eq!(open_fds(), before, "{result:?}");
        result.is_ok()
    });
    assert!(all);
}

/// What waits beside the slots, or for several of them, hears of the runtime's end too.
#[test]
fn runtime_ends_and_others_wait() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let path = abstract_path("gone");
    let ((_full, sender), (a, _a), (b, _b)) = runtime.run({
        let path = path.clone();
        async move {
            let (full, sender) = (UnixDatagram::bind(&path).unwrap(), UnixDatagram::unbound().unwrap());
            while sender.try_send_to(b"x", &path).is_ok() {}
            ((full, sender), std_pair().await, std_pair().await)
        }
    });
    let (mut send, mut copied) = (Box::pin(sender.send_to(b"y", &path)), Box::pin(copy_bidirectional(&a, &b)));
    assert!(poll(&mut send, &noop()).is_pending() && poll(&mut copied, &noop()).is_pending());
    drop(runtime);
    for error in [block_on(send).unwrap_err(), block_on(copied).unwrap_err()] {
        assert!(error.get_ref().is_some_and(|e| e.is::<RuntimeGone>()), "{error:?}");
    }
}
