//! An M: a thread of the runtime, its life, and what it does with a task. How it finds the next is in `find.rs`.

use super::find::Check;
use super::neighbours::Neighbours;
use super::wake::Orders;
use super::{MShared, P, Sched, set};
use crate::runtime::idle::PId;
use crate::runtime::queue::Local;
use crate::runtime::task::{self, G};
use crate::runtime::timer::{Horizon, Notes};
use crate::runtime::wake_list::WakeList;
use crate::runtime::{budget, sys};
use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// So many references to its scheduler an M keeps for tasks to come.
const SPARES: usize = 256;

/// An M: a thread of the runtime. Lives on that thread's stack.
pub(crate) struct M {
    pub(super) sched: Arc<Sched>,
    pub(super) shared: Arc<MShared>,
    pub(super) local: Local,
    pub(super) p: Cell<Option<PId>>,
    pub(super) spinning: Cell<bool>,
    /// How deep it is in calls that may block.
    pub(super) aside: Cell<u32>,
    /// It ends because it had nothing to do for long.
    pub(super) retires: Cell<bool>,
    /// Tasks in a row that have overtaken the local queue.
    pub(super) streak: Cell<u32>,
    pub(super) tick: Cell<u32>,
    pub(super) check: Check,
    pub(super) neighbours: Neighbours,
    pub(super) rng: Cell<u64>,
    /// Empty between uses; kept for its storage.
    pub(super) list: RefCell<WakeList>,
    /// What tasks that were freed held of the scheduler, for new ones.
    pub(super) spares: RefCell<Vec<Arc<Sched>>>,
    /// The address of the task that it polls.
    pub(super) polled: Cell<*const ()>,
    /// What that task sleeps for. Empty but in a poll.
    pub(super) notes: Notes,
    pub(super) horizon: Horizon,
    /// Whose heap its timers go to: that of one P for life.
    pub(super) heap: PId,
}

thread_local! {
    static CURRENT: Cell<*const M> = const { Cell::new(ptr::null()) };
}

/// The M that this thread is, if it is one.
#[inline]
pub(super) fn current<R>(f: impl FnOnce(Option<&M>) -> R) -> R {
    // SAFETY: `M::main` sets the pointer for as long as its M lives, on this thread alone.
    f(unsafe { CURRENT.get().as_ref() })
}

impl M {
    /// A thread's life.
    pub(super) fn main(sched: Arc<Sched>, orders: Orders) {
        sys::set_timer_slack(1);
        let spare = sched.spare.lock().pop();
        let (shared, local, notes) = spare.unwrap_or_else(|| sched.new_m());
        shared.thread.store(sys::thread_id(), Ordering::Relaxed);
        let m = M {
            rng: Cell::new(shared.id.into()),
            heap: shared.id % sched.procs,
            sched,
            shared,
            local,
            p: Cell::new(None),
            spinning: Cell::new(false),
            aside: Cell::new(0),
            retires: Cell::new(false),
            streak: Cell::new(0),
            tick: Cell::new(0),
            check: Check::new(),
            neighbours: Neighbours::default(),
            list: RefCell::default(),
            spares: RefCell::default(),
            polled: Cell::new(ptr::null()),
            notes,
            horizon: Horizon::new(),
        };
        let current = set(&CURRENT, &m);
        if let Orders::Run(p) = orders {
            // Before the hook, which may block and give it away.
            m.take_p(p, true);
            if m.sched.config.on_thread_start.is_some() {
                // While the hook blocks, this M looks for nothing.
                m.reset_spinning();
            }
        }
        // A panic in it is its own affair (trap S23).
        m.sched.config.on_thread_start.iter().for_each(task::quietly);
        if orders == Orders::Block {
            m.run_blocking();
        }
        m.schedule();
        let retired = m.end();
        drop(current);
        if retired {
            let M { sched, shared, local, notes, .. } = m;
            sched.spare.lock().push((shared, local, notes));
        }
    }

    /// The loop of an M: Go's `schedule`.
    fn schedule(&self) {
        while let Some(g) = self.find_runnable() {
            self.execute(g);
        }
    }

    /// Runs a task for one poll: Go's `execute`.
    fn execute(&self, g: G) {
        self.reset_spinning();
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        let Some(p) = self.held_p() else {
            // It is the oldest of those that go back.
            self.sched.global.push_front(g);
            return self.sched.wakep();
        };
        p.schedtick.store(tick, Ordering::Relaxed);
        if self.neighbours.may_vouch(tick) {
            self.vouch(tick);
        }
        let told = self.sched.config.on_stuck_task.is_some();
        if told {
            self.shared.set_running(Some(g.info()));
        }
        self.polled.set(g.address());
        let mut next = None;
        if budget::with_budget(|| next = g.run()) {
            self.check.soon();
        }
        if told {
            self.shared.set_running(None);
        }
        if let Some(g) = next {
            // One that has waited for this one, too: it may wait for many in turn, and find them done when it comes to run.
            self.sched.route(g, |g| self.requeue(g));
        }
    }

    /// An `Arc` for a new task, from one that was freed.
    pub(super) fn spare(&self, sched: &Sched) -> Option<Arc<Sched>> {
        if ptr::eq(&*self.sched, sched) { self.spares.borrow_mut().pop() } else { None }
    }

    /// Keeps the `Arc` of a task that is freed, or lets go of many at once: all threads share the count.
    #[inline]
    pub(super) fn keep(&self, sched: Arc<Sched>) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() == SPARES {
            spares.clear();
        }
        spares.push(sched);
    }

    /// Queues a task that was woken by this thread.
    #[inline]
    pub(super) fn ready(&self, g: G) {
        if let Some(driven_out) = self.shared.remote.set_next(g) {
            self.local.push(driven_out);
            // This M comes to it in time; another may sooner.
            self.sched.wakep_if_handy();
        }
        self.has_p();
    }

    /// Queues a task that wants to run again, behind all the others. Go's `goschedImpl`.
    #[inline]
    pub(super) fn requeue(&self, g: G) {
        if self.p.get().is_some() {
            self.local.push(g);
        } else {
            self.sched.global.push(g);
            self.sched.wakep();
        }
    }

    /// Does this M run tasks of that runtime, by right of a P?
    pub(super) fn owns(&self, sched: &Sched) -> bool {
        self.p.get().is_some() && ptr::eq(&*self.sched, sched)
    }

    /// Does it have its P still? If sysmon has taken that, what this M has queued goes to others.
    #[inline]
    pub(super) fn held_p(&self) -> Option<&P> {
        let p = self.p().filter(|p| p.hold.is_with(&self.shared));
        if p.is_none() {
            self.lost_p();
        }
        p
    }

    pub(super) fn has_p(&self) -> bool {
        self.held_p().is_some()
    }

    pub(super) fn p(&self) -> Option<&P> {
        self.p.get().map(|p| &self.sched.ps[p as usize])
    }
}
