//! Where another thread is: a signal makes it write down its own return addresses. Go asks its threads the same way, by
//! SIGURG, to be preempted (runtime/signal_unix.go, `preemptM`): by default it does nothing, and debuggers let it pass.
//!
//! The handler calls nothing but the unwinder and futex(2), and touches nothing but three statics.
//!
//! Which frames are the task's is told by addresses and by files: names say little where functions are inlined.

use super::sys;
use std::ffi::{c_int, c_void};
use std::fmt::{self, Write};
use std::ptr;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the other thread may take to answer: one that waits in the kernel, and cannot be interrupted, does not.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whoever has it may ask.
static ASKING: Mutex<()> = Mutex::new(());
/// One of the below, or the number of the thread that is asked. The kernel's numbers are smaller.
static STATE: AtomicU32 = AtomicU32::new(NOBODY);
/// The answer.
static FRAMES: [AtomicUsize; 128] = [const { AtomicUsize::new(0) }; 128];
static LEN: AtomicUsize = AtomicUsize::new(0);

const NOBODY: u32 = 0;
const WRITING: u32 = u32::MAX - 1;
const WRITTEN: u32 = u32::MAX;

/// Return addresses, from where a thread was interrupted outwards.
pub(crate) struct Frames(Vec<usize>);

/// Where a thread of this process is.
/// `None` if it does not answer, or the program has a use of its own for the signal.
pub(crate) fn frames_of(thread: i32) -> Option<Frames> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let _asking = ASKING.lock().ok()?;
    if !*INSTALLED.get_or_init(install) {
        return None;
    }
    let asked = thread as u32;
    // Release pairs with the Acquire in `answer`.
    STATE.store(asked, Ordering::Release);
    // SAFETY: takes no pointer. A thread that has ended gives ESRCH.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGURG) } == 0;
    let end = Instant::now() + PATIENCE;
    loop {
        // Acquire pairs with the Release at the end of `answer`.
        let state = STATE.load(Ordering::Acquire);
        if state == WRITTEN {
            break;
        }
        let left = end.saturating_duration_since(Instant::now());
        let over = state == asked && (!sent || left.is_zero());
        // Relaxed: nothing was written.
        if over && STATE.compare_exchange(asked, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return None;
        }
        sys::futex_wait(&STATE, state, (state == asked).then_some(left));
    }
    let len = LEN.load(Ordering::Relaxed);
    Some(Frames(FRAMES[..len].iter().map(|frame| frame.load(Ordering::Relaxed)).collect()))
}

/// False: somebody else handles the signal.
fn install() -> bool {
    // The unwinder allocates when it is first used.
    backtrace::trace(|_| true);
    // SAFETY: all zeroes is a valid sigaction: the default, and an empty mask. Both live through the calls.
    unsafe {
        let (mut old, mut new): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigaction(libc::SIGURG, ptr::null(), &mut old);
        new.sa_sigaction = answer as extern "C" fn(c_int, *mut c_void, *const libc::ucontext_t) as usize;
        // On the thread's own stack: std's alternate one is small for an unwinder.
        new.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        old.sa_sigaction == libc::SIG_DFL && libc::sigaction(libc::SIGURG, &new, ptr::null_mut()) == 0
    }
}

/// The handler, on the thread that is asked.
extern "C" fn answer(_: c_int, _: *mut c_void, context: *const libc::ucontext_t) {
    let asked = sys::thread_id() as u32;
    // Acquire pairs with the Release in `frames_of`. SIGURG may come from elsewhere, or too late.
    if STATE.compare_exchange(asked, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel says where it interrupted the thread, in what lives until the handler returns.
    let (interrupted, mut len) = (unsafe { interrupted_at(context) }, 0);
    // SAFETY: it must not run on two threads at once: `WRITING` is one thread's.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let at = frame.ip() as usize;
            if Some(at) == interrupted {
                // All until here are the handler's own.
                len = 0;
            }
            FRAMES[len].store(at, Ordering::Relaxed);
            len += 1;
            len < FRAMES.len()
        });
    }
    LEN.store(len, Ordering::Relaxed);
    // Release pairs with the Acquire in `frames_of`.
    STATE.store(WRITTEN, Ordering::Release);
    sys::futex_wake(&STATE, 1);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// # Safety
/// It is what the kernel gave to a signal's handler that runs.
unsafe fn interrupted_at(context: *const libc::ucontext_t) -> Option<usize> {
    // SAFETY: the caller's.
    let context = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    return Some(context.gregs[libc::REG_RIP as usize] as usize);
    #[cfg(target_arch = "aarch64")]
    return Some(context.pc as usize);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        None
    }
}

impl fmt::Display for Frames {
    /// What std prints of a backtrace, from where the thread was interrupted to where the runtime calls the task.
    /// Names and lines are as good as the program's debug information: without any, what was inlined into the runtime's own
    /// functions is not told from them. It takes some milliseconds, in a debug build a tenth of a second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let (mut n, mut outside) = (0, false);
        for &ip in &self.0 {
            // The first is where the thread is. The others are return addresses, behind the call: the line may be the next.
            let at = if n == 0 { ip } else { ip.saturating_sub(1) };
            backtrace::resolve(at as *mut _, |symbol| {
                let name = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
                outside |= match symbol.filename() {
                    Some(file) => file.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/runtime/task")),
                    // The task's code may have been inlined into it: so it is shown, and is the last.
                    None => n > 0 && text.contains("gopark::runtime::task::"),
                };
                if outside {
                    return;
                }
                let _ = writeln!(text, "{n:4}: {}", if name.is_empty() { "<unknown>" } else { &name });
                if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                    let _ = writeln!(text, "             at {}:{line}", file.display());
                }
                n += 1;
            });
        }
        f.write_str(&text)
    }
}
