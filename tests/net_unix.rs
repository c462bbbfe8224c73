//! Unix sockets: names and what becomes of them, connections, datagrams, and the waits the kernel does not end by itself.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::Runtime;
use gopark::net::{Closed, RuntimeGone, UnixDatagram, UnixListener, UnixStream};
use net::{Count, Pattern, alone, is_pending, noop, one_at_a_time, poll, runtime};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as std_unix, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};
use support::{child, is_child};

/// A path of the test's own, with nothing there before and after.
struct Name(PathBuf);

impl Name {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gopark-{}-{test}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Name(path)
    }

    /// Is something there?
    fn is_taken(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A path that is a name without a file.
fn abstract_path(test: &str) -> String {
    format!("\0gopark-{}-{test}", std::process::id())
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotConnected && error.get_ref().is_some_and(|e| e.is::<Closed>())
}

#[test]
fn connect_and_exchange() {
    let _alone = alone(20);
    runtime(2).run(async {
        let name = Name::new("exchange");
        let listener = UnixListener::bind(&name).unwrap();
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(name.as_ref()));
        let client = UnixStream::connect(&name).await.unwrap();
        let (server, from) = listener.accept().await.unwrap();
        assert!(from.is_unnamed() && server.peer_addr().unwrap().is_unnamed());
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(name.as_ref()));

        // Enough that both sides wait many times, each byte checked.
        let total = 3_000_000;
        let task = gopark::spawn(async move {
            client.write_all(&Pattern::new(7).bytes(total)).await.unwrap();
            client
        });
        let (mut pattern, mut buf) = (Pattern::new(7), vec![0; 10_007]);
        while pattern.taken() < total {
            let n = server.read(&mut buf).await.unwrap();
            assert_ne!(n, 0);
            pattern.check(&buf[..n]);
        }
        drop(task.await.unwrap());
        assert_eq!(server.read(&mut buf).await.unwrap(), 0);
        assert_eq!(server.write(b"late").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn stream_operations() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixStream::pair().unwrap();
        let mut buf = [0; 16];
        assert_eq!(b.try_read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(is_pending(&mut Box::pin(b.readable())).await);
        assert_eq!(a.write_vectored(&[IoSlice::new(b"one "), IoSlice::new(b"two")]).await.unwrap(), 7);
        b.readable().await.unwrap();
        assert_eq!(b.peek(&mut buf).await.unwrap(), 7);
        let (mut x, mut y) = ([0; 4], [0; 3]);
        let bufs = &mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        assert_eq!(b.read_vectored(bufs).await.unwrap(), 7);
        assert_eq!((&x, &y), (b"one ", b"two"));
        assert_eq!(b.read(&mut []).await.unwrap(), 0);
        a.shutdown(Shutdown::Write).unwrap();
        assert_eq!(b.read(&mut buf).await.unwrap(), 0);
        // The other direction goes on.
        b.write_all(b"still").await.unwrap();
        a.read_exact(&mut buf[..5]).await.unwrap();
        assert_eq!(&buf[..5], b"still");
    });
}

#[test]
fn abstract_name_bind_and_connect() {
    let _alone = alone(20);
    runtime(1).run(async {
        let path = abstract_path("stream");
        let listener = UnixListener::bind(&path).unwrap();
        let addr = SocketAddr::from_abstract_name(&path[1..]).unwrap();
        assert_eq!(listener.local_addr().unwrap().as_abstract_name(), addr.as_abstract_name());
        let by_path = UnixStream::connect(&path).await.unwrap();
        let by_addr = UnixStream::connect_addr(&addr).await.unwrap();
        for client in [by_path, by_addr] {
            assert_eq!(client.peer_addr().unwrap().as_abstract_name(), addr.as_abstract_name());
            listener.accept().await.unwrap();
        }
        assert_eq!(UnixListener::bind_addr(&addr).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(UnixStream::connect(&path).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn accept_tells_the_peers_name() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (name, peer_name, path) = (Name::new("named"), Name::new("peer"), abstract_path("peer"));
        let listener = UnixListener::bind(&name).unwrap();
        for from in [peer_name.as_ref(), Path::new(&path)] {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            client.bind(&SockAddr::unix(from).unwrap()).unwrap();
            client.connect(&SockAddr::unix(&name).unwrap()).unwrap();
            let (server, addr) = listener.accept().await.unwrap();
            for addr in [addr, server.peer_addr().unwrap()] {
                let pathname = addr.as_pathname();
                let text = pathname.map(Path::to_owned).or_else(|| {
                    let name = addr.as_abstract_name()?;
                    Some(PathBuf::from(format!("\0{}", std::str::from_utf8(name).unwrap())))
                });
                assert_eq!(text.as_deref(), Some(from));
            }
        }
    });
}

#[test]
fn connect_to_nobody() {
    let _alone = alone(20);
    runtime(1).run(async {
        let name = Name::new("nobody");
        assert_eq!(UnixStream::connect(&name).await.unwrap_err().kind(), ErrorKind::NotFound);
        drop(std_unix::UnixListener::bind(&name).unwrap());
        assert_eq!(UnixStream::connect(&name).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(UnixListener::bind(&name).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(name.is_taken(), "who could not bind has removed another's file");
        let long = "x".repeat(200);
        assert_eq!(UnixStream::connect(&long).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(UnixListener::bind(&long).unwrap_err().kind(), ErrorKind::InvalidInput);
        let (unnamed, _) = UnixStream::pair().unwrap();
        UnixStream::connect_addr(&unnamed.local_addr().unwrap()).await.unwrap_err();
    });
}

/// Go's TestUnixUnlink.
#[test]
fn close_or_drop_and_the_path_is_unlinked_once() {
    let _alone = alone(20);
    runtime(1).run(async {
        let name = Name::new("unlink");
        let listener = UnixListener::bind(&name).unwrap();
        assert!(name.is_taken());
        listener.close();
        assert!(!name.is_taken());
        // Not a second time: the file may be another's by now.
        std::fs::write(&name, b"another's").unwrap();
        listener.close();
        listener.set_unlink_on_close(true).unwrap();
        drop(listener);
        assert!(name.is_taken());
        std::fs::remove_file(&name).unwrap();

        drop(UnixListener::bind(&name).unwrap());
        assert!(!name.is_taken());

        let listener = UnixListener::bind(&name).unwrap();
        listener.set_unlink_on_close(false).unwrap();
        drop(listener);
        assert!(name.is_taken());
        std::fs::remove_file(&name).unwrap();

        // What was given to std or came from there is not gopark's to unlink, unless it is told so.
        let listener = UnixListener::bind(&name).unwrap().into_std().unwrap();
        assert!(name.is_taken());
        drop(UnixListener::from_std(listener).unwrap());
        assert!(name.is_taken());
        std::fs::remove_file(&name).unwrap();
        let listener = UnixListener::from_std(std_unix::UnixListener::bind(&name).unwrap()).unwrap();
        listener.set_unlink_on_close(true).unwrap();
        drop(listener);
        assert!(!name.is_taken());
    });
}

#[test]
fn listener_is_dropped_with_its_runtime_gone() {
    let _alone = alone(20);
    let name = Name::new("gone");
    let runtime = runtime(1);
    let listener = runtime.block_on(async { UnixListener::bind(&name).unwrap() });
    drop(runtime);
    assert!(name.is_taken());
    drop(listener);
    assert!(!name.is_taken());
}

#[test]
fn close_and_accept() {
    let _alone = alone(20);
    runtime(1).run(async {
        let name = Name::new("close");
        let listener = UnixListener::bind(&name).unwrap();
        listener.set_unlink_on_close(false).unwrap();
        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        listener.set_deadline(Some(Instant::now())).unwrap();
        assert_eq!(accept.await.unwrap_err().kind(), ErrorKind::TimedOut);
        listener.set_deadline(None).unwrap();

        let mut accept = Box::pin(listener.accept());
        assert!(is_pending(&mut accept).await);
        // Blocking sockets, so that the runtime is not what ends them.
        let client = std_unix::UnixStream::connect(&name).unwrap();
        accept.await.unwrap();
        drop(client);
        let nobody_took = UnixStream::connect(&name).await.unwrap();
        let mut waiting = [Box::pin(listener.accept()), Box::pin(listener.accept())];
        assert!(!is_pending(&mut waiting[0]).await);
        assert!(is_pending(&mut waiting[1]).await);
        let untaken = UnixStream::connect(&name).await.unwrap();
        listener.close();
        let [_, second] = waiting;
        match second.await {
            // It was chosen before the close.
            Ok(_) => {}
            Err(error) => assert!(is_closed(&error), "{error}"),
        }
        assert!(is_closed(&listener.accept().await.unwrap_err()));
        assert_eq!(UnixStream::connect(&name).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // The listener still lives, and yet the connections that nobody took have ended.
        for client in [nobody_took, untaken] {
            let result = client.read(&mut [0; 8]).await;
            assert!(matches!(result, Ok(0) | Err(_)), "{result:?}");
        }
        let mut incoming = pin!(listener.incoming());
        assert!(futures::StreamExt::next(&mut incoming).await.is_none());
    });
}

/// A listener with room for few, filled: one more connect finds EAGAIN.
fn full_listener(name: &Name) -> (std_unix::UnixListener, Vec<Socket>) {
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let addr = SockAddr::unix(name).unwrap();
    listener.bind(&addr).unwrap();
    listener.listen(1).unwrap();
    let mut clients = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        match client.connect(&addr) {
            Ok(()) => clients.push(client),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return (OwnedFd::from(listener).into(), clients);
            }
        }
    }
}

#[test]
fn connect_waits_while_the_queue_is_full() {
    let _alone = alone(20);
    runtime(1).run(async {
        let name = Name::new("full");
        let (listener, _clients) = full_listener(&name);
        let mut connect = Box::pin(UnixStream::connect(&name));
        assert!(is_pending(&mut connect).await);
        let mut given_up = Box::pin(UnixStream::connect(&name));
        assert!(is_pending(&mut given_up).await);
        drop(given_up);
        listener.accept().unwrap();
        let client = connect.await.unwrap();
        client.write_all(b"at last").await.unwrap();

        // A listener that goes away meanwhile is told.
        let mut connect = Box::pin(UnixStream::connect(&name));
        assert!(is_pending(&mut connect).await);
        drop(listener);
        assert_eq!(connect.await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// Whoever waits for room when the runtime ends hears of it, on another's executor too, and so does whoever comes later.
#[test]
fn connect_to_a_full_queue_and_shutdown() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let name = Name::new("shutdown");
    let (_listener, _clients) = full_listener(&name);
    let handle = runtime.handle().clone();
    let mut connect = Box::pin(UnixStream::connect(name.0.clone()));
    {
        let _guard = handle.enter();
        assert!(poll(&mut connect, &noop()).is_pending());
    }
    let waiting = {
        let handle = handle.clone();
        std::thread::spawn(move || {
            let _guard = handle.enter();
            futures::executor::block_on(connect)
        })
    };
    drop(runtime);
    let _guard = handle.enter();
    let later = futures::executor::block_on(UnixStream::connect(&name));
    for result in [waiting.join().unwrap(), later] {
        let error = result.unwrap_err();
        assert!(error.get_ref().is_some_and(|e| e.is::<RuntimeGone>()), "{error}");
    }
}

/// It asks ever more rarely, and never spins: five looks take 1 + 2 + 4 + 8 + 16 ms at least.
#[test]
fn connect_to_a_full_queue_looks_ever_more_rarely() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let name = Name::new("rarely");
    let (_listener, _clients) = full_listener(&name);
    let (count, waker) = Count::new();
    let _guard = runtime.handle().enter();
    let begin = Instant::now();
    let mut connect = Box::pin(UnixStream::connect(&name));
    for look in 0..5 {
        assert!(poll(&mut connect, &waker).is_pending());
        // A poll in between is no look.
        assert!(poll(&mut connect, &waker).is_pending());
        count.wait(look + 1);
    }
    assert!(begin.elapsed() >= Duration::from_millis(31), "five looks in {:?}", begin.elapsed());
}

#[test]
fn credentials_of_the_peer() {
    let _alone = alone(20);
    runtime(1).run(async {
        let name = Name::new("cred");
        let listener = UnixListener::bind(&name).unwrap();
        let client = UnixStream::connect(&name).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        // SAFETY: they take nothing and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        for stream in [&client, &server] {
            let cred = stream.peer_cred().unwrap();
            assert_eq!(cred.pid(), Some(std::process::id() as i32));
            assert_eq!((cred.uid(), cred.gid()), (uid, gid));
        }
    });
}

/// P9, for Unix streams.
#[test]
fn drop_write_half_and_read_on() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = a.into_split();
        write.write_all(b"last").await.unwrap();
        drop(write);
        let mut buf = [0; 8];
        assert_eq!(b.read(&mut buf).await.unwrap(), 4);
        assert_eq!(b.read(&mut buf).await.unwrap(), 0);
        b.write_all(b"answer").await.unwrap();
        read.read_exact(&mut buf[..6]).await.unwrap();
        assert_eq!(&buf[..6], b"answer");
    });
}

#[test]
fn split_and_reunite() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixStream::pair().unwrap();
        let (a_read, a_write) = a.into_split();
        let (b_read, b_write) = b.into_split();
        let error = a_read.reunite(b_write).unwrap_err();
        let gopark::net::ReuniteError(a_read, b_write) = error;
        let (a, b) = (a_write.reunite(a_read).unwrap(), b_read.reunite(b_write).unwrap());
        let (read, write) = b.split();
        a.write_all(b"x").await.unwrap();
        read.readable().await.unwrap();
        assert_eq!(read.try_read(&mut [0; 8]).unwrap(), 1);
        write.write_vectored(&[IoSlice::new(b"y")]).await.unwrap();
        assert_eq!(a.read(&mut [0; 8]).await.unwrap(), 1);
    });
}

/// P25: descriptors that are passed along cut a read short. Bytes are left, and no edge follows.
#[test]
fn read_is_cut_short_by_passed_descriptors() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixStream::pair().unwrap();
        let mut buf = [0; 16];
        let mut first = Box::pin(b.read(&mut buf));
        assert!(is_pending(&mut first).await);
        send_with_descriptor(&a, b"one", &a);
        assert_eq!(a.try_write(b"two").unwrap(), 3);
        assert_eq!(first.await.unwrap(), 3);
        assert_eq!(&buf[..3], b"one");
        assert_eq!(b.read(&mut buf).await.unwrap(), 3);
        assert_eq!(&buf[..3], b"two");
    });
}

fn send_with_descriptor(to: &impl AsFd, bytes: &[u8], passed: &impl AsFd) {
    // Room for one control message, aligned as a cmsghdr must be.
    let mut control = [0_u64; 8];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the header is zeroed, then given one buffer and the room for one control message, which all outlive the
    // call; CMSG_FIRSTHDR points into that room.
    let sent = unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = libc::CMSG_SPACE(4) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&msg);
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(cmsg).cast::<i32>().write_unaligned(passed.as_fd().as_raw_fd());
        libc::sendmsg(to.as_fd().as_raw_fd(), &msg, libc::MSG_NOSIGNAL)
    };
    assert_eq!(sent, bytes.len() as isize);
}

/// P26: not even where SIGPIPE would end the process.
#[test]
fn peer_is_gone_and_write_raises_no_signal() {
    const TEST: &str = "peer_is_gone_and_write_raises_no_signal";
    if !is_child(TEST) {
        let _turn = one_at_a_time();
        let output = child(TEST, &[]);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let _alone = alone(20);
    // SAFETY: it only names the default action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    runtime(1).run(async {
        let stream = || UnixStream::pair().unwrap().0;
        let broken = |result: io::Result<usize>| assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
        broken(stream().write(b"x").await);
        broken(stream().write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).await);
        broken(stream().try_write(b"x"));
        broken(futures::AsyncWriteExt::write(&mut stream(), b"x").await);
        let shut = UnixDatagram::pair().unwrap().0;
        shut.shutdown(Shutdown::Write).unwrap();
        broken(shut.send(b"x").await);
        broken(shut.send_vectored(&[IoSlice::new(b"x")]).await);
    });
}

#[test]
fn stream_close_and_deadlines_wake_whoever_waits() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _b) = UnixStream::pair().unwrap();
        while a.try_write(&[0; 65536]).is_ok() {}
        let mut buf = [0; 8];
        let (mut read, mut write) = (Box::pin(a.read(&mut buf)), Box::pin(a.write(b"x")));
        assert!(is_pending(&mut read).await && is_pending(&mut write).await);
        a.set_read_deadline(Some(Instant::now())).unwrap();
        assert_eq!(read.await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(is_pending(&mut write).await);
        a.set_deadline(Some(Instant::now() + Duration::from_millis(1))).unwrap();
        assert_eq!(write.await.unwrap_err().kind(), ErrorKind::TimedOut);
        a.set_deadline(None).unwrap();
        let (mut read, mut write) = (Box::pin(a.read(&mut buf)), Box::pin(a.writable()));
        assert!(is_pending(&mut read).await && is_pending(&mut write).await);
        a.close();
        a.close();
        assert!(is_closed(&read.await.unwrap_err()));
        assert!(is_closed(&write.await.unwrap_err()));
        assert!(is_closed(&a.try_write(b"x").unwrap_err()));
        assert!(is_closed(&a.set_deadline(None).unwrap_err()));
    });
}

#[test]
fn datagrams_by_path_name_and_pair() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (name, path) = (Name::new("dgram"), abstract_path("dgram"));
        let (named, abstracted) = (UnixDatagram::bind(&name).unwrap(), UnixDatagram::bind(&path).unwrap());
        let unbound = UnixDatagram::unbound().unwrap();
        let mut buf = [0; 16];
        assert_eq!(unbound.send_to(b"who", &name).await.unwrap(), 3);
        let (n, from) = named.recv_from(&mut buf).await.unwrap();
        assert!(n == 3 && from.is_unnamed(), "{from:?}");
        assert_eq!(abstracted.try_send_to(b"abstract", &name).unwrap(), 8);
        let (n, from) = named.recv_from(&mut buf).await.unwrap();
        assert_eq!((n, from.as_abstract_name()), (8, Some(&path.as_bytes()[1..])));
        named.send_to_addr(b"named", &from).await.unwrap();
        let (n, from) = abstracted.try_recv_from(&mut buf).unwrap();
        assert_eq!((n, from.as_pathname()), (5, Some(name.as_ref())));

        unbound.connect(&path).unwrap();
        assert_eq!(unbound.peer_addr().unwrap().as_abstract_name(), Some(&path.as_bytes()[1..]));
        unbound.send(b"to the peer").await.unwrap();
        assert_eq!(abstracted.recv(&mut buf).await.unwrap(), 11);

        assert_eq!(UnixDatagram::bind(&name).unwrap_err().kind(), ErrorKind::AddrInUse);
        // As in Go, only a listener unlinks.
        drop(named);
        assert!(name.is_taken());
        assert_eq!(unbound.send_to(b"x", &name).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn datagrams_are_whole_empty_or_cut() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut buf = [0; 4];
        let mut recv = Box::pin(b.recv(&mut buf));
        assert!(is_pending(&mut recv).await);
        a.send(b"").await.unwrap();
        assert_eq!(recv.await.unwrap(), 0);
        a.send(b"12345").await.unwrap();
        a.send_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"c")]).await.unwrap();
        assert_eq!(b.peek(&mut buf).await.unwrap(), 4);
        assert_eq!(b.peek_from(&mut buf).await.unwrap().0, 4);
        let got = b.recv_msg(&mut [IoSliceMut::new(&mut buf)]).await.unwrap();
        assert_eq!((got.len, got.truncated), (4, true));
        let (mut x, mut y) = ([0; 1], [0; 4]);
        let got = b.try_recv_msg(&mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)]).unwrap();
        assert_eq!((got.len, got.truncated, &x, &y[..2]), (3, false, b"a", &b"bc"[..]));
        assert_eq!(b.try_recv(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn datagram_waits_for_room_at_the_peer() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut sent = 0;
        while a.try_send(b"x").is_ok() {
            sent += 1;
        }
        assert!(sent > 0);
        let mut send = Box::pin(a.send(b"y"));
        assert!(is_pending(&mut send).await);
        let mut buf = [0; 1];
        for _ in 0..sent {
            b.recv(&mut buf).await.unwrap();
            assert_eq!(&buf, b"x");
        }
        send.await.unwrap();
        b.recv(&mut buf).await.unwrap();
        assert_eq!(&buf, b"y");
    });
}

/// Who is connected to one whose queue is full can send to others.
#[test]
fn datagram_to_another_than_the_full_peer() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (full, free, buf) = (abstract_path("full"), abstract_path("free"), &mut [0; 1]);
        let [_peer, other] = [&full, &free].map(|path| UnixDatagram::bind(path).unwrap());
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&full).unwrap();
        while sender.try_send(b"x").is_ok() {}
        sender.try_send_to(b"y", &free).unwrap();
        while sender.try_send(b"x").is_ok() {}
        sender.send_to(b"z", &free).await.unwrap();
        for expected in [b"y", b"z"] {
            assert_eq!((other.recv(buf).await.unwrap(), &*buf), (1, expected));
        }
    });
}

/// The queue is full of others' datagrams: the kernel does not tell this socket when there is room.
#[test]
fn datagrams_wait_for_room_at_somebody_elses() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (path, buf) = (abstract_path("room"), &mut [0; 1]);
        let (server, other) = (UnixDatagram::bind(&path).unwrap(), UnixDatagram::unbound().unwrap());
        let mut sent = 0;
        while other.try_send_to(b"x", &path).is_ok() {
            sent += 1;
        }
        let late = UnixDatagram::unbound().unwrap();
        let mut send = Box::pin(late.send_to(b"!", &path));
        assert!(is_pending(&mut send).await);
        late.set_write_deadline(Some(Instant::now())).unwrap();
        assert_eq!(send.await.unwrap_err().kind(), ErrorKind::TimedOut);
        late.set_write_deadline(None).unwrap();

        // Another executor polls it and then no more: it holds nothing back.
        let mut forgotten = Box::pin(late.send_to(b"!", &path));
        assert!(poll(&mut forgotten, &noop()).is_pending());
        let mut sends = [b"y", b"z"].map(|byte| Box::pin(late.send_to(byte, &path)));
        assert!(is_pending(&mut sends[0]).await && is_pending(&mut sends[1]).await);
        for _ in 0..sent {
            server.recv(buf).await.unwrap();
        }
        let [y, z] = sends;
        y.await.unwrap();
        z.await.unwrap();
        for expected in [b"y", b"z"] {
            assert_eq!((server.recv(buf).await.unwrap(), &*buf), (1, expected));
        }
    });
}

/// Nor does it spin, though each refusal makes an edge: the kernel means the buffer that is free again.
#[test]
fn datagram_to_a_full_queue_does_not_spin() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let _guard = runtime.handle().enter();
    let path = abstract_path("spin");
    let _server = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    while sender.try_send_to(b"x", &path).is_ok() {}
    let (count, waker) = Count::new();
    let begin = Instant::now();
    let mut send = Box::pin(sender.send_to(b"y", &path));
    for wakes in 1..=12 {
        assert!(poll(&mut send, &waker).is_pending());
        count.wait(wakes);
    }
    // A timer each time.
    assert!(begin.elapsed() >= Duration::from_millis(50), "12 wakes in {:?}", begin.elapsed());
}

#[test]
fn datagram_close_wakes_whoever_waits() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (a, _b) = UnixDatagram::pair().unwrap();
        while a.try_send(b"x").is_ok() {}
        let mut buf = [0; 8];
        let (mut recv, mut send) = (Box::pin(a.recv_from(&mut buf)), Box::pin(a.send(b"x")));
        assert!(is_pending(&mut recv).await && is_pending(&mut send).await);
        a.close();
        assert!(is_closed(&recv.await.unwrap_err()));
        assert!(is_closed(&send.await.unwrap_err()));
    });
}

#[test]
fn std_and_back() {
    let _alone = alone(20);
    let runtime = Runtime::new().unwrap();
    runtime.run(async {
        let (a, b) = std_unix::UnixStream::pair().unwrap();
        let stream = UnixStream::from_std(a).unwrap();
        let fd = stream.as_raw_fd();
        assert_eq!(fd, stream.as_fd().as_raw_fd());
        let mut read = Box::pin(async { stream.read(&mut [0; 1]).await });
        assert!(is_pending(&mut read).await);
        drop(read);
        let a = stream.into_std().unwrap();
        assert_eq!(a.as_raw_fd(), fd);
        assert_eq!(io::Read::read(&mut &a, &mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        io::Write::write_all(&mut &b, b"x").unwrap();
        // Taken out of the netpoller, it can be put in again.
        assert_eq!(UnixStream::from_std(a).unwrap().read(&mut [0; 1]).await.unwrap(), 1);
        let (a, _b) = std_unix::UnixDatagram::pair().unwrap();
        UnixDatagram::from_std(a).unwrap().into_std().unwrap();
    });
}
