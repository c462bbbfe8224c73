//! The system calls on sockets that neither std nor socket2 makes as they are needed here.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

/// accept4(2): the connection, already not blocking and close-on-exec, so that it costs no further call.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(TcpStream, SocketAddr)> {
    let mut fd = -1;
    // SAFETY: `try_init` gives room for any address; accept4 writes at most `len` bytes and says how many.
    let ((), addr) = unsafe {
        socket2::SockAddr::try_init(|addr, len| {
            fd = libc::accept4(listener.as_raw_fd(), addr.cast(), len, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
            if fd == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
        })?
    };
    // SAFETY: accept4 has just made it, so it is ours alone.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let addr =
        addr.as_socket().ok_or_else(|| io::Error::other("accept4 gave an address that is not of the internet"))?;
    Ok((stream, addr))
}
