//! One thread's parker, with one token: Go's `notesleep` and `notewakeup` (runtime/lock_futex.go).
//!
//! std's `thread::park` would do, but its token is the user's as well: a library that unparks the thread for reasons
//! of its own would take ours away.

use super::sync::{Futex, Ordering};
use std::time::{Duration, Instant};

const EMPTY: u32 = 0;
const TOKEN: u32 = 1;
const PARKED: u32 = 2;

/// Makes one thread sleep until another gives it the token. A token given early is kept; two are one.
pub(crate) struct Parker {
    state: Futex,
}

impl Parker {
    pub(crate) fn new() -> Self {
        Parker { state: Futex::new(EMPTY) }
    }

    /// Waits for the token and takes it. Exact: it returns for no other reason. One thread only may call this.
    pub(crate) fn park(&self) {
        self.park_for(None);
    }

    /// The same, but only so long, if there is a limit. False: no token came.
    pub(crate) fn park_for(&self, limit: Option<Duration>) -> bool {
        let end = limit.map(|limit| Instant::now() + limit);
        let word = &self.state.word;
        let early = word.compare_exchange(EMPTY, PARKED, Ordering::Relaxed, Ordering::Relaxed).is_err();
        if cfg!(gopark_mutant = "park_no_recheck") {
            word.store(PARKED, Ordering::Relaxed);
        }
        if !early || cfg!(gopark_mutant = "park_no_recheck") {
            while word.load(Ordering::Relaxed) == PARKED {
                let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                if left == Some(Duration::ZERO) {
                    if cfg!(gopark_mutant = "park_timeout_store") {
                        word.store(EMPTY, Ordering::Relaxed);
                        return false;
                    }
                    // Lost to `unpark`: the token is there.
                    if word.compare_exchange(PARKED, EMPTY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                        return false;
                    }
                } else {
                    self.state.wait(PARKED, left);
                }
            }
        }
        // Acquire pairs with the Release in `unpark`: what was done before the token was given is seen after this.
        let take = if cfg!(gopark_mutant = "park_relaxed") { Ordering::Relaxed } else { Ordering::Acquire };
        word.swap(EMPTY, take);
        true
    }

    /// Gives the token.
    pub(crate) fn unpark(&self) {
        // Release pairs with the Acquire in `park`.
        if self.state.word.swap(TOKEN, Ordering::Release) == PARKED {
            self.state.wake_one();
        }
    }
}

#[cfg(all(test, gopark_loom))]
mod models {
    use super::*;
    use loom::cell::UnsafeCell;
    use std::sync::Arc;

    struct Baton(UnsafeCell<u32>);
    // SAFETY: the token hands the cell from one thread to the other; loom checks that it does.
    unsafe impl Sync for Baton {}

    /// A token given before, while or after the thread goes to sleep wakes it, and what was written before is seen.
    /// Does not cover several sleepers: there is one by contract.
    #[test]
    fn a_token_is_never_lost_and_carries_what_was_written() {
        loom::model(|| {
            let shared = Arc::new((Parker::new(), Baton(UnsafeCell::new(0)), Parker::new()));
            let there = shared.clone();
            let thread = loom::thread::spawn(move || {
                // SAFETY: the other thread reads it after the token only.
                there.1.0.with_mut(|v| unsafe { *v = 1 });
                there.0.unpark();
                there.2.park();
                // SAFETY: the token came back, so the reader is done.
                there.1.0.with_mut(|v| unsafe { *v = 2 });
                there.0.unpark();
            });
            shared.0.park();
            // SAFETY: the token says that the writer is done, until it gets one back.
            assert_eq!(shared.1.0.with(|v| unsafe { *v }), 1);
            shared.2.unpark();
            shared.0.park();
            // SAFETY: as above.
            assert_eq!(shared.1.0.with(|v| unsafe { *v }), 2);
            thread.join().unwrap();
        });
    }

    /// A token that comes when the time is over is kept or taken, not thrown away.
    #[test]
    fn a_token_is_not_lost_to_the_end_of_a_wait() {
        loom::model(|| {
            let parker = Arc::new(Parker::new());
            let there = parker.clone();
            let thread = loom::thread::spawn(move || there.unpark());
            if !parker.park_for(Some(Duration::ZERO)) {
                parker.park();
            }
            thread.join().unwrap();
        });
    }
}
