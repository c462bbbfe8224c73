//! Where tasks wait for a thread: the run-next slot, an M's local queues, the global queue. Go's `runqput`, `runqget`,
//! `runqsteal` and `globrunqput` (runtime/proc.go). The only file that knows crossbeam-deque.
//!
//! The global queue is a list under a lock, as Go's is, and not a crossbeam `Injector`, which allocates a block for
//! every 63 tasks that pass.

use super::sync::{AtomicPtr, AtomicUsize, Mutex, Ordering};
use super::task::{G, GList, Header};
use crossbeam_deque::{Steal, Stealer, Worker};
use std::iter;
use std::ptr::{self, NonNull};

/// The owner's side of an M's queue. It grows.
///
/// Go's and tokio's hold 256 tasks, and move the older half to the global queue when they are full. That half then waits
/// behind every newcomer, since a local queue is looked at sixty times as often: tokio's p99 with 512 connections on one
/// worker. Newcomers to the global queue instead: tried, and in order, but with 1,000 tasks on two workers most of them
/// met at its lock. Idle Ms find a long local queue as well as a global one.
pub(crate) struct Local {
    worker: Worker<G>,
    /// Tasks whose timer has expired, and what was harvested for whoever has a P: late already, they do not go behind what was
    /// spawned a moment ago.
    due: Worker<G>,
}

/// Everybody else's side.
pub(crate) struct Remote {
    stealer: Stealer<G>,
    due: Stealer<G>,
    /// The task that runs next (Go's `runnext`): the one most lately woken, whose data is still in the cache.
    next: AtomicPtr<Header>,
}

pub(crate) fn local() -> (Local, Remote) {
    let (worker, due) = (Worker::new_fifo(), Worker::new_fifo());
    let remote = Remote { stealer: worker.stealer(), due: due.stealer(), next: AtomicPtr::new(ptr::null_mut()) };
    (Local { worker, due }, remote)
}

impl Local {
    /// Queues a task behind the others. Go's `runqput` without `next`.
    #[inline]
    pub(crate) fn push(&self, g: G) {
        self.worker.push(g);
    }

    /// Queues a task that is late already.
    pub(crate) fn push_due(&self, g: G) {
        self.due.push(g);
    }

    pub(crate) fn pop_due(&self) -> Option<G> {
        self.due.pop()
    }

    /// The task that has waited longest here.
    #[inline]
    pub(crate) fn pop(&self) -> Option<G> {
        self.worker.pop()
    }

    /// Moves up to `n` tasks here from the global queue, what is due first. Go's `globrunqget`.
    pub(crate) fn refill(&self, global: &Global, n: usize) {
        self.fetch(global, n, |due| n - due, false);
    }

    /// Takes up to `n` tasks that are due out of the global queue, to run them in turn with what is here, and for every
    /// `EACH` of them another one, or the others would wait for as long as there are such; with `one`, returns one more.
    pub(crate) fn look_at(&self, global: &Global, n: usize, one: bool) -> Option<G> {
        const EACH: usize = 3;
        self.fetch(global, n, |due| due / EACH, one)
    }

    fn fetch(&self, global: &Global, n: usize, others: impl FnOnce(usize) -> usize, one: bool) -> Option<G> {
        if global.is_empty() {
            return None;
        }
        let (due, tasks, g) = global.change(|lists| {
            let g = if one { lists.tasks.next() } else { None };
            let due: GList = lists.due.by_ref().take(n).collect();
            let tasks: GList = lists.tasks.by_ref().take(others(due.len())).collect();
            (due, tasks, g)
        });
        due.for_each(|g| self.push_due(g));
        tasks.for_each(|g| self.push(g));
        g
    }

    /// How much waits here, the run-next slot apart.
    pub(crate) fn len(&self) -> usize {
        self.worker.len() + self.due.len()
    }

    /// Takes half of another M's queues and returns the first of it. Go's `runqsteal`.
    pub(crate) fn steal(&self, from: &Remote) -> Option<G> {
        let half = |from: &Stealer<G>, to| insist(|| from.steal_batch_and_pop(to));
        half(&from.due, &self.due).or_else(|| half(&from.stealer, &self.worker))
    }

    /// The same from an M that stands still: what is taken has waited longer than what is here, and goes before it.
    pub(crate) fn relieve(&self, from: &Remote) {
        for queue in [&from.due, &from.stealer] {
            while queue.steal_batch(&self.due).is_retry() {}
        }
        if let Some(g) = from.take_next() {
            self.push_due(g);
        }
    }
}

impl Remote {
    /// Puts a task into the run-next slot; the one it drives out is the caller's to queue. For its owner alone.
    pub(crate) fn set_next(&self, g: G) -> Option<G> {
        let g = g.into_raw().as_ptr();
        if self.next.load(Ordering::Relaxed).is_null() {
            // Nobody else fills it. Release publishes the task to a thief.
            self.next.store(g, Ordering::Release);
            return None;
        }
        // Release as above; Acquire takes over the one that was here.
        from_ptr(self.next.swap(g, Ordering::AcqRel))
    }

    /// Takes the task out of the run-next slot: its owner, or a thief.
    pub(crate) fn take_next(&self) -> Option<G> {
        if self.next.load(Ordering::Relaxed).is_null() {
            return None;
        }
        from_ptr(self.next.swap(ptr::null_mut(), Ordering::AcqRel))
    }

    /// How much waits here, the run-next slot apart.
    pub(crate) fn len(&self) -> usize {
        self.stealer.len() + self.due.len()
    }

    /// Is there anything to steal?
    pub(crate) fn is_empty(&self) -> bool {
        self.stealer.is_empty() && self.due.is_empty() && self.next.load(Ordering::Relaxed).is_null()
    }
}

/// Tries until no other thief or owner is in the way.
fn insist(attempt: impl FnMut() -> Steal<G>) -> Option<G> {
    iter::repeat_with(attempt).find(|steal| !steal.is_retry())?.success()
}

fn from_ptr(raw: *mut Header) -> Option<G> {
    // SAFETY: the slot holds what `into_raw` gave, and a swap takes it out once.
    NonNull::new(raw).map(|raw| unsafe { G::from_raw(raw) })
}

/// The queue of all Ps. Go's `sched.runq`.
#[derive(Debug, Default)]
pub(crate) struct Global {
    lists: Mutex<Lists>,
    /// For a look without the lock. Changed under it.
    len: AtomicUsize,
}

/// Tasks in two queues, as an M has them.
#[derive(Debug, Default)]
struct Lists {
    due: GList,
    tasks: GList,
}

impl Global {
    pub(crate) fn push(&self, g: G) {
        self.change(|lists| lists.tasks.push_back(g));
    }

    /// Queues what somebody has harvested who has no P.
    pub(crate) fn push_due(&self, gs: &mut GList) {
        self.change(|lists| lists.due.append(gs));
    }

    /// Puts a task before the others: it was here already.
    pub(crate) fn push_front(&self, g: G) {
        self.change(|lists| lists.tasks.prepend(iter::once(g).collect()));
    }

    /// Takes all that an M has (trap S3), and puts it before the others of its kind, since it has waited there. No more
    /// than there is now: its owner may come back to it. False: there was nothing.
    pub(crate) fn take_over(&self, from: &Remote) -> bool {
        if from.is_empty() {
            return false;
        }
        let all = |from: &Stealer<G>| iter::from_fn(|| insist(|| from.steal())).take(from.len()).collect();
        let (due, mut tasks): (_, GList) = (all(&from.due), from.take_next().into_iter().collect());
        tasks.append(&mut all(&from.stealer));
        self.change(|lists| {
            lists.due.prepend(due);
            lists.tasks.prepend(tasks);
        });
        true
    }

    /// The first of all. Under the lock even if there is nothing: who queues something later sees what the caller has seen.
    pub(crate) fn take_out(&self) -> Option<G> {
        if cfg!(gopark_mutant = "queue_out_no_lock") && self.is_empty() {
            return None;
        }
        self.change(|lists| lists.due.next().or_else(|| lists.tasks.next()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn change<R>(&self, f: impl FnOnce(&mut Lists) -> R) -> R {
        let mut lists = self.lists.lock();
        let result = f(&mut lists);
        self.len.store(lists.due.len() + lists.tasks.len(), Ordering::Relaxed);
        result
    }
}

#[cfg(all(test, not(gopark_loom)))]
mod tests {
    use super::super::task::rig::Rig;
    use super::super::task::{JoinHandle, TaskId};
    use super::*;
    use std::future::ready;
    use std::sync::Arc;

    struct Rigged {
        rig: Arc<Rig>,
        joins: Vec<JoinHandle<()>>,
        ran: Vec<TaskId>,
        local: Local,
        remote: Remote,
        global: Global,
    }

    impl Rigged {
        fn new() -> Rigged {
            let (local, remote) = local();
            Rigged { rig: Rig::new(), joins: Vec::new(), ran: Vec::new(), local, remote, global: Global::default() }
        }

        fn make(&mut self) -> G {
            let (g, join) = self.rig.make(ready(()));
            self.joins.push(join);
            g.unwrap()
        }

        fn push(&mut self, n: usize) {
            for _ in 0..n {
                let g = self.make();
                self.local.push(g);
            }
        }

        fn run(&mut self, g: G) {
            self.ran.push(g.info().id());
            g.finish();
        }

        fn run_local(&mut self) {
            while let Some(g) = self.local.pop() {
                self.run(g);
            }
        }

        /// All tasks ran, in the order in which they were made.
        fn end(self) {
            let made: Vec<_> = self.joins.iter().map(JoinHandle::id).collect();
            assert_eq!(self.ran, made);
            assert!(self.local.len() == 0 && self.remote.is_empty() && self.global.is_empty());
            drop(self.joins);
            self.rig.end();
        }
    }

    /// However many there are, none waits behind a newcomer.
    #[test]
    fn push_and_pop_and_push_again() {
        let mut q = Rigged::new();
        q.push(1000);
        for _ in 0..500 {
            let g = q.local.pop().unwrap();
            q.run(g);
            q.push(1);
        }
        assert_eq!((q.local.len(), q.global.len()), (1000, 0));
        q.run_local();
        q.end();
    }

    #[test]
    fn refill_and_pop() {
        let mut q = Rigged::new();
        for _ in 0..10 {
            let g = q.make();
            q.global.push(g);
        }
        q.local.refill(&q.global, 4);
        assert_eq!((q.local.len(), q.global.len()), (4, 6));
        q.run_local();
        q.local.refill(&q.global, 100);
        q.run_local();
        q.local.refill(&q.global, 1);
        assert!(q.local.pop().is_none() && q.global.take_out().is_none());
        q.end();
    }

    /// Trap S3: nothing stays where its thread no longer looks; and in what order it goes to the global queue.
    #[test]
    fn take_over_and_look_at() {
        let mut q = Rigged::new();
        let [due, next] = [q.make(), q.make()];
        q.push(300);
        let last = q.make();
        q.global.push(last);
        q.local.push_due(due);
        assert!(q.remote.set_next(next).is_none());
        // Before what is there already.
        assert!(q.global.take_over(&q.remote) && !q.global.take_over(&q.remote));
        assert_eq!((q.local.len(), q.remote.is_empty(), q.global.len()), (0, true, 303));
        // What is due goes to what is due.
        assert!(q.local.look_at(&q.global, 1, false).is_none());
        let due = q.local.pop_due().unwrap();
        q.run(due);
        while let Some(g) = q.local.look_at(&q.global, 1, true) {
            q.run(g);
        }
        q.end();
    }

    #[test]
    fn steal_takes_the_older_half() {
        let mut q = Rigged::new();
        let (thief, _) = local();
        q.push(10);
        let due = q.make();
        q.local.push_due(due);
        let late = thief.steal(&q.remote).unwrap();
        assert_eq!((thief.len(), q.local.len()), (0, 10), "what is due goes first");
        let first = thief.steal(&q.remote).unwrap();
        assert_eq!((thief.len(), q.local.len()), (4, 5));
        q.run(first);
        while let Some(g) = thief.pop() {
            q.run(g);
        }
        q.run_local();
        q.run(late);
        assert!(thief.steal(&q.remote).is_none());
        q.end();
    }

    #[test]
    fn next_is_driven_out_and_taken() {
        let mut q = Rigged::new();
        let [first, second] = [q.make(), q.make()];
        assert!(q.remote.is_empty() && q.remote.take_next().is_none());
        assert!(q.remote.set_next(first).is_none());
        assert!(!q.remote.is_empty());
        let first = q.remote.set_next(second).unwrap();
        q.run(first);
        let second = q.remote.take_next().unwrap();
        q.run(second);
        assert!(q.remote.take_next().is_none());
        q.end();
    }

    /// Each task is run once, whoever gets it.
    #[test]
    fn push_and_pop_while_two_steal() {
        const TASKS: usize = if cfg!(miri) { 60 } else { 20_000 };
        let mut q = Rigged::new();
        let done = AtomicUsize::new(0);
        let gs: Vec<_> = (0..TASKS).map(|_| q.make()).collect();
        let Rigged { rig, joins, local: owner, remote, .. } = q;
        let run = |g: G| {
            g.finish();
            done.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let (thief, _) = local();
                    while done.load(Ordering::Relaxed) < TASKS {
                        match thief.steal(&remote).or_else(|| remote.take_next()) {
                            Some(g) => run(g),
                            None => std::thread::yield_now(),
                        }
                        while let Some(g) = thief.pop_due().or_else(|| thief.pop()) {
                            run(g);
                        }
                    }
                });
            }
            for (n, g) in gs.into_iter().enumerate() {
                match n % 4 {
                    0 => drop(remote.set_next(g).map(|g| owner.push(g))),
                    1 => owner.push_due(g),
                    _ => owner.push(g),
                }
                if n % 3 == 0 {
                    owner.pop().into_iter().for_each(run);
                }
            }
            while done.load(Ordering::Relaxed) < TASKS {
                let g = owner.pop().or_else(|| owner.pop_due()).or_else(|| remote.take_next());
                g.into_iter().for_each(run);
                std::thread::yield_now();
            }
        });
        drop(joins);
        rig.end();
    }
}

#[cfg(all(test, gopark_loom))]
mod models {
    use super::super::park::Parker;
    use super::super::sync::AtomicU32;
    use super::super::task::rig::Rig;
    use super::*;
    use std::future::ready;
    use std::sync::Arc;

    /// At the end the last M takes out all that is queued, and waits; who queues a task after that tells it so, if it sees that
    /// the runtime ends. The word that says so is relaxed, as `Sched::stopping` is: the lock orders it. Does not cover what
    /// else ends that wait (owned.rs).
    #[test]
    fn who_queues_a_task_after_the_last_look_tells_of_it() {
        loom::model(|| {
            let rig = Rig::new();
            let (g, join) = rig.make(ready(()));
            let shared = Arc::new((Global::default(), AtomicU32::new(0), Parker::new()));
            let there = shared.clone();
            let thread = loom::thread::spawn(move || {
                there.0.push(g.unwrap());
                if there.1.load(Ordering::Relaxed) == 1 {
                    there.2.unpark();
                }
            });
            let (global, stopping, told) = &*shared;
            stopping.store(1, Ordering::Relaxed);
            let g = loop {
                match global.take_out() {
                    Some(g) => break g,
                    None => told.park(),
                }
            };
            g.cancel();
            thread.join().unwrap();
            drop(join);
            rig.end();
        });
    }
}
