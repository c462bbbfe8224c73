//! A clock that counts its readings, for `benches instructions`: preloaded (LD_PRELOAD), and built by rustc alone.
//!
//! Runtimes look at the clock to decide how often to look around, so that what they do depends on how fast valgrind is at
//! the moment. A thread that has called `count_time` sees 2 us pass from each reading to the next, and nothing else.

use std::cell::Cell;
use std::ffi::{c_int, c_long};

const CLOCK_MONOTONIC: c_int = 1;
const CLOCK_MONOTONIC_COARSE: c_int = 6;
const STEP_NS: i64 = 2_000;

/// `struct timespec` on 64 bits.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Timespec {
    seconds: i64,
    nanos: i64,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

const SYS_CLOCK_GETTIME: c_long = if cfg!(target_arch = "x86_64") { 228 } else { 113 };

thread_local! {
    static TIME: Cell<Option<Timespec>> = const { Cell::new(None) };
}

/// From now on the calling thread's time is counted.
#[unsafe(no_mangle)]
pub extern "C" fn count_time() {
    let mut now = Timespec { seconds: 0, nanos: 0 };
    // SAFETY: the kernel writes a timespec, for which there is room.
    unsafe { syscall(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, &raw mut now) };
    TIME.set(Some(now));
}

/// # Safety
/// As clock_gettime(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int {
    match TIME.get().filter(|_| [CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE].contains(&clock)) {
        Some(Timespec { mut seconds, mut nanos }) => {
            nanos += STEP_NS;
            if nanos >= 1_000_000_000 {
                (seconds, nanos) = (seconds + 1, nanos - 1_000_000_000);
            }
            TIME.set(Some(Timespec { seconds, nanos }));
            // SAFETY: the caller has room for a timespec there.
            unsafe { *to = Timespec { seconds, nanos } };
            0
        }
        // SAFETY: the caller's arguments, for which he vouches.
        None => unsafe { syscall(SYS_CLOCK_GETTIME, clock, to) as c_int },
    }
}
