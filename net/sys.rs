//! The system calls on sockets that neither std nor socket2 makes as they are needed here.

use socket2::SockRef;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

/// UIO_MAXIOV: a call takes no more buffers than that. It ends short then, and nothing has been drained (trap P14).
const MAX_BUFFERS: usize = 1024;

/// The buffers that one call takes, and how many bytes they hold.
pub(crate) fn one_call<B: Deref<Target = [u8]>>(bufs: &[B]) -> (&[B], usize) {
    let bufs = &bufs[..bufs.len().min(MAX_BUFFERS)];
    (bufs, bufs.iter().map(|b| b.len()).sum())
}

/// sendmsg(2), where std has writev(2), which can raise SIGPIPE (trap P26).
pub(crate) fn send_vectored(stream: &TcpStream, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(stream).send_vectored_with_flags(bufs, libc::MSG_NOSIGNAL)
}

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
