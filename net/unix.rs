//! Unix sockets: Go's net/unixsock.go.
//!
//! A path that begins with a zero byte is a name in Linux's abstract namespace, which has no file.

use super::fd::Fd;
use super::listen::Backoff;
use super::prelude::*;
use crate::runtime::budget;
use crate::runtime::poll_gate::Shut;
use crate::runtime::time::sleep;
use socket2::{Domain, SockAddr, Socket, Type};
use std::ffi::OsStr;
use std::future::poll_fn;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A Unix socket that listens.
///
/// If it was bound to a path, the path is unlinked when it is closed or dropped, as Go does.
///
/// # Examples
/// ```
/// use gopark::net::{UnixListener, UnixStream};
/// # let path = std::env::temp_dir().join(format!("gopark-doc-{}", std::process::id()));
/// gopark::run(async move {
///     let listener = UnixListener::bind(&path)?;
///     let client = UnixStream::connect(&path).await?;
///     let (server, addr) = listener.accept().await?;
///     assert!(addr.is_unnamed());
///     server.write_all(b"hello").await?;
///     let mut buf = [0; 5];
///     client.read_exact(&mut buf).await?;
///     drop(listener);
///     assert!(!path.exists());
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub struct UnixListener {
    /// Goes first: Go unlinks before it closes.
    unlink: Unlink,
    fd: Fd<net::UnixListener>,
    backoff: Backoff,
}

// Whoever has it as std's has the path too.
owner!(UnixListener { unlink, backoff }: net::UnixListener, Start::Try, before into_std: unlink.set(None));
listener!(UnixListener, UnixStream, SocketAddr, UnixIncoming);

impl UnixListener {
    /// Listens at a path, where nothing may be yet.
    ///
    /// # Errors
    /// What the system says (`AddrInUse`, `PermissionDenied`, `NotFound`); `InvalidInput` if the path does not fit into
    /// an address.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&addr_of(path.as_ref())?)
    }

    /// Listens at an address.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn bind_addr(addr: &SocketAddr) -> io::Result<Self> {
        let listener = net::UnixListener::bind_addr(addr)?;
        // Made now: the file goes even if the rest fails.
        let unlink = Unlink(Mutex::new((addr.as_pathname().map(Path::to_owned), false)));
        Ok(UnixListener { unlink, ..Self::from_std(listener)? })
    }

    /// Whether the path is unlinked when the listener is closed or dropped: yes if [`bind`](Self::bind) made it, no if it
    /// came by [`from_std`](Self::from_std), unless set. Once it is closed, the path is no longer its own.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn set_unlink_on_close(&self, unlink: bool) -> io::Result<()> {
        let path = if unlink { self.local_addr()?.as_pathname().map(Path::to_owned) } else { None };
        self.unlink.set(path);
        Ok(())
    }

    /// Stops listening and wakes whoever waits; connections that nobody has taken are ended. Calling it again does
    /// nothing. The descriptor is released when the listener is dropped; and so are those connections, where the process
    /// has no descriptor left to end them before (`EMFILE`).
    pub fn close(&self) {
        self.unlink.now();
        socket::close(&self.fd);
        // New ones are refused by now. Those in the queue feel neither shutdown(2) nor listen(2): only the last close(2) of
        // the listener ends them, or an accept, which needs a descriptor.
        while sys::accept::<OwnedFd, SocketAddr>(self.as_fd()).is_ok() {}
    }
}

/// A path that is to be unlinked; and whether that is over, for it happens once. Go's `unlinkOnce`.
#[derive(Default)]
struct Unlink(Mutex<(Option<PathBuf>, bool)>);

impl Unlink {
    fn lock(&self) -> MutexGuard<'_, (Option<PathBuf>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, new: Option<PathBuf>) {
        let (path, is_over) = &mut *self.lock();
        *path = new.filter(|_| !*is_over);
    }

    fn now(&self) {
        let (path, _) = mem::replace(&mut *self.lock(), (None, true));
        // Whoever has removed it before may have done so.
        let _ = path.map(std::fs::remove_file);
    }
}

impl Drop for Unlink {
    fn drop(&mut self) {
        self.now();
    }
}

/// A connection between Unix sockets.
///
/// All operations take `&self`: any number of tasks may use one connection at once. Dropping it closes it.
///
/// `futures_io::{AsyncRead, AsyncWrite}` are there for `UnixStream`, `&UnixStream` and the halves.
///
/// # Examples
/// ```
/// use gopark::net::UnixStream;
/// gopark::run(async {
///     let (a, b) = UnixStream::pair()?;
///     assert_eq!(b.peer_cred()?.pid(), Some(std::process::id() as i32));
///     a.write_all(b"hello").await?;
///     let mut buf = [0; 5];
///     b.read_exact(&mut buf).await?;
///     assert_eq!(&buf, b"hello");
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub struct UnixStream {
    fd: Fd<net::UnixStream>,
}

// Passed descriptors cut a read (trap P25).
owner!(UnixStream: net::UnixStream, Start::TryCut);
stream!(UnixStream, SocketAddr);

impl UnixStream {
    /// Connects to who listens at a path. While the listener's queue is full, this waits, as connect(2) does on a socket
    /// that blocks. The kernel does not tell when there is room again, so it is asked after 1 ms, doubling to 100 ms.
    ///
    /// # Errors
    /// What connect(2) says: `NotFound`, `ConnectionRefused` if nobody listens there, `PermissionDenied`; `InvalidInput`
    /// if the path does not fit into an address.
    ///
    /// # Panics
    /// Outside a runtime.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up and leaves nothing behind.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        poll_fn(budget::poll_take).await;
        Self::connect_addr(&addr_of(path.as_ref())?).await
    }

    /// Connects to who listens at an address. Otherwise as [`connect`](Self::connect).
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Panics
    /// Outside a runtime.
    pub async fn connect_addr(addr: &SocketAddr) -> io::Result<Self> {
        poll_fn(budget::poll_take).await;
        let abstract_path = addr.as_abstract_name().map(|name| [b"\0", name].concat());
        let path = abstract_path.as_deref().or(addr.as_pathname().map(|path| path.as_os_str().as_bytes()));
        let addr = SockAddr::unix(OsStr::from_bytes(path.unwrap_or_default()))?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        let mut pause = Duration::from_millis(1);
        while let Err(error) = socket.connect(&addr) {
            match error.kind() {
                io::ErrorKind::WouldBlock => sleep(pause).or_gone().await?,
                io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        Self::register(OwnedFd::from(socket).into(), None)
    }

    /// Two sockets without names, connected to each other.
    ///
    /// # Errors
    /// What socketpair(2) says.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = net::UnixStream::pair()?;
        Ok((Self::from_std(a)?, Self::from_std(b)?))
    }

    /// Who the peer was when it connected, listened, or made the pair.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn peer_cred(&self) -> io::Result<UCred> {
        let libc::ucred { pid, uid, gid } = sys::peer_cred(self.as_fd())?;
        Ok(UCred { pid, uid, gid })
    }
}

/// A process's credentials: see [`UnixStream::peer_cred`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UCred {
    pid: libc::pid_t,
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl UCred {
    /// The process; `None` if it cannot be seen from this one's namespace.
    pub fn pid(&self) -> Option<libc::pid_t> {
        Some(self.pid).filter(|pid| *pid != 0)
    }

    /// Its effective user.
    pub fn uid(&self) -> libc::uid_t {
        self.uid
    }

    /// Its effective group.
    pub fn gid(&self) -> libc::gid_t {
        self.gid
    }
}

/// A Unix socket for datagrams, which arrive whole and in order.
///
/// All operations take `&self`: any number of tasks may use one socket at once. Dropping it closes it; its path, if it
/// was bound to one, stays.
///
/// # Examples
/// ```
/// use gopark::net::UnixDatagram;
/// gopark::run(async {
///     let (a, b) = UnixDatagram::pair()?;
///     a.send(b"hello").await?;
///     let mut buf = [0; 16];
///     let (n, from) = b.recv_from(&mut buf).await?;
///     assert_eq!(&buf[..n], b"hello");
///     assert!(from.is_unnamed());
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub struct UnixDatagram {
    fd: Fd<net::UnixDatagram>,
}

owner!(UnixDatagram: net::UnixDatagram, Start::TryCut);
datagram!(UnixDatagram, SocketAddr);

impl UnixDatagram {
    /// A socket at a path, where nothing may be yet.
    ///
    /// # Errors
    /// What the system says (`AddrInUse`, `PermissionDenied`, `NotFound`); `InvalidInput` if the path does not fit into
    /// an address.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::bind_addr(&addr_of(path.as_ref())?)
    }

    /// A socket at an address.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn bind_addr(addr: &SocketAddr) -> io::Result<Self> {
        Self::from_std(net::UnixDatagram::bind_addr(addr)?)
    }

    /// A socket without a name.
    ///
    /// # Errors
    /// What socket(2) says.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn unbound() -> io::Result<Self> {
        Self::from_std(net::UnixDatagram::unbound()?)
    }

    /// Two sockets without names, connected to each other.
    ///
    /// # Errors
    /// What socketpair(2) says.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = net::UnixDatagram::pair()?;
        Ok((Self::from_std(a)?, Self::from_std(b)?))
    }

    /// Makes the socket at a path the peer: datagrams go to it, and no other's arrive.
    ///
    /// # Errors
    /// What connect(2) says: `NotFound`, `ConnectionRefused` if nobody has that socket open; `InvalidInput` if the path
    /// does not fit into an address.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.connect_addr(&addr_of(path.as_ref())?)
    }

    /// Sends a datagram to the socket at a path. While its queue is full, this waits, and looks every 10 ms.
    ///
    /// # Errors
    /// As [`send`](Self::send), and as [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped before it is ready, nothing was sent.
    pub async fn send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        poll_fn(budget::poll_take).await;
        self.send_to_addr(buf, &addr_of(path.as_ref())?).await
    }

    /// Sends a datagram to the socket at an address. Otherwise as [`send_to`](Self::send_to).
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to).
    pub async fn send_to_addr(&self, buf: &[u8], addr: &SocketAddr) -> io::Result<usize> {
        loop {
            poll_fn(budget::poll_take).await;
            match self.try_send_to_addr(buf, addr) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.fd.pause_writing(Duration::from_millis(10)).await?;
                }
                sent => return sent,
            }
        }
    }

    /// Sends a datagram to the socket at a path, if there is room. [`writable`](Self::writable) tells nothing about that.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; otherwise as [`send_to`](Self::send_to).
    pub fn try_send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.try_send_to_addr(buf, &addr_of(path.as_ref())?)
    }

    /// Past the slot, which knows of the peer: of room at anybody else the kernel tells nothing, a refusal says nothing of
    /// other receivers, and each attempt makes an edge of its own (the buffer that it frees, unix_write_space in
    /// net/unix/af_unix.c).
    fn try_send_to_addr(&self, buf: &[u8], addr: &SocketAddr) -> io::Result<usize> {
        self.fd.is_ready(Side::Write)?;
        // A `close` meanwhile may be what it says.
        let closed = |error| if self.fd.is_closed(Side::Write) { Shut::Closed.into() } else { error };
        loop {
            match self.fd.io().send_to_addr(buf, addr) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map_err(closed),
            }
        }
    }

    /// Ends one direction or both. Who waits to receive does not hear of it from the kernel, and waits on.
    ///
    /// # Errors
    /// What the system says.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        socket::shutdown(&self.fd, how)
    }

    forward! {
        /// Makes the socket at an address the peer, as [`connect`](Self::connect).
        fn connect_addr(addr: &SocketAddr) -> ();
    }
}

/// A path as an address.
fn addr_of(path: &Path) -> io::Result<SocketAddr> {
    match path.as_os_str().as_bytes() {
        [0, name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}
