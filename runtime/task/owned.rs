//! Every task that is spawned and not complete: Go's `allgs`, but a task leaves it, and it can be closed.
//!
//! The list exists for shutdown: a task that waits for ever is in no queue, and its future has to be dropped all the same.
//! It costs a spawn and a completion one lock each, of a shard that the spawner picks: with a P's number, its own.
//!
//! # Shutdown
//! ```text
//! for g in owned.cancel_all() { g.cancel() }       closes; then every idle task's future is dropped here, one by one
//! while !owned.is_empty() {                        the rest was notified before and has its G in a queue or on the way
//!     drain the queues, g.cancel() each            to one, or is running and ends when its poll does
//!     wait for the next to arrive
//! }
//! ```
//! Whatever such a drop does is met (S17): a spawn is refused, and its future dropped by the spawner; a wake or an abort of
//! a task that the loop has not come to queues that task, and the loop passes it by; one of a task that it has come to does
//! nothing. No two tasks' drops are ever nested, no drop runs under a lock, and in which order they come does not matter.
//! From the moment `cancel_all` is through, whoever runs any task (worker or not) drops it, also by `G::run`.

use super::super::sync::Mutex;
use super::g::{G, Header, Links, TaskInfo};
use super::state::Notify;
use std::ptr::NonNull;

#[derive(Debug)]
pub(crate) struct OwnedTasks {
    /// As many as a power of two.
    shards: Box<[Shard]>,
}

/// Two cache lines, because x86 fetches them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<List>);

/// A doubly linked list. It holds one reference to each task in it.
#[derive(Debug)]
struct List {
    head: Option<NonNull<Header>>,
    /// The next task that shutdown has to cancel. As nothing is inserted any more, what is behind it is cancelled.
    cursor: Option<NonNull<Header>>,
    len: usize,
    closed: bool,
}

// SAFETY: the tasks' links, which these pointers are for, are touched under the list's lock only.
unsafe impl Send for List {}

impl OwnedTasks {
    pub(crate) fn new(shards: usize) -> OwnedTasks {
        let shard = |_| Shard(Mutex::new(List { head: None, cursor: None, len: 0, closed: false }));
        OwnedTasks { shards: (0..shards.next_power_of_two()).map(shard).collect() }
    }

    /// False: closed, and the list took nothing.
    ///
    /// # Safety
    /// The task is new. With `true` the list has its reference, until `remove`.
    #[must_use]
    pub(super) unsafe fn insert(&self, task: NonNull<Header>) -> bool {
        // SAFETY: the caller's task is alive.
        let mut list = self.shard(unsafe { task.as_ref() }).lock();
        if list.closed {
            return false;
        }
        let next = list.head.replace(task);
        // SAFETY: tasks in the list are alive, so is the new one, and we have the lock that guards their links.
        unsafe {
            if let Some(next) = next {
                links(next, |l| l.prev = Some(task));
            }
            links(task, |l| *l = Links { prev: None, next, linked: true });
        }
        list.len += 1;
        true
    }

    /// Takes a task out, if it is in. The list's reference becomes the caller's.
    ///
    /// # Safety
    /// The task is alive, and is in no other `OwnedTasks`.
    pub(super) unsafe fn remove(&self, task: NonNull<Header>) {
        // SAFETY: the caller's task is alive.
        let mut list = self.shard(unsafe { task.as_ref() }).lock();
        // SAFETY: the task, and its neighbours because they are in the list, are alive, and we have the lock that guards
        // their links.
        unsafe {
            let Links { prev, next, linked } = links(task, std::mem::take);
            if !linked {
                return;
            }
            match prev {
                Some(prev) => links(prev, |l| l.next = next),
                None => list.head = next,
            }
            if let Some(next) = next {
                links(next, |l| l.prev = prev);
            }
            if list.cursor == Some(task) {
                list.cursor = next;
            }
        }
        list.len -= 1;
    }

    /// From now on every spawn is refused.
    pub(crate) fn close(&self) {
        for shard in &self.shards {
            let mut list = shard.0.lock();
            if !list.closed {
                list.closed = true;
                list.cursor = list.head;
            }
        }
    }

    /// Closes, and marks every task as aborted, one at each step. Yields those that were idle: the caller drops their
    /// futures by `G::cancel`. Several threads may do this at once and share the work.
    pub(crate) fn cancel_all(&self) -> impl Iterator<Item = G> {
        self.close();
        self.shards.iter().flat_map(|shard| std::iter::from_fn(|| shard.0.lock().cancel_next()))
    }

    /// Has `cancel_all` come to all of them?
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shards.iter().map(|shard| shard.0.lock()).all(|list| list.closed && list.cursor.is_none())
    }

    /// Counts shard by shard: exact only when nothing is spawned or completes meanwhile.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len).sum()
    }

    /// Once closed and empty, it stays so, and every task that was ever in it is complete.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that are in a poll.
    pub(crate) fn running(&self) -> Vec<TaskInfo> {
        let mut running = Vec::new();
        for shard in &self.shards {
            let list = shard.0.lock();
            let mut next = list.head;
            while let Some(task) = next {
                // SAFETY: a task in the list is alive, and we have the lock that guards its links.
                unsafe {
                    running.extend(task.as_ref().state.is_running().then_some(task.as_ref().info));
                    next = links(task, |l| l.next);
                }
            }
        }
        running
    }

    fn shard(&self, task: &Header) -> &Mutex<List> {
        &self.shards[task.shard & (self.shards.len() - 1)].0
    }
}

impl List {
    fn cancel_next(&mut self) -> Option<G> {
        while let Some(task) = self.cursor {
            // SAFETY: a task in the list is alive, and `self` is borrowed under the lock that guards its links.
            // `abort` runs nobody's code, and `Submit` is the right to make the task's G.
            unsafe {
                self.cursor = links(task, |l| l.next);
                if let Notify::Submit = task.as_ref().state.abort() {
                    return Some(G::from_raw(task));
                }
            }
        }
        None
    }
}

/// # Safety
/// The task is alive, and the caller has its shard's lock.
unsafe fn links<R>(task: NonNull<Header>, f: impl FnOnce(&mut Links) -> R) -> R {
    // SAFETY: the lock makes this the only access; none of the closures above touches the same task's links again.
    unsafe { task.as_ref().links.with_mut(|links| f(&mut *links)) }
}
