//! splice(2), sendfile(2), and the pipes that splice(2) needs: Go's internal/poll/splice_linux.go and sendfile_unix.go.

use super::sys::{self, check};
use socket2::{SockRef, Type};
use std::fs::File;
use std::io::{self, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What a pipe holds: Go's `maxSpliceSize`. At the default of 64 KiB, splicing costs more than copying.
pub(super) const PIPE_SIZE: usize = 1 << 20;
/// So many pipes there may be at once; whoever finds no more copies through a buffer.
const MAX_PIPES: usize = 64;
/// So many of them may wait for their next use.
const MAX_IDLE: usize = 16;

/// The pool, while anybody uses it: the last one to go leaves no descriptor behind.
static POOL: Mutex<Weak<Mutex<Pool>>> = Mutex::new(Weak::new());

#[derive(Default)]
pub(super) struct Pool {
    /// How many pipes somebody has.
    taken: usize,
    /// The others, all empty.
    idle: Vec<[OwnedFd; 2]>,
}

pub(super) fn pool() -> Arc<Mutex<Pool>> {
    let mut pool = lock(&POOL);
    let used = pool.upgrade().unwrap_or_default();
    *pool = Arc::downgrade(&used);
    used
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipe of PIPE_SIZE, neither end of which blocks. Once it is empty, dropping it gives it back to the pool; before, that
/// closes it, and what is in it is lost.
pub(super) struct Pipe {
    pool: Arc<Mutex<Pool>>,
    /// Where to read and where to write. `None` before they are made and when they are gone.
    ends: Option<[OwnedFd; 2]>,
    pub(super) held: usize,
}

impl Pipe {
    /// An empty one. Fails where there are MAX_PIPES, for want of descriptors, and where the user's pipes hold enough
    /// (`/proc/sys/fs/pipe-user-pages-soft`).
    pub(super) fn take(from: &Arc<Mutex<Pool>>) -> io::Result<Pipe> {
        let mut pool = lock(from);
        if pool.taken == MAX_PIPES {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        pool.taken += 1;
        let mut pipe = Pipe { pool: from.clone(), ends: pool.idle.pop(), held: 0 };
        drop(pool);
        if pipe.ends.is_none() {
            pipe.ends = Some(new_pipe()?);
        }
        Ok(pipe)
    }

    /// From a descriptor into the pipe. That is empty, and so no reason for EAGAIN.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>, max: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0);
        self.held = check(splice(from, self.end(1), max))?;
        Ok(self.held)
    }

    /// From the pipe, which is not empty, into a descriptor, whose EAGAIN it is therefore.
    pub(super) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let n = without_sigpipe(self.held, || splice(self.end(0), to, self.held))?;
        self.held -= n;
        Ok(n)
    }

    fn end(&self, which: usize) -> BorrowedFd<'_> {
        self.ends.as_ref().expect("they are there from `take` to `drop`")[which].as_fd()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut pool = lock(&self.pool);
        pool.taken -= 1;
        if self.held == 0 && pool.idle.len() < MAX_IDLE {
            pool.idle.extend(self.ends.take());
        }
        // What is not given back is closed after this, without the lock.
    }
}

fn new_pipe() -> io::Result<[OwnedFd; 2]> {
    let mut fds = [0; 2];
    // SAFETY: there is room for both descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: pipe2 has just made them, so they are ours alone.
    let ends = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: takes no pointers.
    check(unsafe { libc::fcntl(fds[1], libc::F_SETPIPE_SZ, PIPE_SIZE as libc::c_int) })?;
    Ok(ends)
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, max: usize) -> isize {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: no offsets are given, so it takes no pointers.
    unsafe { libc::splice(from.as_raw_fd(), ptr::null_mut(), to.as_raw_fd(), ptr::null_mut(), max, flags) }
}

/// Whether it is a stream of bytes that splice(2) knows: a stream socket or a pipe. Of anything else it may make one
/// message out of two, or take what the other side then refuses.
pub(super) fn is_spliced(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: takes no pointers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } & libc::O_APPEND != 0 {
        return false;
    }
    match SockRef::from(&fd).r#type() {
        Ok(socket) => socket == Type::STREAM,
        // SAFETY: takes no pointers.
        Err(_) => unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) > 0 },
    }
}

/// sendfile(2). `at` is where to read, and moves on; without it the file's own position counts. What was not sent was
/// not taken, so EAGAIN is the socket's.
pub(super) fn send_file(to: BorrowedFd<'_>, mut file: &File, at: Option<&mut i64>, max: usize) -> io::Result<usize> {
    // Not more than there is, if the file knows: before Linux 6.5 a file that ends within `max` has its end held back, until
    // the peer acknowledges what came before, or for 200 ms (MSG_MORE; the kernel's commit 2bfc66850952).
    let begin = at.as_ref().map_or_else(|| file.stream_position(), |at| Ok(**at as u64));
    let left = file.metadata()?.len().saturating_sub(begin.unwrap_or(0));
    let max = if left > 0 { max.min(left.try_into().unwrap_or(max)) } else { max };
    let at = at.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: `at` is null or outlives the call.
    without_sigpipe(max, || unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), at, max) })
}

/// read(2), or pread(2) at `at`, which moves on, into the room that the empty `buf` has.
pub(super) fn read(from: BorrowedFd<'_>, at: Option<&mut i64>, buf: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    let (fd, room, max) = (from.as_raw_fd(), buf.as_mut_ptr().cast(), max.min(buf.capacity()));
    // SAFETY: the kernel writes at most `max` bytes, for which there is room.
    let n =
        check(unsafe { at.as_ref().map_or_else(|| libc::read(fd, room, max), |at| libc::pread(fd, room, max, **at)) })?;
    // SAFETY: the kernel has written so many.
    unsafe { buf.set_len(n) };
    at.into_iter().for_each(|at| *at += n as i64);
    Ok(n)
}

/// send(2), and write(2) for what is no socket; without SIGPIPE.
pub(super) fn write(to: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most so many bytes of `buf`.
    let write = || unsafe { libc::write(to.as_raw_fd(), buf.as_ptr().cast(), buf.len()) };
    match sys::send(to, buf) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTSOCK) => without_sigpipe(buf.len(), write),
        result => result,
    }
}

/// Makes a call that moves `asked` bytes, and takes away the SIGPIPE that it raises where nobody reads any more (trap
/// P26). splice(2) and sendfile(2) have no flag against it; but it goes to the thread that called, and while that
/// blocks it, it stays pending there. (std ignores the signal and Go handles it; a program may do neither.)
fn without_sigpipe(asked: usize, call: impl FnOnce() -> isize) -> io::Result<usize> {
    let (mut set, mut old) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: sigemptyset writes the set, which then is valid for the others, and outlives them.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), old.as_mut_ptr());
    }
    let result = check(call());
    let raised = match &result {
        // It moved some, and then it may have found that nobody reads.
        Ok(moved) => *moved < asked,
        Err(error) => error.raw_os_error() == Some(libc::EPIPE),
    };
    // SAFETY: `set` and `old` were written above.
    unsafe {
        if raised {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut());
    }
    result
}

/// Whether the error says that the call is not for these descriptors, or not allowed here at all.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EOVERFLOW, libc::EPERM];
    error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}
