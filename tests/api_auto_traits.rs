//! Which types and futures are Send, Sync, Unpin. It holds when this compiles.
#![allow(missing_docs)]

use gopark::io::PollFd;
use gopark::net::{
    Closed, Incoming, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Received, ReuniteError, RuntimeGone, TcpListener,
    TcpStream, UCred, UdpSocket, UnixDatagram, UnixIncoming, UnixListener, UnixStream, WriteHalf, lookup_host,
};
use gopark::time::{Elapsed, Interval, MissedTick, Sleep, Timeout};
use gopark::{
    AbortHandle, Builder, EnterGuard, Handle, JoinError, JoinHandle, Runtime, StillRunning, TaskId, TaskInfo,
};
use std::cell::Cell;
use std::future::{Pending, Ready};
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomPinned;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::rc::Rc;
use std::time::Duration;

/// Which of the three a type is: `check!(Type: Send + Sync + !Unpin)`.
macro_rules! check {
    ($($t:ty: $(!$no:ident)? $($yes:ident)? $(+ $(!$nos:ident)? $($yess:ident)?)*;)*) => {$(
        check!(@one $t, $(!$no)? $($yes)?);
        $(check!(@one $t, $(!$nos)? $($yess)?);)*
    )*};
    (@one $t:ty, $trait:ident) => {
        const _: () = {
            const fn has<T: $trait + ?Sized>() {}
            has::<$t>();
        };
    };
    // Two impls would fit a type that has the trait, so that it is not known which is meant.
    (@one $t:ty, !$trait:ident) => {
        const _: () = {
            trait Ambiguous<A> {
                fn some() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Has;
            impl<T: $trait + ?Sized> Ambiguous<Has> for T {}
            let _ = <$t as Ambiguous<_>>::some;
        };
    };
}

check! {
    Builder: Send + Sync + Unpin;
    Runtime: Send + Sync + Unpin;
    Handle: Send + Sync + Unpin;
    EnterGuard<'static>: !Send + Unpin;
    StillRunning: Send + Sync + Unpin;
    JoinHandle<()>: Send + Sync + Unpin;
    JoinHandle<Cell<()>>: Send + Sync + Unpin;
    JoinHandle<PhantomPinned>: Send + Sync + Unpin;
    JoinHandle<Rc<()>>: !Send + Unpin;
    AbortHandle: Send + Sync + Unpin;
    JoinError: Send + Sync + Unpin;
    TaskId: Send + Sync + Unpin;
    TaskInfo: Send + Sync + Unpin;

    Sleep: Send + Sync;
    Timeout<Ready<()>>: Send + Sync;
    Timeout<Pending<Rc<()>>>: Send;
    Interval: Send + Sync + Unpin;
    MissedTick: Send + Sync + Unpin;
    Elapsed: Send + Sync + Unpin;

    gopark::net::Dialer: Send + Sync + Unpin;
    gopark::net::ListenConfig: Send + Sync + Unpin;
    TcpListener: Send + Sync + Unpin;
    TcpStream: Send + Sync + Unpin;
    Incoming<'static>: Send + Sync + Unpin;
    ReadHalf<'static>: Send + Sync + Unpin;
    WriteHalf<'static>: Send + Sync + Unpin;
    OwnedReadHalf: Send + Sync + Unpin;
    OwnedWriteHalf: Send + Sync + Unpin;
    ReuniteError: Send + Sync + Unpin;
    UnixListener: Send + Sync + Unpin;
    UnixStream: Send + Sync + Unpin;
    UnixDatagram: Send + Sync + Unpin;
    UnixIncoming<'static>: Send + Sync + Unpin;
    UCred: Send + Sync + Unpin;
    ReadHalf<'static, UnixStream>: Send + Sync + Unpin;
    WriteHalf<'static, UnixStream>: Send + Sync + Unpin;
    OwnedReadHalf<UnixStream>: Send + Sync + Unpin;
    OwnedWriteHalf<UnixStream>: Send + Sync + Unpin;
    ReuniteError<UnixStream>: Send + Sync + Unpin;
    UdpSocket: Send + Sync + Unpin;
    Received: Send + Sync + Unpin;
    Received<UnixAddr>: Send + Sync + Unpin;
    PollFd<OwnedFd>: Send + Sync + Unpin;
    PollFd<Rc<OwnedFd>>: !Send + !Sync + Unpin;
    Closed: Send + Sync + Unpin;
    RuntimeGone: Send + Sync + Unpin;
}

fn send<T: Send>(_: T) {}
fn send_sync<T: Send + Sync>(_: T) {}
fn send_static<T: Send + 'static>(_: T) {}

/// Compiled, and never called.
const _: () = {
    let _ = (futures, owned, unix_futures, udp_futures, poll_fd_futures);
};

/// The futures of the async methods.
fn futures(stream: &TcpStream, listener: &TcpListener, interval: &mut Interval, addr: SocketAddr) {
    let (read, write) = stream.split();
    let (mut a, mut b) = ([0], [0]);
    send_sync(stream.read(&mut a));
    send_sync(stream.read_vectored(&mut [IoSliceMut::new(&mut a)]));
    send_sync(stream.peek(&mut a));
    send_sync(stream.read_exact(&mut a));
    send_sync(stream.write(&b));
    send_sync(stream.write_vectored(&[IoSlice::new(&b)]));
    send_sync(stream.write_all(&b));
    send_sync(stream.readable());
    send_sync(stream.writable());
    send_sync(read.read(&mut a));
    send_sync(read.read_exact(&mut a));
    send_sync(read.peek(&mut b));
    send_sync(write.write(&b));
    send_sync(write.write_all(&b));
    send_sync(listener.accept());
    send_sync(interval.tick());
    send_sync(gopark::yield_now());
    // They can be spawned as they are.
    send_static(TcpStream::connect(addr));
    send_static(TcpStream::connect("localhost:1"));
    send_static(TcpStream::connect(String::new()));
    send_static(TcpStream::connect((String::new(), 1)));
    send_static(TcpListener::bind(addr));
    send(gopark::net::Dialer::new().dial("localhost:1"));
    send(gopark::net::ListenConfig::new().listen("localhost:1"));
    send_static(lookup_host("localhost:1"));
    send(TcpStream::connect(&[addr][..]));
    send(gopark::time::timeout(Duration::ZERO, stream.readable()));
}

fn owned(read: &OwnedReadHalf, write: &OwnedWriteHalf) {
    let mut a = [0];
    send_sync(read.read(&mut a));
    send_sync(read.read_exact(&mut a));
    send_sync(read.peek(&mut a));
    send_sync(write.write(&a));
    send_sync(write.write_all(&a));
}

fn unix_futures(stream: &UnixStream, listener: &UnixListener, datagram: &UnixDatagram, addr: &UnixAddr) {
    let (mut a, b) = ([0], [0]);
    send_sync(stream.read(&mut a));
    send_sync(stream.read_vectored(&mut [IoSliceMut::new(&mut a)]));
    send_sync(stream.peek(&mut a));
    send_sync(stream.read_exact(&mut a));
    send_sync(stream.write(&b));
    send_sync(stream.write_vectored(&[IoSlice::new(&b)]));
    send_sync(stream.write_all(&b));
    send_sync(stream.readable());
    send_sync(stream.writable());
    send_sync(stream.split().0.read_vectored(&mut [IoSliceMut::new(&mut a)]));
    send_sync(stream.split().1.write_vectored(&[IoSlice::new(&b)]));
    send_sync(listener.accept());
    send_sync(UnixStream::connect_addr(addr));
    send_static(UnixStream::connect("path"));
    send_static(UnixStream::connect(std::path::PathBuf::new()));
    send_sync(datagram.recv(&mut a));
    send_sync(datagram.recv_from(&mut a));
    send_sync(datagram.recv_msg(&mut [IoSliceMut::new(&mut a)]));
    send_sync(datagram.peek(&mut a));
    send_sync(datagram.peek_from(&mut a));
    send_sync(datagram.send(&b));
    send_sync(datagram.send_vectored(&[IoSlice::new(&b)]));
    send_sync(datagram.send_to(&b, "path"));
    send_sync(datagram.send_to_addr(&b, addr));
    send_sync(datagram.readable());
    send_sync(datagram.writable());
}

fn udp_futures(socket: &UdpSocket, addr: SocketAddr) {
    let mut a = [0];
    send_static(UdpSocket::bind(addr));
    send_static(UdpSocket::bind("localhost:1"));
    send_sync(socket.connect(addr));
    send_sync(socket.send_to(&a, addr));
    send_sync(socket.send_many(&[(IoSlice::new(&a), Some(addr))]));
    send_sync(socket.recv_many(&mut [IoSliceMut::new(&mut a)], &mut Vec::new()));
    send_sync(socket.recv_from(&mut a));
    send_sync(socket.readable());
}

fn poll_fd_futures(fd: &PollFd<OwnedFd>) {
    send_sync(fd.readable());
    send_sync(fd.writable());
    send_sync(fd.read_with(|_| Ok(())));
    send_sync(fd.write_with(|_| Ok(())));
}

/// Errors are errors.
#[test]
fn errors() {
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<Closed>();
    error::<RuntimeGone>();
    error::<ReuniteError>();
    error::<ReuniteError<UnixStream>>();
    error::<Elapsed>();
    error::<JoinError>();
    error::<StillRunning>();
    assert_eq!(std::io::Error::from(gopark_elapsed()).kind(), std::io::ErrorKind::TimedOut);
}

fn gopark_elapsed() -> Elapsed {
    gopark::block_on(async { gopark::time::timeout(Duration::ZERO, std::future::pending::<()>()).await }).unwrap_err()
}
