//! Closures that block: `spawn_blocking` and `block_in_place`. Go has no such call, because its scheduler sees a
//! goroutine enter a system call (`entersyscallblock`); here the user says so.

use super::proc::{Orders, Sched, without_p};
use super::sync::{AtomicUsize, Mutex, Ordering};
use super::task::{G, GList, Ran};

/// The closures that no thread has begun.
#[derive(Debug)]
pub(crate) struct Queue {
    jobs: Mutex<GList>,
    /// For a look without the lock. Changed under it.
    len: AtomicUsize,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Queue { jobs: Mutex::new(GList::new()), len: AtomicUsize::new(0) }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.len.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn take_all(&self) -> GList {
        let mut jobs = self.jobs.lock();
        self.len.store(0, Ordering::Relaxed);
        std::mem::take(&mut *jobs)
    }

    fn push(&self, g: G) {
        let mut jobs = self.jobs.lock();
        jobs.push_back(g);
        self.len.store(jobs.len(), Ordering::Relaxed);
    }

    fn pop(&self) -> Option<G> {
        let mut jobs = self.jobs.lock();
        let job = jobs.pop_front();
        self.len.store(jobs.len(), Ordering::Relaxed);
        job
    }
}

impl Sched {
    /// Queues a closure and finds a thread for it: a parked M, else a new one. If none can be had, the next M that
    /// runs out of work takes it.
    pub(crate) fn submit_blocking(&self, g: G) {
        self.blocking.push(g);
        match self.idle.take_m() {
            Some(m) => self.order(m, Orders::Block),
            None => {
                if self.start_m(Orders::Block).is_err() {
                    // The poller, if it is the only M at rest, looks at the queue when it comes back.
                    self.netpoll.netpoll_break();
                }
            }
        }
    }

    /// Runs closures until none waits. Called by an M without a P.
    pub(crate) fn run_blocking(&self) {
        while let Some(g) = self.blocking.pop() {
            let Ran::Done = g.run() else { unreachable!("a closure is ready when it returns") };
        }
    }
}

/// Runs a closure that may block, on the calling thread, while other tasks go on elsewhere.
///
/// On a worker it first hands the worker's place (Go's P) and everything queued there to another thread, as Go does
/// around a system call. The task that calls it is not interrupted and keeps its thread; its other branches (a `join!`
/// or `select!` around the call) wait with it. On any other thread it only calls `f`.
///
/// # Panics
/// If `f` panics, with its panic.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let text = gopark::block_in_place(|| std::fs::read_to_string("Cargo.toml"));
///     assert!(text.unwrap().contains("gopark"));
/// });
/// ```
pub fn block_in_place<F: FnOnce() -> R, R>(f: F) -> R {
    without_p(f)
}
