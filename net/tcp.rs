//! TCP: Go's net/tcpsock.go.

use super::dial::Dialer;
use super::fd::Fd;
use super::listen::{self, Backoff, ListenConfig};
use super::prelude::*;
use super::resolve::{ToSocketAddrs, first};
use socket2::SockRef;
use std::net::{self, SocketAddr};

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
pub struct TcpListener {
    fd: Fd<net::TcpListener>,
    backoff: Backoff,
}

owner!(TcpListener { backoff }: net::TcpListener, Start::Try);
listener!(TcpListener, TcpStream, SocketAddr, Incoming);

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

    /// Stops listening and wakes whoever waits; connections that nobody has taken are reset. Calling it again does
    /// nothing. The descriptor is released when the listener is dropped.
    pub fn close(&self) {
        socket::close(&self.fd);
    }
}

/// A TCP connection.
///
/// All operations take `&self`: any number of tasks may use one connection at once. Dropping it closes it.
///
/// `futures_io::{AsyncRead, AsyncWrite}` are there for `TcpStream`, `&TcpStream` and the halves.
pub struct TcpStream {
    pub(super) fd: Fd<net::TcpStream>,
}

owner!(TcpStream: net::TcpStream, Start::Try);
stream!(TcpStream, SocketAddr);

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

    forward! {
        /// Whether small writes are sent at once (on by default, as in Go) or gathered (Nagle's algorithm).
        fn set_nodelay(nodelay: bool) -> ();
        /// Whether small writes are sent at once.
        fn nodelay() -> bool;
        /// How many hops a packet may make.
        fn set_ttl(ttl: u32) -> ();
        /// How many hops a packet may make.
        fn ttl() -> u32;
    }

    /// After how long a silence the peer is probed (15 s by default, as in Go); `None` for never. Part of a second is a whole one.
    ///
    /// # Errors
    /// What setsockopt(2) says: `InvalidInput` beyond 32,767 s.
    pub fn set_keepalive(&self, after: Option<Duration>) -> io::Result<()> {
        let socket = SockRef::from(self.fd.io());
        match after {
            Some(after) => socket.set_tcp_keepalive(&listen::keepalive(after)),
            None => socket.set_keepalive(false),
        }
    }

    /// What closing does with bytes that are not yet sent: `None`, the default, sends them in the background; zero
    /// throws them away and resets the connection. Any other time has the thread that drops the stream wait for them, at
    /// most so long, and a worker with it: close(2) does that even where nothing else blocks. The kernel counts in seconds: part
    /// of one is a whole one.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        SockRef::from(self.fd.io()).set_linger(linger.map(sys::whole_seconds))
    }

    /// What closing does with bytes that are not yet sent: see [`set_linger`](Self::set_linger).
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        SockRef::from(self.fd.io()).linger()
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
        first(addr, "listen on", |addr| TcpListener::register(self.listener(addr)?, None)).await
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
