//! Counts another process's system calls by ptrace(2), for where the kernel does not let this process count.

use crate::count_perf::threads;
use crate::sys;
use crate::syscalls::{CLASSES, Counts};
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// The bit that PTRACE_O_TRACESYSGOOD adds to a system call's stops.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

#[derive(Default)]
struct Shared {
    counts: [AtomicU64; CLASSES.len() + 1],
    stop: AtomicBool,
}

/// Stops a process at each of its system calls until it is dropped. The thread that traces must stay the same, hence
/// one of its own; its end sets the process free.
pub(crate) struct Tracer {
    pid: i32,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Tracer {
    pub(crate) fn attach(pid: i32) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (attached, outcome) = mpsc::channel();
        let thread = thread::Builder::new().name("tracer".into()).spawn({
            let shared = shared.clone();
            move || {
                let result = seize(pid);
                let go_on = result.is_ok();
                let _ = attached.send(result);
                if go_on {
                    trace(&shared);
                }
            }
        })?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(Tracer { pid, shared, thread: Some(thread) })
    }

    pub(crate) fn read(&self) -> Counts {
        std::array::from_fn(|class| self.shared.counts[class].load(Relaxed))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        // A signal that means nothing to the process stops it for its tracer, who then sees the flag.
        sys::signal(self.pid, libc::SIGWINCH);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ptrace(request: u32, tid: i32, data: usize) -> io::Result<()> {
    // SAFETY: for the requests made here `data` is a number and the address is not used.
    match unsafe { libc::ptrace(request, tid, 0_usize, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn seize(pid: i32) -> io::Result<()> {
    for tid in threads(pid)? {
        ptrace(libc::PTRACE_SEIZE, tid, (libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE) as usize)?;
        ptrace(libc::PTRACE_INTERRUPT, tid, 0)?;
    }
    Ok(())
}

fn trace(shared: &Shared) {
    loop {
        let mut status = 0;
        // SAFETY: `status` is alive for the length of the call. Children that another thread started are none of ours.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if shared.stop.load(Relaxed) || tid < 0 {
            return;
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        if signal == SYSCALL_STOP {
            count(shared, tid);
        }
        let deliver = if signal == SYSCALL_STOP || event != 0 { 0 } else { signal };
        // Fails where the thread was killed meanwhile, which waitpid will tell.
        let _ = ptrace(libc::PTRACE_SYSCALL, tid, deliver as usize);
    }
}

/// Counts the call in which a thread stands, if it is about to enter it.
fn count(shared: &Shared, tid: i32) {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: `info` has the size that the call is told.
    if unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr()) } <= 0 {
        return;
    }
    // SAFETY: all zeros are valid, and the kernel wrote a valid one over them.
    let info = unsafe { info.assume_init() };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return;
    }
    // SAFETY: `op` says that this is the field in use.
    let call = unsafe { info.u.entry.nr } as i64;
    if let Some(class) = CLASSES.iter().position(|(_, calls)| calls.contains(&call)) {
        shared.counts[class].fetch_add(1, Relaxed);
    }
    shared.counts[CLASSES.len()].fetch_add(1, Relaxed);
}
