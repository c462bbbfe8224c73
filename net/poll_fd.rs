//! Any other descriptor that epoll takes: Go's `os.NewFile` of one that does not block.

use super::fd::Fd;
use super::prelude::*;
use socket2::SockRef;

/// A descriptor of any kind that can be waited for: a pipe, an eventfd, timerfd, pidfd or inotify, a terminal.
///
/// It does not read or write by itself: it calls what does, whenever that is worth trying.
///
/// # Examples
/// ```
/// use gopark::io::PollFd;
/// use std::fs::File;
/// use std::io::Read;
/// use std::os::fd::OwnedFd;
/// use std::process::{Command, Stdio};
/// gopark::run(async {
///     let mut echo = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
///     let pipe = PollFd::new(File::from(OwnedFd::from(echo.stdout.take().unwrap())))?;
///     let mut buf = [0; 16];
///     assert_eq!(pipe.read_with(|mut pipe| pipe.read(&mut buf)).await?, 6);
///     assert_eq!(&buf[..6], b"hello\n");
///     echo.wait()?;
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
///
/// A signalfd needs its signals blocked in all threads, or they end the process: at the beginning of `main`, before there is a
/// runtime, whose threads take that over.
/// ```
/// use gopark::io::PollFd;
/// use std::fs::File;
/// use std::io::Read;
/// use std::os::fd::FromRawFd;
/// // SAFETY: the set is valid from `sigemptyset` on, and the descriptor is nobody else's.
/// let signals = unsafe {
///     let mut set = std::mem::zeroed();
///     libc::sigemptyset(&mut set);
///     libc::sigaddset(&mut set, libc::SIGINT);
///     libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
///     File::from_raw_fd(libc::signalfd(-1, &set, libc::SFD_CLOEXEC))
/// };
/// gopark::run(async {
///     let signals = PollFd::new(signals)?;
/// #   // SAFETY: takes no pointers.
/// #   unsafe { libc::kill(libc::getpid(), libc::SIGINT) };
///     signals.read_with(|mut signals| signals.read(&mut [0; 128])).await?;
///     println!("Ctrl-C");
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct PollFd<T: AsFd> {
    fd: Fd<T>,
}

has_fd!(impl[T: AsFd] PollFd<T>);

const UNSUPPORTED: &str = "epoll cannot wait for a descriptor of this kind, such as a regular file; use spawn_blocking";
const IN_USE: &str = "this descriptor is in use in this runtime already; duplicate it first (dup(2))";

impl<T: AsFd> PollFd<T> {
    /// Takes over a descriptor, and sets it to not block. That is a property of the open file: whoever else has it open,
    /// such as the parent process from which a terminal was inherited, finds it changed.
    ///
    /// # Errors
    /// `Unsupported` if nothing can be waited for, as with regular files and directories: use
    /// [`spawn_blocking`](crate::spawn_blocking) for those. `AlreadyExists` if the descriptor is in use here already.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn new(io: T) -> io::Result<Self> {
        let fd = Fd::new(io, Start::TryCut, None).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => io::Error::new(io::ErrorKind::Unsupported, UNSUPPORTED),
            Some(libc::EEXIST) => io::Error::new(io::ErrorKind::AlreadyExists, IN_USE),
            _ => error,
        })?;
        SockRef::from(fd.io()).set_nonblocking(true)?;
        Ok(PollFd { fd })
    }

    /// Calls `read` whenever it is worth trying, until it says anything but `WouldBlock`; at once again, if that is
    /// `Interrupted`.
    ///
    /// # Errors
    /// What `read` says; `TimedOut` after the deadline; `NotConnected` with [`Closed`] inside after
    /// [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Safe: whatever `read` returns is returned by the poll that called it.
    pub async fn read_with<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        Ok(self.fd.io_op(Side::Read, 0, |_| Ok((read(self.fd.io())?, ()))).await?.0)
    }

    /// Calls `write` whenever it is worth trying, until it says anything but `WouldBlock`; at once again, if that is
    /// `Interrupted`.
    ///
    /// # Errors
    /// As [`read_with`](Self::read_with). If nobody can read any more, a write to a pipe raises SIGPIPE, which Rust
    /// programs ignore unless told otherwise, and fails with `BrokenPipe`.
    ///
    /// # Cancel safety
    /// As [`read_with`](Self::read_with).
    pub async fn write_with<R>(&self, mut write: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        Ok(self.fd.io_op(Side::Write, 0, |_| Ok((write(self.fd.io())?, ()))).await?.0)
    }

    /// Calls `read` once, if that is worth trying; again, as long as it says `Interrupted`.
    ///
    /// # Errors
    /// `WouldBlock` if it is not; otherwise as [`read_with`](Self::read_with).
    pub fn try_read_with<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        Ok(self.fd.try_io(Side::Read, 0, |_| Ok((read(self.fd.io())?, ())))?.0)
    }

    /// Calls `write` once, if that is worth trying; again, as long as it says `Interrupted`.
    ///
    /// # Errors
    /// `WouldBlock` if it is not; otherwise as [`write_with`](Self::write_with).
    pub fn try_write_with<R>(&self, mut write: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        Ok(self.fd.try_io(Side::Write, 0, |_| Ok((write(self.fd.io())?, ())))?.0)
    }

    read_side!();
    write_side!();
    both_sides!();

    /// Wakes everything that waits on the descriptor; later operations are refused. Calling it again does nothing. The
    /// descriptor is released when the `PollFd` is dropped.
    pub fn close(&self) {
        self.fd.unblock();
    }

    /// The descriptor. Reads and writes belong into [`read_with`](Self::read_with) and its like: only they tell `readable` and
    /// `writable` that there is nothing left.
    pub fn get_ref(&self) -> &T {
        self.fd.io()
    }

    /// Gives the descriptor back. It still does not block.
    pub fn into_inner(self) -> T {
        self.fd.into_inner()
    }
}
