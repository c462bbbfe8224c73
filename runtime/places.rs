//! How many threads may run closures of `spawn_blocking` at a time: fewer than there may be, so that slow closures leave
//! some for tasks that block.

use super::sync::{AtomicU32, Ordering, fence_unless};

/// Who has queued a closure looks for a free place; who gives one back looks at the queue again. A `fence(SeqCst)` lies
/// in the middle of both, so one of the two sees the other.
pub(crate) struct Places {
    taken: AtomicU32,
    limit: u32,
}

impl Places {
    pub(crate) fn new(limit: u32) -> Self {
        Places { taken: AtomicU32::new(0), limit }
    }

    /// After a closure was queued: may one more thread begin? If not, one of those that run will come to it.
    pub(crate) fn is_one_free(&self) -> bool {
        // Pairs with the fence in `give_back`.
        fence_unless(cfg!(gopark_mutant = "places_look_no_fence"));
        self.taken.load(Ordering::Relaxed) < self.limit
    }

    pub(crate) fn take(&self) -> bool {
        let more = |taken| (taken < self.limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(crate) fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        // Pairs with the fence in `is_one_free`.
        fence_unless(cfg!(gopark_mutant = "places_back_no_fence"));
    }
}

#[cfg(all(test, gopark_loom))]
mod models {
    //! Not covered: how a thread is found.
    //!
    //! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
    //! |---|---|
    //! | `places_look_no_fence` | `a_closure_is_seen_by_who_has_the_place_or_finds_one_free` |
    //! | `places_back_no_fence` | `a_closure_is_seen_by_who_has_the_place_or_finds_one_free` |

    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_closure_is_seen_by_who_has_the_place_or_finds_one_free() {
        loom::model(|| {
            let shared = Arc::new((Places::new(1), AtomicU32::new(0)));
            assert!(shared.0.take() && !shared.0.take());
            let there = shared.clone();
            let runner = loom::thread::spawn(move || {
                there.0.give_back();
                there.1.load(Ordering::Relaxed) == 1
            });
            shared.1.store(1, Ordering::Relaxed);
            let free = shared.0.is_one_free();
            assert!(runner.join().unwrap() || free, "a closure in a queue that nobody looks at");
        });
    }
}
