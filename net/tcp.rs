//! TCP: Go's net/tcpsock.go.

use super::dial::Dialer;
use super::fd::{Fd, Transfer};
use super::listen::{self, Backoff, ListenConfig};
use super::resolve::ToSocketAddrs;
use super::sys;
use crate::runtime::poll_gate::{Side, Start};
use futures_core::Stream;
use socket2::SockRef;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{self, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A TCP socket that listens.
///
/// # Examples
/// ```
/// use gopark::net::{TcpListener, TcpStream};
/// gopark::run(async {
///     let listener = TcpListener::bind("127.0.0.1:0").await?;
///     let client = gopark::spawn(TcpStream::connect(listener.local_addr()?));
///     let (server, _) = listener.accept().await?;
///     server.write_all(b"hello").await?;
///     let mut buf = [0; 5];
///     client.await.unwrap()?.read_exact(&mut buf).await?;
///     assert_eq!(&buf, b"hello");
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct TcpListener {
    fd: Fd<net::TcpListener>,
    backoff: Backoff,
}

impl Transfer for (net::TcpStream, SocketAddr) {
    fn is_short(&self, _asked: usize) -> bool {
        false
    }
}

impl TcpListener {
    /// Listens on the first of the addresses on which that can be done; port 0 lets the system choose. The backlog is
    /// what `/proc/sys/net/core/somaxconn` says.
    ///
    /// # Errors
    /// What the system says of the last address (`AddrInUse`, `PermissionDenied`), with the address named; what the
    /// resolver says.
    ///
    /// # Panics
    /// Outside a runtime.
    pub async fn bind<A: ToSocketAddrs>(addr: A) -> io::Result<Self> {
        ListenConfig::new().listen(addr).await
    }

    /// Takes the next connection. Any number of tasks may wait here at once.
    ///
    /// Where the process or the system has no descriptor or memory left (`EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`), it
    /// waits too: it tries again after 5 ms, doubling to 1 s, and goes on by itself when there is some again
    /// (trap P16). A connection that died in the queue is passed over.
    ///
    /// # Errors
    /// What else accept(2) says, and what registering the connection says. None of it ends the listener.
    ///
    /// # Cancel safety
    /// Safe: no connection is lost.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpStream::accepted(self.fd.io_op(Side::Read, 1, |l| self.accept_from(l)).await?)
    }

    /// The same, to be polled; every waker that polls is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.fd.poll_io(Side::Read, cx, None, 1, |l| self.accept_from(l)).map(|r| TcpStream::accepted(r?))
    }

    fn accept_from(&self, listener: &net::TcpListener) -> io::Result<(net::TcpStream, SocketAddr)> {
        self.backoff.accept(&self.fd, || sys::accept(listener.as_fd()))
    }

    /// The connections as a stream. It ends after [`close`](Self::close).
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Stops listening and wakes whoever waits; connections that nobody has taken are reset. Calling it again does
    /// nothing. The descriptor is released when the listener is dropped.
    pub fn close(&self) {
        self.fd.unblock();
        // It fails only where the socket is shut down already.
        let _ = SockRef::from(self.fd.io()).shutdown(Shutdown::Both);
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.fd.io().local_addr()
    }

    /// Takes over a listener of std's. (Its backlog stays what std asked for.)
    ///
    /// # Errors
    /// If it cannot be set to not block, or cannot be registered.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn from_std(listener: net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(TcpListener { fd: listen::register(listener)?, backoff: Backoff::new() })
    }

    /// Gives the listener to std, in non-blocking mode.
    ///
    /// # Errors
    /// None today.
    pub fn into_std(self) -> io::Result<net::TcpListener> {
        Ok(self.fd.into_inner())
    }
}

/// See [`TcpListener::incoming`].
#[derive(Debug)]
#[must_use = "a stream does nothing unless it is polled"]
pub struct Incoming<'a> {
    listener: &'a TcpListener,
}

impl Stream for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.listener.poll_accept(cx).map(|result| match result {
            Ok((stream, _)) => Some(Ok(stream)),
            Err(error) if error.get_ref().is_some_and(|e| e.is::<super::Closed>()) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

/// A TCP connection.
///
/// All operations take `&self`: any number of tasks may use one connection at once. Dropping it closes it.
///
/// `futures_io::{AsyncRead, AsyncWrite}` are there for `TcpStream`, `&TcpStream` and the halves.
#[derive(Debug)]
pub struct TcpStream {
    fd: Fd<net::TcpStream>,
}

impl TcpStream {
    /// Connects to the first of the addresses that answers. TCP_NODELAY and keepalive (15 s) are on, as in Go.
    ///
    /// # Errors
    /// What connect(2) says of the first address that failed, with the address named; what the resolver says.
    ///
    /// # Panics
    /// Outside a runtime.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up and leaves nothing behind.
    pub async fn connect<A: ToSocketAddrs>(addr: A) -> io::Result<Self> {
        Dialer::new().dial(addr).await
    }

    fn accepted((stream, addr): (net::TcpStream, SocketAddr)) -> io::Result<(Self, SocketAddr)> {
        Ok((TcpStream { fd: Fd::new(stream, Start::Try, Start::Try, true)? }, addr))
    }

    /// Takes over a connection of std's.
    ///
    /// # Errors
    /// If it cannot be set to not block, or cannot be registered.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn from_std(stream: net::TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(TcpStream { fd: Fd::new(stream, Start::Try, Start::Try, true)? })
    }

    /// Gives the connection to std, in non-blocking mode.
    ///
    /// # Errors
    /// None today.
    pub fn into_std(self) -> io::Result<net::TcpStream> {
        Ok(self.fd.into_inner())
    }

    /// Reads what is there, waiting until something is. 0 is the end of the stream (or an empty buffer).
    ///
    /// # Errors
    /// What recv(2) says; `NotConnected` with [`Closed`](super::Closed) inside after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Safe: no byte is lost.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.fd.io_op(Side::Read, buf.len(), |mut s| s.read(buf)).await
    }

    /// Reads into several buffers, one after the other. Otherwise as [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let asked = sys::one_call(bufs).1;
        if asked == 0 {
            return Ok(0);
        }
        self.fd.io_op(Side::Read, asked, |mut s| s.read_vectored(bufs)).await
    }

    /// Reads without taking: the next read sees the same bytes. Otherwise as [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        // It drains nothing, so it is never short.
        self.fd.io_op(Side::Read, 0, |s| s.peek(buf)).await
    }

    /// Fills the buffer.
    ///
    /// # Errors
    /// `UnexpectedEof` if the stream ends before; otherwise as [`read`](Self::read). What was read before is in `buf`.
    ///
    /// # Cancel safety
    /// None: how much was read before the drop is lost.
    pub async fn read_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read(buf).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => buf = &mut buf[n..],
            }
        }
        Ok(())
    }

    /// Writes as much as fits, waiting until something does.
    ///
    /// # Errors
    /// What send(2) says: `BrokenPipe` or `ConnectionReset` if the peer is gone; never a SIGPIPE (trap P26).
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped before it is ready, nothing was written.
    pub async fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.fd.io_op(Side::Write, buf.len(), |mut s| s.write(buf)).await
    }

    /// Writes several buffers, one after the other. Otherwise as [`write`](Self::write).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let (bufs, asked) = sys::one_call(bufs);
        self.fd.io_op(Side::Write, asked, |s| sys::send_vectored(s, bufs)).await
    }

    /// Writes all of it. No other `write_all` of this connection writes in between, from the first byte to the last.
    ///
    /// # Errors
    /// As [`write`](Self::write); what was written before is not told.
    ///
    /// # Cancel safety
    /// None: how much was written before the drop is lost. A future that is neither polled nor dropped keeps every
    /// other `write_all` of this connection waiting.
    pub async fn write_all(&self, mut buf: &[u8]) -> io::Result<()> {
        let _lock = self.fd.lock_writes().await?;
        while !buf.is_empty() {
            match self.write(buf).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => buf = &buf[n..],
            }
        }
        Ok(())
    }

    /// Waits until a read is worth trying: data, the end, or an error. Only observes, so an idle connection needs no
    /// buffer. Rarely it is wrong, and [`try_read`](Self::try_read) says `WouldBlock`.
    ///
    /// # Errors
    /// After [`close`](Self::close), and when the runtime is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.ready(Side::Read).await
    }

    /// Waits until a write is worth trying. Otherwise as [`readable`](Self::readable).
    ///
    /// # Errors
    /// As [`readable`](Self::readable).
    pub async fn writable(&self) -> io::Result<()> {
        self.fd.ready(Side::Write).await
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; otherwise as [`read`](Self::read).
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.fd.try_io(Side::Read, buf.len(), |mut s| s.read(buf))
    }

    /// As [`try_read`](Self::try_read), into several buffers.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let asked = sys::one_call(bufs).1;
        if asked == 0 {
            return Ok(0);
        }
        self.fd.try_io(Side::Read, asked, |mut s| s.read_vectored(bufs))
    }

    /// Writes what fits.
    ///
    /// # Errors
    /// `WouldBlock` if nothing does; otherwise as [`write`](Self::write).
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.fd.try_io(Side::Write, buf.len(), |mut s| s.write(buf))
    }

    /// As [`try_write`](Self::try_write), from several buffers.
    ///
    /// # Errors
    /// As [`try_write`](Self::try_write).
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let (bufs, asked) = sys::one_call(bufs);
        self.fd.try_io(Side::Write, asked, |s| sys::send_vectored(s, bufs))
    }

    /// Ends one direction or both. The peer reads to the end of what was written, then 0.
    ///
    /// # Errors
    /// What shutdown(2) says: `NotConnected` if the peer is gone already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.fd.io().shutdown(how)
    }

    /// Shuts the connection down and wakes everything that waits on it; later operations are refused. Calling it again
    /// does nothing. The descriptor is released when the stream is dropped.
    pub fn close(&self) {
        self.fd.unblock();
        // It fails only where the peer is gone already.
        let _ = self.fd.io().shutdown(Shutdown::Both);
    }

    /// This end's address.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.fd.io().local_addr()
    }

    /// The other end's address.
    ///
    /// # Errors
    /// What getpeername(2) says.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.fd.io().peer_addr()
    }

    /// Whether small writes are sent at once (on by default, as in Go) or gathered (Nagle's algorithm).
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.fd.io().set_nodelay(nodelay)
    }

    /// Whether small writes are sent at once.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.fd.io().nodelay()
    }

    /// After how long a silence the peer is probed (15 s by default, as in Go); `None` for never.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_keepalive(&self, after: Option<Duration>) -> io::Result<()> {
        let socket = SockRef::from(self.fd.io());
        match after {
            Some(after) => socket.set_tcp_keepalive(&listen::keepalive(after)),
            None => socket.set_keepalive(false),
        }
    }

    /// What closing does with bytes that are not yet sent: `None`, the default, sends them in the background; zero
    /// throws them away and resets the connection.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        SockRef::from(self.fd.io()).set_linger(linger)
    }

    /// How many hops a packet may make.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.fd.io().set_ttl(ttl)
    }

    /// The error that the socket has pending, which this clears.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.fd.io().take_error()
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.fd.poll_io(Side::Read, cx, None, buf.len(), |mut s| s.read(buf))
    }

    pub(super) fn poll_read_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let asked = sys::one_call(bufs).1;
        if asked == 0 {
            return Poll::Ready(Ok(0));
        }
        self.fd.poll_io(Side::Read, cx, None, asked, |mut s| s.read_vectored(bufs))
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.fd.poll_io(Side::Write, cx, None, buf.len(), |mut s| s.write(buf))
    }

    pub(super) fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let (bufs, asked) = sys::one_call(bufs);
        self.fd.poll_io(Side::Write, cx, None, asked, |s| sys::send_vectored(s, bufs))
    }

    pub(super) fn poll_close(&self) -> Poll<io::Result<()>> {
        match self.shutdown(Shutdown::Write) {
            // The peer was faster.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl TcpListener {
    /// Until when [`accept`](Self::accept) may wait; it then fails with `TimedOut`, until the deadline is set anew. `None`
    /// for as long as it takes. One that has passed takes effect before this returns, also on who is waiting.
    ///
    /// # Errors
    /// After [`close`](Self::close), and when the runtime is gone.
    pub fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        self.fd.set_deadline(&[Side::Read], at)
    }
}

impl TcpStream {
    /// Until when operations may wait; they then fail with `TimedOut`, until the deadline is set anew. `None` for as long
    /// as it takes. One that has passed takes effect before this returns, also on who is waiting. To move a deadline
    /// further into the future, as a server does before each request, costs some nanoseconds and no timer.
    ///
    /// # Errors
    /// After [`close`](Self::close), and when the runtime is gone.
    pub fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        self.fd.set_deadline(&[Side::Read, Side::Write], at)
    }

    /// As [`set_deadline`](Self::set_deadline), for reading alone.
    ///
    /// # Errors
    /// As there.
    pub fn set_read_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        self.fd.set_deadline(&[Side::Read], at)
    }

    /// As [`set_deadline`](Self::set_deadline), for writing alone.
    ///
    /// # Errors
    /// As there.
    pub fn set_write_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        self.fd.set_deadline(&[Side::Write], at)
    }
}

impl ListenConfig {
    /// Listens on the first of the addresses on which that can be done; port 0 lets the system choose.
    ///
    /// # Errors
    /// What the system says of the last address (`AddrInUse`, `PermissionDenied`), with the address named; what the
    /// resolver or the hook says.
    ///
    /// # Panics
    /// Outside a runtime.
    pub async fn listen<A: ToSocketAddrs>(&self, addr: A) -> io::Result<TcpListener> {
        Ok(TcpListener { fd: self.open(addr).await?, backoff: Backoff::new() })
    }
}

impl Dialer {
    /// Connects to the first of the addresses that answers. If there are addresses of both families, IPv4 and IPv6,
    /// those of the first one's are tried one after the other; those of the other are tried beside them after
    /// [`fallback_delay`](Self::fallback_delay), or as soon as the first have all failed.
    ///
    /// # Errors
    /// What connect(2) or the hook says of the first address that failed, with the address named; `TimedOut` if the
    /// time is over; what the resolver says; `InvalidInput` if there is no address, or none that can be reached from
    /// [`local_addr`](Self::local_addr).
    ///
    /// # Panics
    /// Outside a runtime.
    ///
    /// # Cancel safety
    /// Dropping the future gives all attempts up and leaves no socket behind.
    pub async fn dial<A: ToSocketAddrs>(&self, addr: A) -> io::Result<TcpStream> {
        Ok(TcpStream { fd: self.connect(addr).await? })
    }
}

macro_rules! fd_traits {
    ($($t:ty)*) => {$(
        impl AsFd for $t {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.fd.io().as_fd()
            }
        }

        impl AsRawFd for $t {
            fn as_raw_fd(&self) -> RawFd {
                self.fd.io().as_raw_fd()
            }
        }
    )*};
}

fd_traits! { TcpListener TcpStream }
