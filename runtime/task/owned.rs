//! Every task that is spawned and not complete: Go's `allgs`, but a task leaves it, and it can be closed.
//!
//! The list exists for shutdown: a task that waits for ever is in no queue, and its future has to be dropped all the same.
//! It costs a spawn and a completion one lock each, of a shard that the task's number says. Numbers come to a thread in
//! blocks, and a block has one shard: so threads that spawn do not meet there, and who completes tasks that another spawned
//! is at work on older blocks, not at the lock, nor among the headers, where that one is.
//!
//! # Shutdown
//! ```text
//! queue.push_due(owned.cancel_all())               closes; what was idle is queued
//! while !owned.is_empty() {                        the rest was notified before and has its G in a queue or on the way
//!     take from the queues, g.cancel() each        to one, or is running and ends when its poll does
//!     owned.wait()                                 until the next arrives, or a list is empty
//! }
//! ```
//! Whatever such a drop does is met (S17): a spawn is refused, and its future dropped by the spawner; a wake or an abort does
//! nothing, as every task is aborted by then. No two tasks' drops are ever nested, no drop runs under a lock, and in which order
//! they come does not matter. From the moment `cancel_all` is through, whoever runs any task (worker or not) drops it, also by
//! `G::run`.

use super::super::park::Parker;
use super::super::sync::Mutex;
use super::g::{G, GList, Header, TaskInfo};
use super::state::Notify;
use std::mem;
use std::num::NonZeroU32;
use std::ptr::NonNull;

pub(crate) struct OwnedTasks {
    /// As many as a power of two.
    shards: Box<[Shard]>,
    /// Where who ends the runtime waits for the last tasks.
    last: Parker,
}

/// Two cache lines, because x86 fetches them in pairs.
#[repr(align(128))]
struct Shard(Mutex<List>);

#[derive(Default)]
struct List {
    /// In no order. The list holds one reference to each, and each knows its place.
    tasks: Vec<NonNull<Header>>,
    /// And every task is aborted.
    closed: bool,
}

// SAFETY: any thread may look at a task; its place is touched under the list's lock only.
unsafe impl Send for List {}

impl OwnedTasks {
    pub(crate) fn new(shards: usize) -> OwnedTasks {
        let shards = (0..shards.next_power_of_two()).map(|_| Shard(Mutex::default())).collect();
        OwnedTasks { shards, last: Parker::new() }
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
        list.tasks.push(task);
        // SAFETY: the task is alive, and we have the lock that guards its place.
        unsafe { set_place(task, list.tasks.len()) };
        true
    }

    /// Takes a task out, if it is in. The list's reference becomes the caller's.
    ///
    /// # Safety
    /// The task is alive, and is in no other `OwnedTasks`.
    pub(super) unsafe fn remove(&self, task: NonNull<Header>) {
        // SAFETY: the caller's task is alive.
        let mut list = self.shard(unsafe { task.as_ref() }).lock();
        // SAFETY: the task is alive, and we have the lock that guards its place.
        let Some(place) = (unsafe { set_place(task, 0) }) else { return };
        let at = place.get() as usize - 1;
        list.tasks.swap_remove(at);
        if let Some(&moved) = list.tasks.get(at) {
            // SAFETY: as above, since it is in the list.
            unsafe { set_place(moved, at + 1) };
        } else if list.closed && list.tasks.is_empty() {
            drop(list);
            self.tell();
        }
    }

    /// Once closed: waits until some shard has become empty, or `tell`. One thread only may call this.
    pub(crate) fn wait(&self) {
        self.last.park();
    }

    /// Ends one `wait`, this or the next.
    pub(crate) fn tell(&self) {
        self.last.unpark();
    }

    /// Refuses every spawn from now on, and marks every task as aborted. Returns those that were idle: the caller has them
    /// dropped by `G::cancel`.
    pub(crate) fn cancel_all(&self) -> GList {
        let mut idle = GList::default();
        for shard in &self.shards {
            let mut list = shard.0.lock();
            if mem::replace(&mut list.closed, true) {
                continue;
            }
            for &task in &list.tasks {
                // SAFETY: a task in the list is alive, and leaves it under this lock. `abort` runs nobody's code, and
                // `Submit` is the right to make the task's G.
                unsafe {
                    if let Notify::Submit = task.as_ref().state.abort() {
                        idle.push_back(G::from_raw(task));
                    }
                }
            }
        }
        idle
    }

    /// Is `cancel_all` through?
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.lock().closed)
    }

    /// Counts shard by shard: exact only when nothing is spawned or completes meanwhile.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().tasks.len()).sum()
    }

    /// Once closed and empty, it stays so, and every task that was ever in it is complete.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that are in a poll.
    pub(crate) fn running(&self) -> Vec<TaskInfo> {
        let mut running = Vec::new();
        for shard in &self.shards {
            for task in &shard.0.lock().tasks {
                // SAFETY: a task in the list is alive, and leaves it under this lock.
                let task = unsafe { task.as_ref() };
                running.extend(task.state.is_running().then_some(task.info));
            }
        }
        running
    }

    fn shard(&self, task: &Header) -> &Mutex<List> {
        &self.shards[task.info.id.block() as usize & (self.shards.len() - 1)].0
    }
}

/// Counted from one; 0 is none. Returns the place that it had.
///
/// # Safety
/// The task is alive, and the caller has its shard's lock.
unsafe fn set_place(task: NonNull<Header>, place: usize) -> Option<NonZeroU32> {
    let new = NonZeroU32::new(u32::try_from(place).expect("gopark: 2^32 tasks are too many"));
    // SAFETY: the lock makes this the only access.
    unsafe { task.as_ref().place.with_mut(|place| mem::replace(&mut *place, new)) }
}
