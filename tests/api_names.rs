//! Each public name is there and does what it is named for, in one line each: what users may rely on.
#![allow(missing_docs)]

mod support;

use futures::task::Spawn;
use gopark::io::PollFd;
use gopark::net::{
    Closed, Incoming, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Received, ReuniteError, RuntimeGone, TcpListener,
    TcpStream, ToSocketAddrs, UCred, UdpSocket, UnixDatagram, UnixIncoming, UnixListener, UnixStream, WriteHalf,
    lookup_host, raise_nofile_limit,
};
use gopark::time::{
    Duration, Elapsed, Instant, Interval, MissedTick, Sleep, Timeout, interval, interval_at, sleep, sleep_until,
    timeout, timeout_at,
};
use gopark::{
    AbortHandle, Builder, EnterGuard, Handle, JoinError, JoinHandle, Runtime, StillRunning, TaskId, TaskInfo,
    block_in_place, block_on, run, spawn, spawn_blocking, yield_now,
};
use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::watchdog;

#[test]
fn root() {
    let _dog = watchdog(30);
    assert_eq!(block_on(async { 1 }), 1);
    assert_eq!(run(async { 2 }), 2);
    run(async {
        let task: JoinHandle<i32> = spawn(async { 3 });
        let _: TaskId = task.id();
        assert_eq!(task.await.unwrap(), 3);
        assert_eq!(spawn_blocking(|| 4).await.unwrap(), 4);
        assert_eq!(block_in_place(|| 5), 5);
        yield_now().await;
    });
}

#[test]
fn builder_and_runtime() {
    let _dog = watchdog(30);
    let (started, stopped, panicked) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = |counter: &Arc<AtomicUsize>| {
        let counter = counter.clone();
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    let hook = count(&panicked);
    let runtime: Runtime = Builder::new()
        .workers(2)
        .max_threads(8)
        .thread_name("names")
        .thread_stack_size(256 << 10)
        .on_thread_start(count(&started))
        .on_thread_stop(count(&stopped))
        .on_task_panic(move |info: &TaskInfo, payload: &(dyn Any + Send)| {
            let _: TaskId = info.id();
            assert!(info.spawned_at().file().ends_with("api_names.rs"));
            assert!(payload.is::<&str>());
            hook();
        })
        .build()
        .unwrap();
    assert_eq!(runtime.block_on(async { 1 }), 1);
    assert_eq!(runtime.run(async { 2 }), 2);
    assert_eq!(runtime.block_on(runtime.spawn(async { 3 })).unwrap(), 3);
    assert_eq!(runtime.block_on(runtime.spawn_blocking(|| 4)).unwrap(), 4);
    drop(runtime.spawn(async { panic!("nobody joins this task, as the test wants") }));
    while panicked.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let result: Result<(), StillRunning> = runtime.shutdown_timeout(Duration::from_secs(20));
    result.unwrap();
    assert!(started.load(Ordering::Relaxed) >= 1);
    assert_eq!(started.load(Ordering::Relaxed), stopped.load(Ordering::Relaxed));
    Runtime::new().unwrap().shutdown_background();
}

#[test]
fn handle() {
    let _dog = watchdog(30);
    assert!(Handle::try_current().is_none());
    let runtime = Runtime::new().unwrap();
    let handle: Handle = runtime.handle().clone();
    {
        let _guard: EnterGuard<'_> = handle.enter();
        let _: Handle = Handle::current();
    }
    assert_eq!(handle.block_on(async { 1 }), 1);
    assert_eq!(handle.run(async { 2 }), 2);
    assert_eq!(handle.block_on(handle.spawn(async { 3 })).unwrap(), 3);
    assert_eq!(handle.block_on(handle.spawn_blocking(|| 4)).unwrap(), 4);
    handle.spawn_obj(Box::pin(async {}).into()).unwrap();
}

#[test]
fn join() {
    let _dog = watchdog(30);
    run(async {
        let task = spawn(std::future::pending::<()>());
        let abort: AbortHandle = task.abort_handle();
        assert!(!abort.is_finished() && !task.is_finished());
        assert_eq!(abort.clone().id(), task.id());
        abort.abort();
        task.abort();
        let error: JoinError = task.await.unwrap_err();
        assert!(error.is_cancelled() && !error.is_panic());
        let _: TaskId = error.id();
        error.try_into_panic().unwrap_err();
        let error = spawn(async { panic!("joined, as the test wants") }).await.unwrap_err();
        assert!(error.is_panic());
        assert!(error.into_panic().is::<&str>());
    });
}

#[test]
fn time() {
    let _dog = watchdog(30);
    run(async {
        let now = Instant::now();
        let mut sleeping: Sleep = sleep(Duration::from_millis(1));
        assert!(sleeping.deadline() > now && !sleeping.is_elapsed());
        sleeping.reset(now);
        sleeping.await;
        sleep_until(now).await;
        let waiting: Timeout<_> = timeout(Duration::ZERO, std::future::pending::<()>());
        let elapsed: Elapsed = waiting.await.unwrap_err();
        assert_eq!(io::Error::from(elapsed).kind(), io::ErrorKind::TimedOut);
        timeout_at(now, std::future::pending::<()>()).await.unwrap_err();
        let mut ticks: Interval = interval(Duration::from_millis(1));
        assert_eq!(ticks.period(), Duration::from_millis(1));
        ticks.set_missed_tick(MissedTick::Skip);
        assert_eq!(ticks.missed_tick(), MissedTick::Skip);
        let _ = (MissedTick::Burst, MissedTick::Delay);
        ticks.tick().await;
        ticks.reset();
        assert_eq!(interval_at(now, Duration::from_millis(1)).tick().await, now);
    });
}

#[test]
fn net() {
    let _dog = watchdog(30);
    async fn connect<A: ToSocketAddrs>(addr: A) -> TcpStream {
        TcpStream::connect(addr).await.unwrap()
    }
    raise_nofile_limit().unwrap();
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr: SocketAddr = listener.local_addr().unwrap();
        let mut looked_up = lookup_host(addr).await.unwrap();
        assert_eq!(looked_up.next(), Some(addr));
        let stream = connect(addr).await;
        let (peer, peer_addr): (TcpStream, SocketAddr) = listener.accept().await.unwrap();
        assert_eq!(peer_addr, stream.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), addr);
        let _: Incoming<'_> = listener.incoming();
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx).is_pending()));
        assert!(polled.await);
        let listener = TcpListener::from_std(listener.into_std().unwrap()).unwrap();

        assert!(stream.as_raw_fd() == stream.as_fd().as_raw_fd() && listener.as_raw_fd() >= 0);
        stream.set_nodelay(true).unwrap();
        assert!(stream.nodelay().unwrap());
        stream.set_keepalive(None).unwrap();
        stream.set_linger(None).unwrap();
        stream.set_ttl(64).unwrap();
        assert!(stream.take_error().unwrap().is_none());

        let mut buf = [0; 8];
        stream.writable().await.unwrap();
        stream.write(b"a").await.unwrap();
        stream.write_all(b"b").await.unwrap();
        stream.write_vectored(&[io::IoSlice::new(b"c")]).await.unwrap();
        stream.try_write(b"d").unwrap();
        stream.try_write_vectored(&[io::IoSlice::new(b"e")]).unwrap();
        peer.readable().await.unwrap();
        peer.peek(&mut buf[..1]).await.unwrap();
        peer.read(&mut buf[..1]).await.unwrap();
        peer.read_exact(&mut buf[1..2]).await.unwrap();
        peer.read_vectored(&mut [io::IoSliceMut::new(&mut buf[2..3])]).await.unwrap();
        peer.try_read(&mut buf[3..4]).unwrap();
        peer.try_read_vectored(&mut [io::IoSliceMut::new(&mut buf[4..5])]).unwrap();
        assert_eq!(&buf[..5], b"abcde");

        let stream = TcpStream::from_std(stream.into_std().unwrap()).unwrap();
        {
            let (read, write): (ReadHalf<'_>, WriteHalf<'_>) = stream.split();
            write.write(b"f").await.unwrap();
            write.write_all(b"g").await.unwrap();
            peer.write_all(b"hij").await.unwrap();
            read.peek(&mut buf[..1]).await.unwrap();
            read.read(&mut buf[..1]).await.unwrap();
            read.read_exact(&mut buf[1..3]).await.unwrap();
            assert!(std::ptr::eq(read.stream(), write.stream()));
        }
        let (read, write): (OwnedReadHalf, OwnedWriteHalf) = stream.into_split();
        write.write(b"k").await.unwrap();
        write.write_all(b"l").await.unwrap();
        peer.write_all(b"mno").await.unwrap();
        read.peek(&mut buf[..1]).await.unwrap();
        read.read(&mut buf[..1]).await.unwrap();
        read.read_exact(&mut buf[1..3]).await.unwrap();
        assert!(std::ptr::eq(read.stream(), write.stream()));
        let (other_read, other_write) = peer.into_split();
        let error: ReuniteError = read.reunite(other_write).unwrap_err();
        let ReuniteError(read, other_write) = error;
        let stream = write.reunite(read).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        other_write.forget();
        drop(other_read);
        stream.close();
        let error = stream.read(&mut buf).await.unwrap_err();
        assert!(error.get_ref().unwrap().is::<Closed>());
        listener.close();
        let mut accept = pin!(listener.accept());
        let error = accept.as_mut().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    });
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    drop(runtime);
    let error = futures::executor::block_on(listener.accept()).unwrap_err();
    assert!(error.get_ref().unwrap().is::<RuntimeGone>());
}

/// What every socket and descriptor has, whatever it is for.
macro_rules! common {
    ($($socket:expr),*) => {$(
        let far = Some(Instant::now() + Duration::from_secs(3600));
        $socket.set_deadline(far).unwrap();
        $socket.set_read_deadline(far).unwrap();
        $socket.set_write_deadline(None).unwrap();
        $socket.writable().await.unwrap();
        assert_eq!($socket.as_raw_fd(), $socket.as_fd().as_raw_fd());
        $socket.close();
        assert!($socket.readable().await.unwrap_err().get_ref().unwrap().is::<Closed>());
    )*};
}

#[test]
fn deadlines_and_close() {
    let _dog = watchdog(30);
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.set_deadline(Some(Instant::now() + Duration::from_secs(3600))).unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ((unix, _peer), (datagram, _other)) = (UnixStream::pair().unwrap(), UnixDatagram::pair().unwrap());
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (std, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let poll_fd = PollFd::new(std).unwrap();
        common!(tcp, unix, datagram, udp, poll_fd);
    });
}

#[test]
fn net_unix() {
    let _dog = watchdog(30);
    run(async {
        let path = format!("\0gopark-names-{}", std::process::id());
        let listener = UnixListener::bind(&path).unwrap();
        let addr: UnixAddr = listener.local_addr().unwrap();
        listener.set_unlink_on_close(false).unwrap();
        listener.set_deadline(None).unwrap();
        let stream = UnixStream::connect(&path).await.unwrap();
        let (peer, peer_addr): (UnixStream, UnixAddr) = listener.accept().await.unwrap();
        assert!(peer_addr.is_unnamed() && peer.peer_addr().unwrap().is_unnamed());
        UnixStream::connect_addr(&addr).await.unwrap();
        let mut incoming: UnixIncoming<'_> = listener.incoming();
        futures::StreamExt::next(&mut incoming).await.unwrap().unwrap();
        let listener = UnixListener::from_std(listener.into_std().unwrap()).unwrap();
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx).is_pending()));
        assert!(polled.await);
        listener.close();
        UnixListener::bind_addr(&addr).unwrap_err();

        let cred: UCred = stream.peer_cred().unwrap();
        assert!(cred.pid().is_some() && cred == peer.peer_cred().unwrap());
        let _ = (cred.uid(), cred.gid());
        assert!(stream.take_error().unwrap().is_none());
        let mut buf = [0; 8];
        stream.write(b"a").await.unwrap();
        stream.write_all(b"b").await.unwrap();
        stream.write_vectored(&[io::IoSlice::new(b"c")]).await.unwrap();
        stream.try_write(b"d").unwrap();
        stream.try_write_vectored(&[io::IoSlice::new(b"e")]).unwrap();
        peer.peek(&mut buf[..1]).await.unwrap();
        peer.read(&mut buf[..1]).await.unwrap();
        peer.read_exact(&mut buf[1..2]).await.unwrap();
        peer.read_vectored(&mut [io::IoSliceMut::new(&mut buf[2..3])]).await.unwrap();
        peer.try_read(&mut buf[3..4]).unwrap();
        peer.try_read_vectored(&mut [io::IoSliceMut::new(&mut buf[4..5])]).unwrap();
        assert_eq!(&buf[..5], b"abcde");
        let stream = UnixStream::from_std(stream.into_std().unwrap()).unwrap();
        let (_, _): (ReadHalf<'_, UnixStream>, WriteHalf<'_, UnixStream>) = stream.split();
        let (read, write): (OwnedReadHalf<UnixStream>, OwnedWriteHalf<UnixStream>) = stream.into_split();
        let other = peer.into_split();
        let ReuniteError::<UnixStream>(read, _) = read.reunite(other.1).unwrap_err();
        read.reunite(write).unwrap().shutdown(Shutdown::Both).unwrap();

        let (a, b) = UnixDatagram::pair().unwrap();
        let bound = UnixDatagram::bind(format!("{path}-datagram")).unwrap();
        UnixDatagram::bind_addr(&bound.local_addr().unwrap()).unwrap_err();
        let unbound = UnixDatagram::unbound().unwrap();
        unbound.connect(format!("{path}-datagram")).unwrap();
        unbound.connect_addr(&bound.local_addr().unwrap()).unwrap();
        unbound.send_to(b"x", format!("{path}-datagram")).await.unwrap();
        unbound.try_send_to(b"x", format!("{path}-datagram")).unwrap();
        unbound.send_to_addr(b"x", &bound.local_addr().unwrap()).await.unwrap();
        let (_, _): (usize, UnixAddr) = bound.recv_from(&mut buf).await.unwrap();
        let _: Received<UnixAddr> = bound.recv_msg(&mut [io::IoSliceMut::new(&mut buf)]).await.unwrap();
        bound.try_recv_from(&mut buf).unwrap();
        let a = UnixDatagram::from_std(a.into_std().unwrap()).unwrap();
        a.send(b"x").await.unwrap();
        a.send_vectored(&[io::IoSlice::new(b"x")]).await.unwrap();
        a.try_send(b"x").unwrap();
        b.peek(&mut buf).await.unwrap();
        b.peek_from(&mut buf).await.unwrap();
        b.recv(&mut buf).await.unwrap();
        b.try_recv(&mut buf).unwrap();
        b.try_recv_msg(&mut [io::IoSliceMut::new(&mut buf)]).unwrap();
        assert!(a.take_error().unwrap().is_none() && a.peer_addr().unwrap().is_unnamed());
        a.shutdown(Shutdown::Both).unwrap();
    });
}

/// A socket prints as std's does: its addresses and its descriptor.
#[test]
fn debug() {
    fn check<S: Debug, T: Debug>(std: S, from_std: impl FnOnce(S) -> io::Result<T>) -> T {
        let text = format!("{std:?}");
        let ours = from_std(std).unwrap();
        assert_eq!(format!("{ours:?}"), text);
        ours
    }
    let _dog = watchdog(30);
    run(async {
        let listener = check(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::from_std);
        let addr = listener.local_addr().unwrap();
        let stream = check(std::net::TcpStream::connect(addr).unwrap(), TcpStream::from_std);
        let text = format!("{stream:?}");
        assert!(text.contains(&format!("{addr:?}")) && text.contains(&stream.as_raw_fd().to_string()), "{text}");
        check(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::from_std);
        let name = UnixAddr::from_abstract_name(format!("gopark-debug-{}", std::process::id())).unwrap();
        check(std::os::unix::net::UnixListener::bind_addr(&name).unwrap(), UnixListener::from_std);
        check(std::os::unix::net::UnixDatagram::pair().unwrap().0, UnixDatagram::from_std);
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        check(a, UnixStream::from_std);
        let text = format!("{b:?}");
        assert_eq!(format!("{:?}", PollFd::new(b).unwrap()), format!("PollFd {{ fd: {text} }}"));
    });
}

#[test]
fn net_udp() {
    let _dog = watchdog(30);
    run(async {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr: SocketAddr = b.local_addr().unwrap();
        a.connect(addr).await.unwrap();
        assert_eq!(a.peer_addr().unwrap(), addr);
        a.send(b"x").await.unwrap();
        a.try_send(b"x").unwrap();
        a.send_to(b"x", addr).await.unwrap();
        a.try_send_to(b"x", addr).unwrap();
        a.send_vectored(&[io::IoSlice::new(b"x")]).await.unwrap();
        a.send_many(&[(io::IoSlice::new(b"x"), None), (io::IoSlice::new(b"x"), Some(addr))]).await.unwrap();
        let mut buf = [0; 8];
        b.peek(&mut buf).await.unwrap();
        b.peek_from(&mut buf).await.unwrap();
        b.recv(&mut buf).await.unwrap();
        b.try_recv(&mut buf).unwrap();
        let (_, _): (usize, SocketAddr) = b.recv_from(&mut buf).await.unwrap();
        b.try_recv_from(&mut buf).unwrap();
        let Received { len, addr, truncated, .. } = b.recv_msg(&mut [io::IoSliceMut::new(&mut buf)]).await.unwrap();
        assert_eq!((len, addr, truncated), (1, a.local_addr().unwrap(), false));
        b.try_recv_msg(&mut [io::IoSliceMut::new(&mut buf)]).unwrap();
        let mut received: Vec<Received> = Vec::new();
        assert_eq!(b.recv_many(&mut [io::IoSliceMut::new(&mut buf)], &mut received).await.unwrap(), 1);
        assert_eq!(received.len(), 1);
        assert!(a.take_error().unwrap().is_none());
        a.set_broadcast(false).unwrap();
        assert!(!a.broadcast().unwrap());
        a.set_ttl(64).unwrap();
        assert_eq!(a.ttl().unwrap(), 64);
        UdpSocket::from_std(a.into_std().unwrap()).unwrap();
    });
}

#[test]
fn poll_fd() {
    let _dog = watchdog(30);
    run(async {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let (reader, writer) = (PollFd::new(reader).unwrap(), PollFd::new(writer).unwrap());
        writer.write_with(|mut pipe| io::Write::write(&mut pipe, b"a")).await.unwrap();
        writer.try_write_with(|mut pipe| io::Write::write(&mut pipe, b"b")).unwrap();
        let mut buf = [0; 1];
        reader.read_with(|mut pipe| io::Read::read(&mut pipe, &mut buf)).await.unwrap();
        reader.try_read_with(|mut pipe| io::Read::read(&mut pipe, &mut buf)).unwrap();
        assert_eq!(reader.get_ref().as_raw_fd(), reader.as_raw_fd());
        let _: std::os::unix::net::UnixStream = reader.into_inner();
    });
}
