//! Where tasks wait for a thread: the run-next slot, an M's local queues, the global queue. Go's `runqput`, `runqget`,
//! `runqsteal` and `globrunqput` (runtime/proc.go). The only file that knows crossbeam-deque.
//!
//! The global queue is a list under a lock, as Go's is, and not a crossbeam `Injector`, which allocates a block for
//! every 63 tasks that pass.

use super::sync::{AtomicPtr, AtomicUsize, Mutex, Ordering};
use super::task::{G, GList, Header};
use crossbeam_deque::{Steal, Stealer, Worker};
use std::cell::Cell;
use std::ptr::{self, NonNull};

/// A local queue this long spills. Go's `len(p.runq)`.
const LOCAL: usize = 256;
/// It takes no newcomers again before it is this short.
const HALF: usize = LOCAL / 2;

/// A `G` as crossbeam stores it: a word that is only a `G` again once it is taken out.
struct Raw(NonNull<Header>);

// SAFETY: it stands for a `G`, which is Send.
unsafe impl Send for Raw {}

impl Raw {
    fn new(g: G) -> Self {
        Raw(g.into_raw())
    }

    fn into_g(self) -> G {
        // SAFETY: made by `new`; taken out of the queue once.
        unsafe { G::from_raw(self.0) }
    }
}

/// The owner's side of an M's queue.
pub(crate) struct Local {
    worker: Worker<Raw>,
    /// Tasks whose timer has expired: late already, they do not go behind what was spawned a moment ago.
    due: Worker<Raw>,
    /// The queue was full: newcomers go to the global queue until this one is half empty.
    ///
    /// Go and tokio move the older half out at this point. It then waits behind every newcomer, since a local queue is
    /// looked at sixty times as often: that is tokio's p99 with 512 connections on one worker. Here the queue keeps
    /// its order, and so does what follows it in the global one.
    spilling: Cell<bool>,
}

/// Everybody else's side.
#[derive(Debug)]
pub(crate) struct Remote {
    stealer: Stealer<Raw>,
    due: Stealer<Raw>,
    /// The task that runs next (Go's `runnext`): the one most lately woken, whose data is still in the cache.
    next: AtomicPtr<Header>,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Raw").field(&self.0).finish()
    }
}

pub(crate) fn local() -> (Local, Remote) {
    let (worker, due) = (Worker::new_fifo(), Worker::new_fifo());
    let remote = Remote { stealer: worker.stealer(), due: due.stealer(), next: AtomicPtr::new(ptr::null_mut()) };
    (Local { worker, due, spilling: Cell::new(false) }, remote)
}

impl Local {
    /// Queues a task behind the others. Go's `runqput` without `next`.
    pub(crate) fn push(&self, g: G, global: &Global) {
        if self.spilling.get() || self.worker.len() >= LOCAL {
            self.spilling.set(true);
            global.push(g);
        } else {
            self.worker.push(Raw::new(g));
        }
    }

    /// Queues a task whose timer has expired.
    pub(crate) fn push_due(&self, g: G) {
        self.due.push(Raw::new(g));
    }

    pub(crate) fn pop_due(&self) -> Option<G> {
        self.due.pop().map(Raw::into_g)
    }

    /// The task that has waited longest here. After a spill, what was spilled follows in its order.
    pub(crate) fn pop(&self, global: &Global) -> Option<G> {
        if self.spilling.get() && self.worker.len() <= HALF {
            self.refill(global, HALF);
            self.spilling.set(!global.is_empty());
        }
        self.worker.pop().map(Raw::into_g)
    }

    /// Moves up to `n` tasks here from the global queue. Go's `globrunqget`.
    pub(crate) fn refill(&self, global: &Global, n: usize) {
        let mut batch = global.pop_batch(n);
        while let Some(g) = batch.pop_front() {
            self.worker.push(Raw::new(g));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.worker.len()
    }

    /// Takes everything out, what would run next first (trap S3).
    pub(crate) fn drain(&self, remote: &Remote) -> GList {
        let mut all = GList::new();
        self.spilling.set(false);
        while let Some(g) = self.pop_due().or_else(|| remote.take_next()).or_else(|| self.worker.pop().map(Raw::into_g))
        {
            all.push_back(g);
        }
        all
    }

    /// Takes half of another M's queues and returns the first of it. Go's `runqsteal`.
    pub(crate) fn steal(&self, from: &Remote) -> Option<G> {
        steal_half(&from.due, &self.due).or_else(|| steal_half(&from.stealer, &self.worker))
    }
}

impl Remote {
    /// Puts a task into the run-next slot; the one it drives out is the caller's to queue.
    pub(crate) fn set_next(&self, g: G) -> Option<G> {
        // Release publishes the task to a thief; Acquire takes over the one that was here.
        from_ptr(self.next.swap(g.into_raw().as_ptr(), Ordering::AcqRel))
    }

    /// Takes the task out of the run-next slot: its owner, or a thief.
    pub(crate) fn take_next(&self) -> Option<G> {
        if self.next.load(Ordering::Relaxed).is_null() {
            return None;
        }
        from_ptr(self.next.swap(ptr::null_mut(), Ordering::AcqRel))
    }

    /// Is there anything to steal?
    pub(crate) fn is_empty(&self) -> bool {
        self.stealer.is_empty() && self.due.is_empty() && self.next.load(Ordering::Relaxed).is_null()
    }
}

fn steal_half(from: &Stealer<Raw>, to: &Worker<Raw>) -> Option<G> {
    loop {
        match from.steal_batch_and_pop(to) {
            Steal::Success(raw) => return Some(raw.into_g()),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}

fn from_ptr(raw: *mut Header) -> Option<G> {
    // SAFETY: the slot holds what `into_raw` gave, and a swap takes it out once.
    NonNull::new(raw).map(|raw| unsafe { G::from_raw(raw) })
}

/// The queue of all Ps. Go's `sched.runq`.
#[derive(Debug)]
pub(crate) struct Global {
    list: Mutex<GList>,
    /// For a look without the lock. Changed under it.
    len: AtomicUsize,
}

impl Global {
    pub(crate) fn new() -> Self {
        Global { list: Mutex::new(GList::new()), len: AtomicUsize::new(0) }
    }

    pub(crate) fn push(&self, g: G) {
        let mut list = self.list.lock();
        list.push_back(g);
        self.len.store(list.len(), Ordering::Relaxed);
    }

    /// Puts tasks before all others: they come from a local queue, and what spilled from that is here already.
    pub(crate) fn push_front(&self, mut first: GList) {
        let mut list = self.list.lock();
        first.append(&mut list);
        *list = first;
        self.len.store(list.len(), Ordering::Relaxed);
    }

    pub(crate) fn pop(&self) -> Option<G> {
        self.pop_batch(1).pop_front()
    }

    pub(crate) fn pop_batch(&self, n: usize) -> GList {
        let mut batch = GList::new();
        if self.is_empty() {
            return batch;
        }
        let mut list = self.list.lock();
        while batch.len() < n {
            let Some(g) = list.pop_front() else { break };
            batch.push_back(g);
        }
        self.len.store(list.len(), Ordering::Relaxed);
        batch
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }
}
