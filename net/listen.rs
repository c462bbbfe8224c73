//! Making listeners, and what accept(2) says when it has none to give: Go's net/sock_posix.go, and the back-off of
//! net/http's `Server.Serve`.

use super::prelude::*;
use crate::runtime::poll_gate::complain;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Go's default for the silence after which a peer is probed.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);

/// Settings of a [`TcpListener`](super::TcpListener): Go's `net.ListenConfig`.
///
/// # Examples
/// ```
/// use gopark::net::ListenConfig;
/// gopark::run(async {
///     // One listener per worker: the kernel shares the connections out.
///     let config = ListenConfig::new().reuse_port(true);
///     let first = config.listen("127.0.0.1:0").await?;
///     let second = config.listen(first.local_addr()?).await?;
///     assert_eq!(first.local_addr()?, second.local_addr()?);
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a configuration does nothing until `listen`"]
pub struct ListenConfig {
    backlog: u32,
    reuse_addr: bool,
    reuse_port: bool,
    only_v6: bool,
    keepalive: Option<Duration>,
    control: Control,
}

impl Default for ListenConfig {
    fn default() -> Self {
        ListenConfig {
            // The kernel cuts it down.
            backlog: u32::MAX,
            reuse_addr: true,
            reuse_port: false,
            only_v6: false,
            keepalive: Some(KEEPALIVE),
            control: Control::default(),
        }
    }
}

impl ListenConfig {
    /// The settings that [`TcpListener::bind`](super::TcpListener::bind) uses.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// How many connections may wait to be accepted. Unless set, as many as the system allows, which is what
        /// `/proc/sys/net/core/somaxconn` says; it allows no more if told.
        fn backlog(connections: u32) { backlog = connections }

        /// Whether the port can be listened on while connections of an older listener, which had this setting too,
        /// linger (SO_REUSEADDR): yes unless set.
        fn reuse_addr(reuse: bool) { reuse_addr = reuse }

        /// Whether several listeners, all with this setting, may share the port (SO_REUSEPORT): no unless set.
        fn reuse_port(reuse: bool) { reuse_port = reuse }

        /// Whether a listener on `[::]` takes IPv6 connections only. Unless set it takes IPv4 ones too, whatever the
        /// system's default is.
        fn only_v6(only: bool) { only_v6 = only }

        /// After how long a silence the peer of an accepted connection is probed: 15 s unless set; `None` for never.
        /// The kernel counts in seconds, at least one and at most 32,767: part of a second is a whole one.
        fn keepalive(after: Option<Duration>) { keepalive = after }

        /// Called with each socket and the address it is for, when the other settings have been made and before it is
        /// bound. An error gives the address up.
        fn control(hook: impl Fn(BorrowedFd<'_>, SocketAddr) -> io::Result<()> + Send + Sync + 'static) {
            control = Control(Some(Arc::new(hook)))
        }
    }

    /// A socket that listens on that address.
    pub(crate) fn listener(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        // Linux lets accepted sockets inherit what is set here, so that no accept pays for it.
        let socket = socket(addr, self.keepalive)?;
        socket.set_reuse_address(self.reuse_addr)?;
        socket.set_reuse_port(self.reuse_port)?;
        if addr.is_ipv6() {
            socket.set_only_v6(self.only_v6)?;
        }
        self.control.call(&socket, addr)?;
        socket.bind(&addr.into())?;
        socket.listen(self.backlog.try_into().unwrap_or(i32::MAX))?;
        Ok(socket.into())
    }
}

/// A TCP socket as both ends make it: not blocking, no delay, keepalive.
pub(crate) fn socket(addr: SocketAddr, keepalive_after: Option<Duration>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(after) = keepalive_after {
        socket.set_tcp_keepalive(&keepalive(after))?;
    }
    Ok(socket)
}

/// Probes after that much silence, then each 15 s. The kernel takes whole seconds, and no less than one.
pub(crate) fn keepalive(after: Duration) -> TcpKeepalive {
    let after = sys::whole_seconds(after).max(Duration::from_secs(1));
    TcpKeepalive::new().with_time(after).with_interval(KEEPALIVE)
}

type Hook = dyn Fn(BorrowedFd<'_>, SocketAddr) -> io::Result<()> + Send + Sync;

/// The user's hook that sees a socket before it is bound: Go's `Control`.
#[derive(Clone, Default)]
pub(crate) struct Control(pub(crate) Option<Arc<Hook>>);

impl Control {
    pub(crate) fn call(&self, socket: &Socket, addr: SocketAddr) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hook| hook(socket.as_fd(), addr))
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a hook" } else { "none" })
    }
}

/// A listener's patience where the system has no descriptor or memory left (trap P16): accept fails, the connection
/// stays in the queue, and no edge will tell when that changes. So accept is tried again after 5 ms, doubling to 1 s,
/// and not before, however many connections make edges meanwhile. All acceptors share it, and a success ends it.
///
/// The waiting itself is the slot's, so that a close and a deadline end it as any other.
#[derive(Default)]
pub(crate) struct Backoff {
    /// The pause: its length in ms, in the low 16 bits, and above, when it ends, in ms of the gate's clock; 0 without one.
    /// Relaxed: whoever loses a race for it is woken by what the winner does next, a success or a timer.
    pause: AtomicU64,
}

impl Backoff {
    /// An accept call of the listener `fd`, to be made inside its EAGAIN loop: Go's `poll.FD.Accept`.
    pub(crate) fn accept<R>(&self, fd: &Gate, mut accept: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        let pause = self.pause.load(Ordering::Relaxed);
        if pause != 0 && fd.now() / MS < pause >> 16 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let error = loop {
            match accept() {
                // A connection that died in the queue: it is out of it now.
                Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(e) if LACKING.map(Some).contains(&e.raw_os_error()) => break e,
                result => {
                    if pause != 0 && result.is_ok() {
                        self.pause.store(0, Ordering::Relaxed);
                    }
                    return result;
                }
            }
        };
        let length = next_pause(pause & 0xffff);
        let end = fd.now().div_ceil(MS) + length;
        // Only one of several that fail at once begins the pause.
        if self.pause.compare_exchange(pause, end << 16 | length, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            fd.retry_at(Side::Read, end * MS);
            if !TOLD.swap(true, Ordering::Relaxed) {
                let advice = "see `ulimit -n` and `gopark::net::raise_nofile_limit`";
                complain(&format!("gopark: accept: {error}. It waits until there is some again; {advice}\n"));
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// What accept(2) may find lacking.
const LACKING: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
/// Somebody was told, once in the life of the process. Relaxed: the flag stands for itself.
static TOLD: AtomicBool = AtomicBool::new(false);

/// A millisecond of the gate's clock.
const MS: u64 = 1_000_000;

/// In ms, as in net/http's `Server.Serve`.
fn next_pause(last: u64) -> u64 {
    (last * 2).clamp(5, 1000)
}

#[cfg(test)]
mod tests;
