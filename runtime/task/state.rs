//! A task's state word. Every transition is one method and one atomic operation, and returns what its caller must do.
//!
//! | bit | set by | cleared by | while it is set |
//! |---|---|---|---|
//! | `RUNNING` | `start` | `idle`, `complete` | one thread owns the future |
//! | `NOTIFIED` | `notify`, `abort` | `start` | one `G` exists, or the running thread makes one when its poll ends |
//! | `COMPLETE` | `complete` | never | the future is gone; all bits but the count mean nothing any more |
//! | `CANCELLED` | `abort` | never | whoever runs the task next drops its future instead |
//! | `JOIN_INTEREST` | spawn | `drop_join_handle` | the output belongs to the `JoinHandle` |
//! | `JOIN_WAKER` | `lend_slot` | `reclaim_slot`, `drop_join_handle` | the waker slot belongs to whoever completes the task |
//!
//! The rest is the reference count: one for the owned list from spawn to completion, one for the `JoinHandle`, one for
//! each `Waker` and each `AbortHandle`. A `G` counts for nothing: it exists only while the task is not complete, and so
//! long the owned list's reference is there. That is why queueing and running a task cost no traffic on the count.
//!
//! Go's counterpart is `casgstatus` on `atomicstatus`. A goroutine cannot be woken while it runs, because `gopark`'s
//! caller holds a lock across the switch; a waker may fire at any moment, and `NOTIFIED` with `RUNNING` is for that.

use super::super::sync::{AtomicUsize, Ordering};
use Ordering::{AcqRel, Acquire, Relaxed, Release};

// Moving one bit to another is an addition: the only read-modify-write with a result that is one instruction on x86.
const RUNNING: usize = 1;
const NOTIFIED: usize = 1 << 1;
const COMPLETE: usize = 1 << 2;
const CANCELLED: usize = 1 << 3;
const JOIN_INTEREST: usize = 1 << 4;
const JOIN_WAKER: usize = 1 << 5;
const REF_ONE: usize = 1 << 6;

/// The new task is to be run, and is held by the owned list and its `JoinHandle`.
const SPAWNED: usize = NOTIFIED | JOIN_INTEREST | (2 * REF_ONE);

/// How a wake is ordered; see [`State::notify`].
const WAKE: Ordering = if cfg!(gopark_mutant = "task_wake_relaxed") { Relaxed } else { AcqRel };

#[repr(transparent)]
pub(super) struct State(AtomicUsize);

/// What `start` found.
#[must_use]
pub(super) enum Start {
    Poll,
    /// Aborted: the future is to be dropped unpolled.
    Drop,
}

/// What became of a task whose poll returned `Pending`.
#[must_use]
pub(super) enum Idle {
    /// It waits. Without a reference of its own the caller may not look at the task again.
    Parked,
    /// Woken during the poll: the caller has the task's `G`.
    Notified,
    /// Aborted during the poll: the caller has the task's `G`, and running it will drop the future.
    Cancelled,
}

/// Whether a wake or an abort made a `G`.
#[must_use]
pub(super) enum Notify {
    /// The caller has the task's `G` and must queue or run it.
    Submit,
    /// Somebody else has it or will make it, or the task is complete.
    Nothing,
}

/// Who was interested when the task completed.
#[must_use]
pub(super) struct Completed {
    /// If not, the output is the caller's to drop.
    pub(super) join_interest: bool,
    /// If so, the waker slot is the caller's: take it and wake it.
    pub(super) join_waker: bool,
}

/// What a `JoinHandle` that is dropped has to clean up.
#[must_use]
pub(super) enum JoinDrop {
    /// Nothing; its reference is already released.
    Detached,
    /// The waker that it had lent. Its reference is still held.
    Waker,
    /// The output. Its reference is still held.
    Output,
}

impl State {
    pub(super) fn new() -> State {
        State(AtomicUsize::new(SPAWNED))
    }

    /// The holder of the `G` takes the right to touch the future.
    pub(super) fn start(&self) -> Start {
        // Acquire pairs with the Release of every `notify` and `abort` before it (also of those that made no `G`: the
        // poll must see what their callers wrote), and with the Release of the last `idle` (the future as it left it).
        let before = self.0.fetch_sub(NOTIFIED - RUNNING, Acquire);
        debug_assert_eq!(before & (RUNNING | NOTIFIED | COMPLETE), NOTIFIED);
        if before & CANCELLED == 0 { Start::Poll } else { Start::Drop }
    }

    /// The poll returned `Pending`: gives the right back, unless somebody wants the task run again.
    pub(super) fn idle(&self) -> Idle {
        // Release pairs with the Acquire of the next `start`, and with that of the next `notify`, whose caller may
        // write to the queue link that this thread's `G` came through.
        let before = self.0.fetch_sub(RUNNING, Release);
        debug_assert_eq!(before & (RUNNING | COMPLETE), RUNNING);
        if before & NOTIFIED == 0 || cfg!(gopark_mutant = "task_idle_no_recheck") {
            Idle::Parked
        } else if before & CANCELLED == 0 {
            Idle::Notified
        } else {
            Idle::Cancelled
        }
    }

    /// A wake. Writes even where it changes nothing: that write is what orders the waker before the coming poll.
    pub(super) fn notify(&self) -> Notify {
        self.set(NOTIFIED)
    }

    /// Marks the task for dropping, and wakes it so that a worker does that.
    pub(super) fn abort(&self) -> Notify {
        self.set(CANCELLED | NOTIFIED)
    }

    fn set(&self, bits: usize) -> Notify {
        // Release pairs with `start`'s Acquire. Acquire pairs with `idle`'s Release; see there.
        let before = self.0.fetch_or(bits, WAKE);
        if before & (RUNNING | NOTIFIED | COMPLETE) == 0 { Notify::Submit } else { Notify::Nothing }
    }

    /// The future is gone and the output is in its place.
    pub(super) fn complete(&self) -> Completed {
        // Release publishes the output to the Acquire of `is_complete`, `reclaim_slot`, `lend_slot` and
        // `drop_join_handle`. Acquire pairs with the Release of `lend_slot` (the waker in the slot).
        let before = self.0.fetch_add(COMPLETE - RUNNING, AcqRel);
        debug_assert_eq!(before & (RUNNING | COMPLETE), RUNNING);
        Completed { join_interest: before & JOIN_INTEREST != 0, join_waker: before & JOIN_WAKER != 0 }
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.load(Relaxed) & RUNNING != 0
    }

    pub(super) fn is_complete(&self) -> bool {
        // Acquire pairs with `complete`'s Release.
        self.0.load(Acquire) & COMPLETE != 0
    }

    /// The `JoinHandle` wants to look at its slot. True: the slot is its own, since whoever completes the task will not look.
    /// False: the task is complete, and the output can be taken.
    #[must_use]
    pub(super) fn reclaim_slot(&self) -> bool {
        // Acquire pairs with `complete`'s Release, both times. Nobody else writes JOIN_WAKER, so the load's is exact.
        let mut state = self.0.load(Acquire);
        if state & (COMPLETE | JOIN_WAKER) == JOIN_WAKER {
            state = self.0.fetch_and(!JOIN_WAKER, Acquire);
        }
        state & COMPLETE == 0
    }

    /// The `JoinHandle` has put a waker into its slot. True: the slot is now for the thread that will complete the task. False:
    /// the task is complete, and the slot still the `JoinHandle`'s.
    #[must_use]
    pub(super) fn lend_slot(&self) -> bool {
        // Release publishes the waker to `complete`'s Acquire; Acquire pairs with `complete`'s Release (the output).
        self.0.fetch_or(JOIN_WAKER, AcqRel) & COMPLETE == 0
    }

    /// The `JoinHandle` goes away, usually at once after spawn: then its reference goes by the same operation.
    pub(super) fn drop_join_handle(&self) -> JoinDrop {
        // Release pairs with the Acquire of the last `ref_dec`; Acquire, where it fails, with `complete`'s Release.
        let before = self.0.fetch_update(Release, Acquire, |state| {
            debug_assert_ne!(state & JOIN_INTEREST, 0);
            // Never the last: a task that is not complete is held by the owned list.
            let gone = if state & JOIN_WAKER == 0 { REF_ONE } else { 0 };
            (state & COMPLETE == 0).then(|| (state & !(JOIN_INTEREST | JOIN_WAKER)) - gone)
        });
        match before {
            Err(_) => JoinDrop::Output,
            Ok(state) if state & JOIN_WAKER != 0 => JoinDrop::Waker,
            Ok(_) => JoinDrop::Detached,
        }
    }

    pub(super) fn ref_inc(&self) {
        // Relaxed as in `Arc`: the caller's own reference is what keeps the task.
        if self.0.fetch_add(REF_ONE, Relaxed) > isize::MAX as usize {
            std::process::abort();
        }
    }

    /// True: this was the last reference, and the caller frees the task.
    #[must_use]
    pub(super) fn ref_dec(&self) -> bool {
        // Release of all who let go pairs with the Acquire of the last, who frees.
        let before = self.0.fetch_sub(REF_ONE, AcqRel);
        debug_assert_ne!(before / REF_ONE, 0);
        before / REF_ONE == 1
    }
}
