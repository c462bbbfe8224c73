//! The cooperative budget: what stands in for Go's preemption (runtime/preempt.go). A future cannot be interrupted,
//! so each operation on a socket takes one unit, and a poll that has used them all goes to the back of the queue.

use super::defer::defer;
use super::rare::rare;
use std::cell::Cell;
use std::task::{Context, Poll};

/// Operations that one poll may make before it must let others run: some hundred microseconds of system calls.
const UNITS: i32 = 128;
/// After so many refusals in one poll somebody else's executor blocks the worker from within the task, and asks again
/// and again: only more budget lets it come to its end (trap S9).
const REFUSALS: i32 = 1024;

thread_local! {
    /// What the current poll has left. `None` outside a poll of the runtime's: nobody waits behind it there.
    static LEFT: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Runs one poll with a fresh budget. True: it used up all of it.
#[inline]
pub(crate) fn with_budget(poll: impl FnOnce()) -> bool {
    LEFT.set(Some(UNITS));
    poll();
    LEFT.take().is_some_and(|left| left <= 0)
}

/// Sets the budget aside: for a `block_on` or a closure that blocks inside a poll.
pub(crate) fn without_budget() -> impl Drop {
    let left = LEFT.take();
    defer(move || LEFT.set(left))
}

/// Has the poll any left?
pub(crate) fn is_left() -> bool {
    LEFT.get().is_none_or(|left| left > 0)
}

/// Takes one unit. `Pending`: none is left; the task has been woken and must return.
#[inline]
pub(crate) fn poll_take(cx: &mut Context<'_>) -> Poll<()> {
    match LEFT.get() {
        None => Poll::Ready(()),
        Some(n @ ..=0) => {
            rare();
            LEFT.set(Some(if n > -REFUSALS { n - 1 } else { UNITS }));
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Some(n) => {
            LEFT.set(Some(n - 1));
            Poll::Ready(())
        }
    }
}
