//! Who holds a P, and how sysmon takes it away: the word on which Go's `retake` and `handoffp` (runtime/proc.go) would
//! race with `exitsyscall`.
//!
//! The holder believes that it has the P until it looks. It looks whenever it has queued something, before user code may
//! block the thread again: either it sees there that the P is gone, and brings what it queued to the global queue itself,
//! or sysmon, which takes the P first and the queue's tasks then, sees them. That wants a fence on both sides. Queueing is
//! frequent and taking a P is rare, so sysmon pays for both: membarrier(2) is a fence for all threads of the process.

use super::sync::{AtomicPtr, Ordering};
use super::sys;
use std::ptr;

/// The holder; null while the P is idle. An M's shared part lives as long as the scheduler.
pub(crate) struct Hold<M>(AtomicPtr<M>);

impl<M> Default for Hold<M> {
    fn default() -> Self {
        Hold(AtomicPtr::new(ptr::null_mut()))
    }
}

impl<M> Hold<M> {
    /// The P is `m`'s, which got it from the idle ones.
    pub(crate) fn give(&self, m: &M) {
        // Release pairs with the Acquire in `holder`.
        self.0.store(ptr::from_ref(m).cast_mut(), Ordering::Release);
    }

    pub(crate) fn holder(&self) -> *mut M {
        // Acquire pairs with the Release in `give`.
        self.0.load(Ordering::Acquire)
    }

    /// After `m` has queued something: does it hold the P still?
    #[inline]
    pub(crate) fn is_with(&self, m: &M) -> bool {
        if !cfg!(gopark_mutant = "hold_look_no_fence") {
            // Pairs with the fence in `retake`.
            sys::light_fence();
        }
        ptr::eq(self.0.load(Ordering::Relaxed), m)
    }

    /// Who holds the P gives it up. False: it was taken away before.
    pub(crate) fn let_go(&self, m: &M) -> bool {
        // Relaxed: what comes after is ordered by the lock of the idle Ps.
        let m = ptr::from_ref(m).cast_mut();
        self.0.compare_exchange(m, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Takes the P from `m`, whose queues are the caller's to empty now. False: it has no longer got it.
    pub(crate) fn retake(&self, m: &M) -> bool {
        let took = self.let_go(m);
        if took && !cfg!(gopark_mutant = "hold_retake_no_fence") {
            // Pairs with the fence in `is_with`.
            sys::heavy_fence();
        }
        took
    }
}

#[cfg(all(test, gopark_loom))]
mod models {
    //! Not covered: the queues themselves, and when sysmon takes a P; and that membarrier(2) makes two fences of a
    //! compiler's and its own: here both are fences.
    //!
    //! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
    //! |---|---|
    //! | `hold_look_no_fence` | `what_a_stuck_thread_queues_is_seen` |
    //! | `hold_retake_no_fence` | `what_a_stuck_thread_queues_is_seen` |

    use super::*;
    use crate::runtime::sync::AtomicU32;
    use loom::thread;
    use std::sync::Arc;

    /// A P, its holder, and a task in the holder's queue.
    struct World {
        hold: Hold<u32>,
        me: u32,
        queued: AtomicU32,
    }

    impl World {
        fn new() -> Arc<World> {
            let world = Arc::new(World { hold: Hold::default(), me: 0, queued: AtomicU32::new(0) });
            world.hold.give(&world.me);
            world
        }
    }

    /// The stuck thread's task wakes another, while sysmon takes the P: one of the two moves the task on.
    #[test]
    fn what_a_stuck_thread_queues_is_seen() {
        loom::model(|| {
            let world = World::new();
            let there = world.clone();
            let sysmon =
                thread::spawn(move || there.hold.retake(&there.me).then(|| there.queued.load(Ordering::Relaxed) == 1));
            world.queued.store(1, Ordering::Relaxed);
            let lost = !world.hold.is_with(&world.me);
            let drained = sysmon.join().unwrap();
            assert!(lost || drained != Some(false), "a task in a queue that nobody looks at");
        });
    }

    /// The P goes on to another M, which gives it up, while the stuck thread queues twice, looks each time, and then gives
    /// up what it believes to have: the P is in one hand at any time, and what was queued is moved on.
    #[test]
    fn the_p_goes_on_to_another() {
        loom::model(|| {
            let world = World::new();
            let there = world.clone();
            let sysmon = thread::spawn(move || {
                let other = 1;
                if !there.hold.retake(&there.me) {
                    return (false, 0);
                }
                let drained = there.queued.swap(0, Ordering::Relaxed);
                there.hold.give(&other);
                assert!(there.hold.let_go(&other), "taken by one that had lost it");
                (true, drained)
            });
            let mut moved = 0;
            for _ in 0..2 {
                world.queued.fetch_add(1, Ordering::Relaxed);
                if !world.hold.is_with(&world.me) {
                    moved += world.queued.swap(0, Ordering::Relaxed);
                }
            }
            let gave = world.hold.let_go(&world.me);
            moved += world.queued.swap(0, Ordering::Relaxed);
            let (took, drained) = sysmon.join().unwrap();
            assert!(gave != took && moved + drained == 2);
            assert!(world.hold.holder().is_null());
        });
    }

    /// The holder gives the P up while sysmon takes it: it is in one hand.
    #[test]
    fn one_of_two_has_the_p() {
        loom::model(|| {
            let world = World::new();
            let there = world.clone();
            let sysmon = thread::spawn(move || there.hold.retake(&there.me));
            let gave = world.hold.let_go(&world.me);
            assert!(gave != sysmon.join().unwrap());
            assert!(world.hold.holder().is_null());
        });
    }
}
