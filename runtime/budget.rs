//! The cooperative budget: what stands in for Go's preemption (runtime/preempt.go). A future cannot be interrupted,
//! so each operation on a socket takes one unit, and a poll that has used them all goes to the back of the queue.

use std::cell::Cell;
use std::task::{Context, Poll};

/// Operations that one poll may make before it must let others run: some hundred microseconds of system calls.
const UNITS: u32 = 128;

thread_local! {
    /// What the current poll has left. `None` outside a worker's poll: nobody waits behind it there.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Runs one poll with a fresh budget. True: it used up all of it.
pub(crate) fn with_budget(poll: impl FnOnce()) -> bool {
    LEFT.set(Some(UNITS));
    poll();
    LEFT.take() == Some(0)
}

/// Sets the budget aside: for a `block_on` or a closure that blocks inside a poll.
pub(crate) fn without_budget() -> impl Drop {
    struct Restore(Option<u32>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT.set(self.0);
        }
    }
    Restore(LEFT.take())
}

/// Takes one unit. `Pending`: none is left; the task has been woken and must return.
#[inline]
pub(crate) fn poll_take(cx: &mut Context<'_>) -> Poll<()> {
    match LEFT.get() {
        None => Poll::Ready(()),
        Some(0) => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Some(n) => {
            LEFT.set(Some(n - 1));
            Poll::Ready(())
        }
    }
}
