//! Every system call the runtime makes, each a safe function over owned or borrowed descriptors.
//! (The calls on sockets live in `net`, where std, socket2 and `net/sys.rs` make them.)

use super::rare::rare;
use super::syscall::syscall6;
#[cfg(gopark_loom)]
use loom::sync::atomic::fence;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
#[cfg(not(gopark_loom))]
use std::sync::atomic::fence;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};
use std::time::Duration;

/// Turns a system call's -1 into the error it left behind.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of the descriptor that a system call has just made.
fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result.into())?;
    // SAFETY: the call succeeded, so `fd` is open, and nobody else has seen its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn timespec(d: Duration) -> libc::timespec {
    // SAFETY: all zeroes is a valid timespec; on some targets it has padding, so it cannot be built field by field.
    let mut ts: libc::timespec = unsafe { std::mem::zeroed() };
    ts.tv_sec = libc::time_t::try_from(d.as_secs()).unwrap_or(libc::time_t::MAX);
    ts.tv_nsec = d.subsec_nanos() as _;
    ts
}

/// futex(2) FUTEX_WAIT: sleeps while `word` is `expected`, at most so long. Returns early at will.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, time: Option<Duration>) {
    let time = time.map(timespec);
    let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: `word` and `time` outlive the call; the kernel only reads them. Every error means: look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, expected, limit) };
}

/// futex(2) FUTEX_WAKE: wakes up to `n` threads that sleep on `word`.
pub(crate) fn futex_wake(word: &AtomicU32, n: i32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel uses the address as a key only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, n) };
}

/// Whether `heavy_fence` reaches all threads by itself.
static MEMBARRIER: AtomicBool = AtomicBool::new(false);

/// membarrier(2) (Linux 4.14): prepares the process for `heavy_fence`, which takes the kernel some 15 ms where there are
/// threads already. Until then, and where it is refused, every light fence is a real one. Who calls `heavy_fence` has
/// called this.
pub(crate) fn prepare_fences() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // Several threads may do so at once. (A child would wait for ever for one of its parent's in a `Once`.)
    if !MEMBARRIER.load(Ordering::Relaxed) {
        // SAFETY: takes no pointer.
        if unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) } == 0 {
            MEMBARRIER.store(true, Ordering::Relaxed);
        }
    }
}

/// The cheap side of a pair of SeqCst fences.
#[inline]
pub(crate) fn light_fence() {
    if MEMBARRIER.load(Ordering::Relaxed) { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
}

/// The dear side, some microseconds.
pub(crate) fn heavy_fence() {
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    fence(Ordering::SeqCst);
    if MEMBARRIER.load(Ordering::Relaxed) {
        // SAFETY: takes no pointer.
        if unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) } != 0 {
            // Once prepared it fails for want of memory, or where a filter was set up meanwhile (seccomp). This time the
            // other side had no fence but the microseconds of a system call.
            MEMBARRIER.store(false, Ordering::Relaxed);
        }
    }
}

/// gettid(2).
pub(crate) fn thread_id() -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::gettid() }
}

/// The CPU time that a thread of this process has used, in nanoseconds; 0 if it has ended. The calling thread is 0, too, which
/// the kernel need not look up.
pub(crate) fn thread_cpu_ns(thread: i32) -> u64 {
    // What pthread_getcpuclockid(3) makes of a thread, which wants its handle: CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED.
    let clock = (!thread) << 3 | 4 | 2;
    let mut ts = timespec(Duration::ZERO);
    // SAFETY: `ts` outlives the call.
    unsafe { libc::clock_gettime(clock, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// Does a thread of this process wait in the kernel? (Otherwise it runs, or would if it had a CPU.)
pub(crate) fn is_waiting(thread: i32) -> bool {
    // Without a String, which would be counted where a server's allocations are. It fits.
    let mut path = io::Cursor::new([0; 40]);
    let _ = write!(path, "/proc/self/task/{thread}/stat");
    let path = OsStr::from_bytes(&path.get_ref()[..path.position() as usize]);
    // The state follows the name, which may hold any 15 bytes, in parentheses.
    let mut stat = [0; 64];
    let read = File::open(path).and_then(|mut file| file.read(&mut stat));
    let state = stat[..read.unwrap_or(0)].iter().rposition(|&c| c == b')').and_then(|at| stat.get(at + 2));
    // Where that cannot be read (no descriptor is left, no /proc), a clock that stands still has to do.
    state.is_none_or(|state| *state != b'R')
}

/// clock_gettime(2) CLOCK_MONOTONIC_COARSE, in nanoseconds: what `Instant` counts, as of the kernel's last tick.
pub(crate) fn coarse_ns() -> u64 {
    let mut ts = timespec(Duration::ZERO);
    // SAFETY: `ts` outlives the call, which does not fail for a clock that Linux has had since 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// epoll_create1(2).
pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// epoll_ctl(2) EPOLL_CTL_ADD.
pub(crate) fn epoll_add(ep: BorrowedFd<'_>, fd: BorrowedFd<'_>, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` outlives the call.
    check(unsafe { libc::epoll_ctl(ep.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) }.into()).map(drop)
}

/// epoll_ctl(2) EPOLL_CTL_DEL.
pub(crate) fn epoll_del(ep: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: DEL ignores the event pointer, which may be null since Linux 2.6.9.
    let result = unsafe { libc::epoll_ctl(ep.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut()) };
    check(result.into()).map(drop)
}

/// One batch of events; there is room for as many as its capacity says.
pub(crate) type Events = Vec<libc::epoll_event>;

/// # Safety
/// The kernel has written as many events into the batch as `result` says.
unsafe fn fill(events: &mut Events, result: io::Result<usize>) -> io::Result<()> {
    events.clear();
    let n = match result {
        // A signal is no news (trap P20): the caller sees an empty batch.
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        n => n?,
    };
    // SAFETY: the caller's promise.
    unsafe { events.set_len(n) };
    Ok(())
}

/// No such call: the kernel is older, or a seccomp filter does not know it (which some say by EPERM).
fn is_refused(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)))
}

/// epoll_wait(2), which newer machines have as epoll_pwait(2) only, a little slower, as Go and musl call it everywhere:
/// `timeout_ms` is -1 to wait for ever, 0 not to wait.
pub(crate) fn epoll_wait(ep: BorrowedFd<'_>, events: &mut Events, timeout_ms: i32) -> io::Result<()> {
    #[cfg(target_arch = "x86_64")]
    const NUMBER: libc::c_long = libc::SYS_epoll_wait;
    #[cfg(not(target_arch = "x86_64"))]
    const NUMBER: libc::c_long = libc::SYS_epoll_pwait;
    let (room, max) = (events.as_mut_ptr().expose_provenance(), events.capacity());
    let args = [ep.as_raw_fd() as usize, room, max, timeout_ms as usize, 0, 0];
    // SAFETY: the kernel writes at most `max` events, for which there is room. The newer call's signal mask, null, is none.
    let mut result = unsafe { syscall6(NUMBER, args) };
    if NUMBER != libc::SYS_epoll_pwait && is_refused(&result) {
        rare();
        // SAFETY: as above.
        result = unsafe { syscall6(libc::SYS_epoll_pwait, args) };
    }
    // SAFETY: the call says how many it has written.
    unsafe { fill(events, result) }
}

/// epoll_pwait2(2) (Linux 5.11): a timeout in nanoseconds.
pub(crate) fn epoll_pwait2(ep: BorrowedFd<'_>, events: &mut Events, timeout: Duration) -> io::Result<()> {
    let (ep_fd, ts) = (ep.as_raw_fd(), timespec(timeout));
    let (room, max) = (events.as_mut_ptr().expose_provenance(), events.capacity());
    let args = [ep_fd as usize, room, max, (&raw const ts).expose_provenance(), 0, 0];
    // SAFETY: as above, and it reads `ts` during the call.
    let result = unsafe { syscall6(libc::SYS_epoll_pwait2, args) };
    if is_refused(&result) {
        // An epoll instance is readable while it has events. Whatever ends the wait, the next call looks.
        let mut readable = libc::pollfd { fd: ep_fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call, as `ts` does; a null signal mask is none.
        let waited = check(unsafe { libc::ppoll(&mut readable, 1, &raw const ts, std::ptr::null()) }.into());
        let refused = waited.is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        // Not even that (a limit of no descriptors, a filter): milliseconds, rounded up, are better than to spin.
        let rest = if refused { timeout.as_millis().saturating_add(1).try_into().unwrap_or(i32::MAX) } else { 0 };
        return epoll_wait(ep, events, rest);
    }
    // SAFETY: that call has said how many there are.
    unsafe { fill(events, result) }
}

/// Writes a line on stderr if there is room for it: no lock of std's, no panic, and no wait unless another writer takes that
/// room in the same instant. What is lost is lost.
pub(crate) fn complain(line: &str) {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&mut stderr, 1, 0) } == 1 && stderr.revents == libc::POLLOUT;
    if ready {
        // SAFETY: reads `line`. A pipe that polls writable has room for a page.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len().min(libc::PIPE_BUF)) };
    }
}

/// Ends the process, since the runtime cannot go on: a panic would end one thread, and leave all others waiting. Go's `throw`.
#[cold]
pub(crate) fn throw(call: &str, error: &io::Error) -> ! {
    complain(&format!(
        "gopark: {call} failed: {error}. Has somebody closed a descriptor that is not his, or does a filter refuse the call?\n"
    ));
    std::process::abort()
}

/// eventfd(2), not blocking.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Adds one to an eventfd.
pub(crate) fn eventfd_signal(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1u64;
    // SAFETY: eight readable bytes. Only a write that waits could be interrupted.
    check(unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) } as libc::c_long).map(drop)
}

/// prctl(2) PR_SET_TIMERSLACK: how late the kernel may wake this thread, 50 us unless told.
pub(crate) fn set_timer_slack(ns: u64) {
    // SAFETY: sets a number of the calling thread. A refusal leaves it as it was.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ns as libc::c_ulong) };
}

/// timerfd_create(2).
pub(crate) fn timerfd() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) })
}

/// timerfd_settime(2): it goes off once, so long from now.
pub(crate) fn timerfd_set(fd: BorrowedFd<'_>, time: Duration) {
    let spec = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(time) };
    // SAFETY: `spec` outlives the call, which does not fail for a timer and a time that are valid.
    unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
}

/// Waits until a timerfd has gone off, or a signal comes.
pub(crate) fn timerfd_wait(fd: BorrowedFd<'_>) {
    let mut times = 0u64;
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut times).cast(), 8) };
}
