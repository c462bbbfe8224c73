//! Making listeners: Go's net/sock_posix.go.

use super::fd::Fd;
use super::resolve::ToSocketAddrs;
use crate::runtime::poll_gate::Start;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Go's default: probes after 15 s of silence, each 15 s.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(15))
}

/// The first of the addresses that can be listened on.
pub(crate) async fn listen<A: ToSocketAddrs>(addr: A) -> io::Result<Fd<TcpListener>> {
    let mut last = None;
    for addr in addr.resolve().await? {
        match listener(addr).and_then(register) {
            Ok(fd) => return Ok(fd),
            // Not of this address: the runtime is gone, and the error says so itself.
            Err(error) if error.raw_os_error().is_none() => return Err(error),
            Err(error) => last = Some(io::Error::new(error.kind(), ListenError { addr, error })),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no address to listen on")))
}

/// Puts a listener into the current runtime.
pub(crate) fn register(listener: TcpListener) -> io::Result<Fd<TcpListener>> {
    Fd::new(listener, Start::Try, Start::Nil, false)
}

fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // As Go and std do: a port can be listened on again while old connections linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    // Linux lets accepted sockets inherit these, so that no accept pays for them.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.bind(&addr.into())?;
    socket.listen(backlog())?;
    Ok(socket.into())
}

/// As long a queue as the system allows: Go's `maxListenerBacklog`.
fn backlog() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(libc::SOMAXCONN)
}

/// Says which address it was. The kind and the cause are the system's.
#[derive(Debug)]
struct ListenError {
    addr: SocketAddr,
    error: io::Error,
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot listen on {}: {}", self.addr, self.error)
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
