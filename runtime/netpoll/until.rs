//! Until when the poller sleeps: Go's `sched.pollUntil`, alone in a file so that loom can model it.

use crate::runtime::sync::{AtomicU64, Ordering, fence_unless};
use crate::runtime::timer::NEVER;

/// What the M that has the poller's place (idle.rs) says to whoever adds a timer, in the runtime's nanoseconds. All
/// accesses are Relaxed: the fences order them.
#[derive(Default)]
pub(crate) struct PollUntil(AtomicU64);

impl PollUntil {
    /// Before the poller sleeps: takes the time of the first timer, and returns it.
    pub(crate) fn asleep(&self, first_timer: impl FnOnce() -> u64) -> u64 {
        // As long as it does not know, any timer may be the first.
        self.0.store(NEVER, Ordering::Relaxed);
        // Pairs with the fence in `is_past`: either that sees the poller, or this sees the timer.
        fence_unless(cfg!(gopark_mutant = "until_asleep_no_fence"));
        let when = first_timer();
        self.0.store(when, Ordering::Relaxed);
        when
    }

    /// The poller does not sleep. It must have the place still: what the next one says is not for it to overwrite.
    pub(crate) fn awake(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// A timer was added. Does the poller sleep past it?
    pub(crate) fn is_past(&self, when: u64) -> bool {
        // Pairs with the fence in `asleep`.
        fence_unless(cfg!(gopark_mutant = "until_past_no_fence"));
        self.0.load(Ordering::Relaxed) > when
    }
}

#[cfg(all(test, gopark_loom))]
mod models;
