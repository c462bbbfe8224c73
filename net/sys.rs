//! The system calls on sockets that neither std nor socket2 makes as they are needed here.

use crate::runtime::poll_gate::syscall6;
use socket2::{MaybeUninitSlice, SockAddr, SockAddrStorage, SockRef};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::time::Duration;
use std::{array, mem, ptr};

/// UIO_MAXIOV: a call takes no more buffers than that. It ends short then, and nothing has been drained (trap P14).
const MAX_BUFFERS: usize = 1024;

/// The buffers that one call takes, and how many bytes they hold.
pub(crate) fn one_call<B: Deref<Target = [u8]>>(bufs: &[B]) -> (&[B], usize) {
    let bufs = &bufs[..bufs.len().min(MAX_BUFFERS)];
    (bufs, bufs.iter().map(|b| b.len()).sum())
}

/// What a call is asked for that moves something whole, such as a datagram, however long: it is never short.
pub(crate) const WHOLE: usize = 1;

/// The next whole number of seconds, for options that count in those: none but zero becomes zero.
pub(crate) fn whole_seconds(time: Duration) -> Duration {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    Duration::from_secs(seconds.min(i32::MAX as u64))
}

/// Turns a system call's -1 into the error it left behind.
pub(crate) fn check(result: impl TryInto<usize>) -> io::Result<usize> {
    result.try_into().map_err(|_| io::Error::last_os_error())
}

/// recv(2), on any kind of socket: recvfrom(2) without an address.
#[inline]
pub(crate) fn recv(socket: BorrowedFd<'_>, buf: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let (fd, room) = (socket.as_raw_fd() as usize, buf.as_mut_ptr().expose_provenance());
    // SAFETY: the kernel writes into the buffer, and not beyond it; no address is null, and no length of one.
    unsafe { syscall6(libc::SYS_recvfrom, [fd, room, buf.len(), flags as usize, 0, 0]) }
}

/// readv(2), on any kind of socket.
pub(crate) fn recv_vectored(socket: BorrowedFd<'_>, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = bufs.len().min(MAX_BUFFERS) as libc::c_int;
    // SAFETY: an `IoSliceMut` is an iovec to the kernel, which writes into the first `count` buffers only.
    check(unsafe { libc::readv(socket.as_raw_fd(), bufs.as_mut_ptr().cast(), count) })
}

/// send(2): sendto(2) without an address, and without the SIGPIPE that std's write(2) on a Unix socket can raise (trap
/// P26).
#[inline]
pub(crate) fn send(socket: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    let (fd, bytes) = (socket.as_raw_fd() as usize, buf.as_ptr().expose_provenance());
    // SAFETY: the kernel reads the buffer, and not beyond it; no address is null, and no length of one.
    unsafe { syscall6(libc::SYS_sendto, [fd, bytes, buf.len(), libc::MSG_NOSIGNAL as usize, 0, 0]) }
}

/// sendmsg(2), where std has writev(2), for the same reason.
pub(crate) fn send_vectored(socket: BorrowedFd<'_>, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(&socket).send_vectored_with_flags(bufs, libc::MSG_NOSIGNAL)
}

/// An address as std has it.
pub(crate) trait Addr: Sized {
    /// Fails if it is of another family.
    fn of(addr: &SockAddr) -> io::Result<Self>;
}

impl Addr for SocketAddr {
    fn of(addr: &SockAddr) -> io::Result<Self> {
        addr.as_socket().ok_or_else(|| io::Error::other("the peer's address is of another family"))
    }
}

impl Addr for UnixAddr {
    fn of(addr: &SockAddr) -> io::Result<Self> {
        let abstract_name = addr.as_abstract_namespace().map(UnixAddr::from_abstract_name);
        // A sender without a name comes without a family too. A path of 108 bytes, which other languages can bind to, is
        // one too long for std to make an address of, and no reason to lose what came from there.
        let named = addr.as_pathname().map(UnixAddr::from_pathname).or(abstract_name);
        named.and_then(Result::ok).map_or_else(|| UnixAddr::from_pathname(""), Ok)
    }
}

/// accept4(2): the connection, already not blocking and close-on-exec, so that it costs no further call.
pub(crate) fn accept<S: From<OwnedFd>, A: Addr>(listener: BorrowedFd<'_>) -> io::Result<(S, A)> {
    let (socket, addr) = SockRef::from(&listener).accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)?;
    Ok((OwnedFd::from(socket).into(), A::of(&addr)?))
}

/// What came with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received<A = SocketAddr> {
    /// So many bytes are in the buffer.
    pub len: usize,
    /// Who sent it.
    pub addr: A,
    /// It was longer than the buffer, and the rest is lost.
    pub truncated: bool,
}

/// Datagrams per system call. What the kernel takes at most is 1024, but that much room is too much for a stack.
pub(crate) const DATAGRAMS: usize = 32;

/// The header of a datagram that has one buffer. The pointers must be valid when it is used.
fn header(name: *const SockAddrStorage, name_len: libc::socklen_t, iov: *const IoSlice<'_>) -> libc::mmsghdr {
    // SAFETY: null pointers and zeros are a valid header.
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = name.cast_mut().cast();
    header.msg_hdr.msg_namelen = name_len;
    // An `IoSlice` is an iovec, and so is an `IoSliceMut`.
    header.msg_hdr.msg_iov = iov.cast_mut().cast();
    header.msg_hdr.msg_iovlen = 1;
    header
}

/// recvmsg(2): one datagram.
pub(crate) fn recv_msg<A: Addr>(
    socket: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    flags: libc::c_int,
) -> io::Result<Received<A>> {
    let count = bufs.len().min(MAX_BUFFERS);
    // SAFETY: both have the layout of an iovec, and the kernel leaves no byte uninitialised.
    let bufs = unsafe { &mut *(&raw mut bufs[..count] as *mut [MaybeUninitSlice<'_>]) };
    let (len, flags, addr) = SockRef::from(&socket).recv_from_vectored_with_flags(bufs, flags)?;
    Ok(Received { len, addr: A::of(&addr)?, truncated: flags.is_truncated() })
}

/// recvmmsg(2): as many datagrams as are there, each into a buffer of its own.
pub(crate) fn recv_many(
    socket: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    done: &mut Vec<Received>,
) -> io::Result<usize> {
    let mut names: [_; DATAGRAMS] = array::from_fn(|_| SockAddrStorage::zeroed());
    let mut headers: [_; DATAGRAMS] = array::from_fn(|i| {
        let iov = bufs.get_mut(i).map_or(ptr::null(), |buf| (&raw mut *buf).cast_const().cast());
        header(&raw mut names[i], names[i].size_of(), iov)
    });
    let len = bufs.len().min(DATAGRAMS) as libc::c_uint;
    let (fd, headers_ptr) = (socket.as_raw_fd(), headers.as_mut_ptr());
    // SAFETY: each of the first `len` headers has a name and a buffer that are exclusively ours.
    let len = check(unsafe { libc::recvmmsg(fd, headers_ptr, len, 0, ptr::null_mut()) })?;
    for (header, name) in headers.iter().zip(names).take(len) {
        let (header, len) = (&header.msg_hdr, header.msg_len as usize);
        // SAFETY: the kernel has filled the name in, or left it zeroed; `msg_namelen` says how far.
        let addr = SocketAddr::of(&unsafe { SockAddr::new(name, header.msg_namelen) })?;
        done.push(Received { len, addr, truncated: header.msg_flags & libc::MSG_TRUNC != 0 });
    }
    Ok(len)
}

/// sendmmsg(2): as many datagrams as there is room for, each to an address of its own or to the socket's peer.
pub(crate) fn send_many(socket: BorrowedFd<'_>, datagrams: &[(IoSlice<'_>, Option<SocketAddr>)]) -> io::Result<usize> {
    let names: [_; DATAGRAMS] = array::from_fn(|i| datagrams.get(i).and_then(|(_, addr)| addr.map(SockAddr::from)));
    let mut headers: [_; DATAGRAMS] = array::from_fn(|i| {
        let iov = datagrams.get(i).map_or(ptr::null(), |(buf, _)| &raw const *buf);
        let (name, name_len) = names[i].as_ref().map_or((ptr::null(), 0), |name| (name.as_ptr(), name.len()));
        header(name.cast(), name_len, iov)
    });
    let len = datagrams.len().min(DATAGRAMS) as libc::c_uint;
    let (fd, headers_ptr) = (socket.as_raw_fd(), headers.as_mut_ptr());
    // SAFETY: each of the first `len` headers has a buffer and either a name or none; the kernel reads them only. (musl
    // has the flags without a sign.)
    check(unsafe { libc::sendmmsg(fd, headers_ptr, len, libc::MSG_NOSIGNAL as _) })
}

/// SO_PEERCRED.
pub(crate) fn peer_cred(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, room) = (socket.as_raw_fd(), (&raw mut cred).cast());
    // SAFETY: there are `len` bytes of room, which take any value.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, room, &mut len) })?;
    Ok(cred)
}

/// Lifts the soft limit of open descriptors to the hard one, as Go does at start (os/rlimit.go), and returns it. (Linux
/// keeps the soft limit low for programs that use select(2), which cannot name a descriptor above 1023.)
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
///
/// # Examples
/// ```
/// assert!(gopark::net::raise_nofile_limit()? > 0);
/// # std::io::Result::Ok(())
/// ```
pub fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: there is room for both limits.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: only reads them.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(limit.rlim_cur)
}
