//! G: a future, its state word, its place in the queues; one heap allocation from spawn to the last waker.
//!
//! ```text
//!                 spawn                  G::run: start                    G::run: complete
//!  (future) ----------------> NOTIFIED ----------------> RUNNING --------------------------> COMPLETE ---> freed
//!               |                 ^  ^                    |  |  (ready, panicked, aborted)      |   release, by
//!               | closed:         |  |  idle: Notified    |  |                                  |   the last of
//!               | G::cancel       |  +--------------------+  | idle: Parked                     |   all holders
//!               v                 |  (woken or aborted       v                                  v
//!        drops the future,        |   meanwhile)           (idle)              JoinHandle::poll: take_output
//!        the JoinHandle says      |                          |                 JoinHandle::drop: drop_output
//!        cancelled                +--------------------------+
//!                                   notify (wake, TaskRef), abort (AbortHandle, cancel_all)
//! ```
//!
//! A *wake* moves an idle task to NOTIFIED and makes its `G`, which goes to `Schedule::schedule` (a waker) or to the caller
//! (`TaskRef::notify`, `OwnedTasks::cancel_all`). A wake during the poll leaves the `G` to the thread that polls, whose
//! `G::run` returns it. A wake of a task that is NOTIFIED or COMPLETE makes none. So there is one `G` at most, and only
//! `G::run` ever touches a future: nothing is polled or dropped inside a wake (S16).
//!
//! | field | who may touch it, and when |
//! |---|---|
//! | `state` | anyone with a reference, or the `G`, or RUNNING; by its methods |
//! | `vtable`, `scheduler`, `info` | the same, to read |
//! | `queue_next` | who holds the `G`, or the list that it is in |
//! | `place` | who has the lock of the task's shard of `OwnedTasks` |
//! | `stage`, not COMPLETE | who set RUNNING (`start`) |
//! | `stage`, COMPLETE | the `JoinHandle` if there was one at `complete`, else who completed |
//! | `join_waker`, JOIN_WAKER clear | the `JoinHandle`, also after completion. Empty outside its methods |
//! | `join_waker`, JOIN_WAKER set | who completes the task, once it is COMPLETE |
//!
//! # Panics (S23)
//! A panic in a poll or in the drop of the future, be it after `Ready` or after an abort, is the task's result. One in the
//! drop of an output that the runtime drops, and a result that is a panic and that no `JoinHandle` takes, go to
//! `Schedule::unjoined_panic`. What a foreign join waker or the drop of a second payload throws is swallowed (the panic
//! hook has told of it). None of them gets past `G::run` or the drop of a `JoinHandle`.
//!
//! # Tried and left
//! A `G` that owns a reference (tokio's `Notified`): two more atomic operations per wake, and the owned list's reference is
//! there anyway. `run` that queues a yielding task itself: the task could complete elsewhere and free its scheduler
//! under the feet of that call; the caller, who has a scheduler of its own, is in no such danger. A join waker that both
//! sides may read (tokio): saves two operations when a handle is polled again, costs three more rules.

mod cell;
mod g;
mod join;
#[cfg(all(test, gopark_loom))]
mod models;
mod owned;
#[cfg(test)]
pub(crate) mod rig;
mod state;
#[cfg(all(test, not(gopark_loom)))]
mod tests;

pub(crate) use cell::{Schedule, panic_text, quietly};
pub(crate) use g::{G, GList, Header, from_waker};
pub use g::{TaskId, TaskInfo};
pub use join::{AbortHandle, JoinError, JoinHandle};
pub(crate) use owned::OwnedTasks;

use cell::Cell;
use std::panic::Location;
use std::sync::Arc;

/// Makes a task: Go's `newproc1`. The caller queues the `G`. `None`: the scheduler's `OwnedTasks` is closed, the future is
/// already dropped, on this thread, and the handle resolves to a cancelled [`JoinError`].
pub(crate) fn spawn<F, S>(
    future: F,
    scheduler: Arc<S>,
    spawned_at: &'static Location<'static>,
) -> (Option<G>, JoinHandle<F::Output>)
where
    F: Future<Output: Send> + Send + 'static,
    S: Schedule,
{
    let info = TaskInfo { id: g::TaskId::next(), spawned_at };
    let (task, listed) = Cell::alloc(future, scheduler, info);
    // SAFETY: the task is new; its JoinHandle and its G are made here and nowhere else, and its output is F's.
    let (join, g) = unsafe { (JoinHandle::new(task), G::from_raw(task)) };
    if listed {
        (Some(g), join)
    } else {
        g.cancel();
        (None, join)
    }
}
