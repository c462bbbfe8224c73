//! The system calls that std and socket2 do not offer, each as a safe function.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub(crate) use libc::{EPOLLIN, EPOLLOUT};

/// The length of every server's accept queue; the kernel cuts it down to net.core.somaxconn.
const BACKLOG: i32 = 4096;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Repeats a call that a signal cut short.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
    }
}

pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the call above made `fd`, and nobody else owns it.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(crate) fn add(&self, fd: &impl AsRawFd, mask: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, mask, token)
    }

    pub(crate) fn modify(&self, fd: &impl AsRawFd, mask: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, mask, token)
    }

    fn control(&self, op: i32, fd: &impl AsRawFd, mask: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: mask as u32, u64: token };
        // SAFETY: `event` is alive for the length of the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits for events; a negative timeout waits for ever.
    pub(crate) fn wait<'a>(&self, events: &'a mut EventBuf, timeout_ms: i32) -> io::Result<EventIter<'a>> {
        let (start, room) = (events.0.as_mut_ptr(), events.0.len() as i32);
        let count = uninterrupted(|| {
            // SAFETY: the kernel writes at most `room` events, which is how many `start` has place for.
            check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), start, room, timeout_ms) })
        })?;
        Ok(EventIter(events.0[..count as usize].iter()))
    }
}

/// Place for the events of one wait.
pub(crate) struct EventBuf(Vec<libc::epoll_event>);

impl EventBuf {
    pub(crate) fn new(room: usize) -> Self {
        EventBuf(vec![libc::epoll_event { events: 0, u64: 0 }; room])
    }
}

/// Yields each event's mask and token.
pub(crate) struct EventIter<'a>(std::slice::Iter<'a, libc::epoll_event>);

impl Iterator for EventIter<'_> {
    type Item = (i32, u64);

    fn next(&mut self) -> Option<(i32, u64)> {
        self.0.next().map(|event| (event.events as i32, event.u64))
    }
}

/// A listener as every server here has it: not blocking, the backlog long, and TCP_NODELAY set where accepted sockets
/// inherit it from.
pub(crate) fn listen(addr: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// accept4(2), with the stream not blocking from the start.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers say that the peer's address is not wanted.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })?;
    // SAFETY: the call above made `fd`, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    clock(libc::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC is always there")
}

/// The CPU time of this process in nanoseconds.
pub(crate) fn own_cpu() -> u64 {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID).expect("CLOCK_PROCESS_CPUTIME_ID is always there")
}

/// The CPU time of another process in nanoseconds: user and system time of all its threads, ended ones included.
pub(crate) fn cpu_of(pid: i32) -> io::Result<u64> {
    let mut id = 0;
    // SAFETY: `id` is alive for the length of the call.
    match unsafe { libc::clock_getcpuclockid(pid, &mut id) } {
        0 => clock(id),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn clock(id: libc::clockid_t) -> io::Result<u64> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` has place for what the kernel writes.
    check(unsafe { libc::clock_gettime(id, time.as_mut_ptr()) })?;
    // SAFETY: the call above succeeded, so `time` is written.
    let time = unsafe { time.assume_init() };
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A timerfd that fires at `first` on CLOCK_MONOTONIC and every `step` after it, both in nanoseconds. Unlike a wait's
/// timeout it is not rounded by the thread's timer slack.
pub(crate) fn ticker(first: u64, step: u64) -> io::Result<File> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) })?;
    // SAFETY: the call above made `fd`, and nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let spec = libc::itimerspec { it_interval: timespec(step), it_value: timespec(first) };
    // SAFETY: `spec` is alive for the length of the call, and the old value is not wanted.
    check(unsafe { libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut()) })?;
    Ok(file)
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// Whether something can be read (or the other end is gone) before the time is over.
pub(crate) fn readable_within(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = limit.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one entry, alive for the length of the call.
    Ok(uninterrupted(|| check(unsafe { libc::poll(&mut entry, 1, millis) }))? > 0)
}

/// Raises the limit of open files to the hard one, and says how many that are.
pub(crate) fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is alive for the length of the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// The CPUs that the calling thread may use.
pub(crate) fn affinity() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `set` has the size that the call is told.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: all zeros are a valid set, and the kernel wrote a valid one over them.
    let set = unsafe { set.assume_init() };
    // SAFETY: each index is below CPU_SETSIZE, the number of bits in the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Confines the calling thread, and the children it starts from now on, to some CPUs.
pub(crate) fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: all zeros are a valid, empty set.
    let mut set = unsafe { MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init() };
    for &cpu in cpus {
        // SAFETY: a number of `affinity`, below CPU_SETSIZE, the number of bits in the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is alive for the length of the call and has the size that it is told.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// The calling thread's niceness, which what it starts from now on inherits; 0 unless set. To go below takes a privilege.
pub(crate) fn set_niceness(nice: i32) -> io::Result<()> {
    // SAFETY: takes no pointers. On Linux 0 is the calling thread, and not its process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, nice) })?;
    Ok(())
}

/// The signals that end a program from outside.
pub(crate) struct EndSignals {
    set: libc::sigset_t,
}

impl EndSignals {
    /// Keeps them from the calling thread and from those that it starts. Children start with none blocked: std sees to
    /// that.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset writes the set, which then is a valid one for the others.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            set.assume_init()
        };
        // SAFETY: `set` is alive for the length of the call, and the old mask is not wanted.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(EndSignals { set }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of them and says which it was.
    pub(crate) fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: both pointers are alive for the length of the call.
        while unsafe { libc::sigwait(&self.set, &mut signal) } != 0 {}
        signal
    }
}

pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: takes no pointers. An error says that the process is gone, which is as good.
    unsafe { libc::kill(pid, signal) };
}

/// Whether this process has any child, running or not yet reaped.
pub(crate) fn has_child() -> bool {
    // SAFETY: the status is not wanted. WNOHANG: a child that still runs gives 0, none at all an error.
    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) >= 0 }
}

/// The C library that this program was started with.
pub(crate) fn libc_version() -> String {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it returns a constant string.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc {}", version.to_string_lossy())
    }
    #[cfg(not(target_env = "gnu"))]
    String::from("a libc that is not glibc")
}

/// Registers the process for membarrier(2), which takes the kernel no time while there is one thread. gopark's sysmon does so,
/// too, but where there are threads it takes some milliseconds, and until then its fences are real ones.
pub(crate) fn register_membarrier() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // SAFETY: takes no pointer. If it is refused, it is refused to sysmon.
    unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) };
}

/// Calls `count_time` of benches/clock.rs, which must be preloaded.
pub(crate) fn count_time() -> io::Result<()> {
    // SAFETY: the name is a C string.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"count_time".as_ptr()) };
    if function.is_null() {
        return Err(io::Error::other("benches/clock.rs is not preloaded"));
    }
    // SAFETY: a function of this type is all that has this name.
    unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(function)() };
    Ok(())
}
