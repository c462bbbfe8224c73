//! The system calls on sockets that neither std nor socket2 makes as they are needed here.

use socket2::{SockAddr, SockRef};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// UIO_MAXIOV: a call takes no more buffers than that. It ends short then, and nothing has been drained (trap P14).
const MAX_BUFFERS: usize = 1024;

/// The buffers that one call takes, and how many bytes they hold.
pub(crate) fn one_call<B: Deref<Target = [u8]>>(bufs: &[B]) -> (&[B], usize) {
    let bufs = &bufs[..bufs.len().min(MAX_BUFFERS)];
    (bufs, bufs.iter().map(|b| b.len()).sum())
}

/// Turns a system call's -1 into the error it left behind.
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// recv(2), on any kind of socket.
pub(crate) fn recv(socket: &impl AsFd, buf: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes into the buffer, and not beyond it.
    check(unsafe { libc::recv(socket.as_fd().as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags) })
}

/// readv(2), on any kind of socket.
pub(crate) fn recv_vectored(socket: &impl AsFd, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = bufs.len().min(MAX_BUFFERS) as libc::c_int;
    // SAFETY: an `IoSliceMut` is an iovec to the kernel, which writes into the first `count` buffers only.
    check(unsafe { libc::readv(socket.as_fd().as_raw_fd(), bufs.as_mut_ptr().cast(), count) })
}

/// send(2), without the SIGPIPE that std's write(2) on a Unix socket can raise (trap P26).
pub(crate) fn send(socket: &impl AsFd, buf: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_with_flags(buf, libc::MSG_NOSIGNAL)
}

/// sendmsg(2), where std has writev(2), for the same reason.
pub(crate) fn send_vectored(socket: &impl AsFd, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(socket).send_vectored_with_flags(bufs, libc::MSG_NOSIGNAL)
}

/// An address as std has it.
pub(crate) trait Addr: Sized {
    /// `None`: it is of another family.
    fn of(addr: &SockAddr) -> Option<Self>;
}

impl Addr for SocketAddr {
    fn of(addr: &SockAddr) -> Option<Self> {
        addr.as_socket()
    }
}

/// accept4(2): the connection, already not blocking and close-on-exec, so that it costs no further call.
pub(crate) fn accept<S: From<OwnedFd>, A: Addr>(listener: &impl AsFd) -> io::Result<(S, A)> {
    let mut fd = -1;
    // SAFETY: `try_init` gives room for any address; accept4 writes at most `len` bytes and says how many.
    let ((), addr) = unsafe {
        SockAddr::try_init(|addr, len| {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            fd = libc::accept4(listener.as_fd().as_raw_fd(), addr.cast(), len, flags);
            check(fd as isize).map(drop)
        })?
    };
    // SAFETY: accept4 has just made it, so it is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let addr = A::of(&addr).ok_or_else(|| io::Error::other("the peer's address is of another family"))?;
    Ok((socket.into(), addr))
}
