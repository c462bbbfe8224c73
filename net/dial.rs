//! Making connections: Go's net/dial.go and fd_unix.go.

use super::fd::Fd;
use super::listen::keepalive;
use super::resolve::ToSocketAddrs;
use crate::runtime::poll_gate::{Side, Start};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpStream};

/// Connects to the first of the addresses that answers.
pub(crate) async fn dial<A: ToSocketAddrs>(addr: A) -> io::Result<Fd<TcpStream>> {
    let mut first = None;
    for addr in addr.resolve().await? {
        match connect(addr).await {
            Ok(fd) => return Ok(fd),
            // Not of this address: the runtime is gone, and the error says so itself.
            Err(error) if error.raw_os_error().is_none() => return Err(error),
            Err(error) => first = first.or(Some(io::Error::new(error.kind(), DialError { addr, error }))),
        }
    }
    Err(first.unwrap_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no address to connect to")))
}

async fn connect(addr: SocketAddr) -> io::Result<Fd<TcpStream>> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    // An interrupted connect goes on by itself, as one in progress does.
    let connecting = match socket.connect(&addr.into()) {
        Ok(()) => false,
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => true,
        Err(e) => return Err(e),
    };
    // Registered only now: a socket that is not connecting yet counts as hung up. What is to come makes an edge.
    let start = if connecting { Start::Nil } else { Start::Try };
    let fd = Fd::new(TcpStream::from(socket), start, start, true)?;
    if connecting {
        connected(&fd).await?;
    }
    Ok(fd)
}

/// Waits until a connect that is in progress is done. Readiness alone proves nothing (trap P17): without an error there
/// must be a peer.
async fn connected(fd: &Fd<TcpStream>) -> io::Result<()> {
    loop {
        fd.ready(Side::Write).await?;
        if let Some(error) = fd.io().take_error()? {
            return Err(error);
        }
        match fd.io().peer_addr() {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => fd.forget_ready(Side::Write),
            result => return result.map(drop),
        }
    }
}

/// Says which address it was. The kind and the cause are the system's.
#[derive(Debug)]
struct DialError {
    addr: SocketAddr,
    error: io::Error,
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot connect to {}: {}", self.addr, self.error)
    }
}

impl std::error::Error for DialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
