//! How an M finds its next task: Go's `findRunnable`, cut into the steps it is made of.

use super::{M, Orders, P, Sched};
use crate::runtime::idle::{Back, PId, Role};
use crate::runtime::netpoll::BATCH;
use crate::runtime::queue::{Local, Remote};
use crate::runtime::rare::rare;
use crate::runtime::task::{G, GList};
use crate::runtime::timer::NEVER;
use crate::runtime::wake_list::WakeList;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// Every so many tasks an M looks at the clock, and at what is not in its own queue. Go's number.
const CHECK_TICKS: u32 = 61;
/// It looks more often if that many tasks take longer than this.
pub(super) const CHECK_NS: u64 = 250_000;
/// It asks the network if nothing else has made it do so for this long. Each time costs a system call.
const POLL_NS: u64 = 500_000;
/// But not before all has run that was queued when it asked last, unless that takes so long. A task that it found would only
/// wait behind that; and by then what the kernel touched to tell of it is no longer in the cache, to which 4,000 connections
/// owe a tenth of their CPU time.
const PATIENCE_NS: u64 = 5_000_000;
/// Tasks that may overtake the local queue in a row (trap S2).
const STREAK: u32 = 3;
/// A harvest wakes another M if it holds more work than this one does in so long a time.
const BACKLOG_NS: u64 = 1_000_000;
/// An M that was woken does not steal from so many tasks at once, if all of them take less than this: it naps, and looks again,
/// so often at most. No safety net: nobody is to wake it, and in the end it steals whatever there is.
const MANY: u64 = 100;
const BRIEF_NS: u64 = 100_000;
const NAP: Duration = Duration::from_micros(30);
const NAPS: u32 = 3;
/// After a timer has ended its sleep the poller sleeps so long at least: where timers come that close, it sees to several at once.
/// A sleep that comes alone is exact. Linux lets every sleep be late by as much, unless it is told otherwise (PR_SET_TIMERSLACK).
const RING_NS: u64 = 50_000;
/// How long a thread beyond the Ps is kept without work.
const KEEP: Duration = Duration::from_secs(10);

/// When an M looks up from its queue, and what it saw last time.
#[derive(Default)]
pub(super) struct Check {
    /// The tick at which it is due.
    at: Cell<u32>,
    /// It is due now, and the network is to be asked.
    urgent: Cell<bool>,
    /// The tick and the time from which the present stretch of work is measured.
    since: Cell<Option<(u32, u64)>>,
    /// When this M last asked the network, or had nothing else to do.
    polled: Cell<u64>,
    /// The tick at which all has run that was queued then; how much that was, and how much of it the network had brought.
    run_at: Cell<u32>,
    queued: Cell<usize>,
    brought: Cell<usize>,
    /// The tick of the last task that overtook all that is queued here.
    overtaken: Cell<u32>,
    /// When a timer ended this M's last sleep in the network, if one did.
    rang: Cell<u64>,
    /// Nanoseconds that a task takes, by the last stretches, and how many make an interval.
    cost: Cell<u64>,
    interval: Cell<u32>,
}

impl Check {
    pub(super) fn new() -> Check {
        Check { interval: Cell::new(CHECK_TICKS), ..Check::default() }
    }

    /// A task has used up its budget: others may have waited for a while.
    pub(super) fn soon(&self) {
        self.urgent.set(true);
    }

    fn is_due(&self, tick: u32) -> bool {
        self.urgent.get() || has_come(self.at.get(), tick)
    }

    /// The network was asked. So many tasks are queued now, of which so many came from there, now or not long before.
    fn asked(&self, tick: u32, brought: usize, queued: usize) {
        self.run_at.set(tick.wrapping_add(queued as u32));
        self.queued.set(queued);
        self.brought.set(brought);
    }

    /// How much of what the network has brought is queued still, if it lies evenly among the rest.
    fn left_of_the_network(&self, tick: u32) -> usize {
        let left = (self.run_at.get().wrapping_sub(tick) as i32).max(0) as u64;
        (self.brought.get() as u64 * left / self.queued.get().max(1) as u64) as usize
    }

    /// Begins a stretch of work. True: it is time to ask the network.
    fn begin(&self, tick: u32, now: u64) -> bool {
        let at_work = self.since.get().is_some();
        self.end(tick, || now);
        self.since.set(Some((tick, now)));
        let patience = if has_come(self.run_at.get(), tick) { POLL_NS } else { PATIENCE_NS };
        let due = self.urgent.take() || at_work && now.saturating_sub(self.polled.get()) >= patience;
        if due || !at_work {
            self.polled.set(now);
        }
        due
    }

    /// The work is done, or too little to be worth a look at the clock. The next look is a full interval away.
    #[inline]
    fn end(&self, tick: u32, now: impl FnOnce() -> u64) {
        if let Some((first, since)) = self.since.take().filter(|(first, _)| *first != tick) {
            self.learn(u64::from(tick.wrapping_sub(first)), now().saturating_sub(since));
        }
        self.at.set(tick.wrapping_add(self.interval.get()));
    }

    /// So many tasks took so long.
    #[inline(never)]
    fn learn(&self, tasks: u64, time: u64) {
        let (sample, cost) = (time / tasks, self.cost.get());
        // Slowly up, quickly down: when another process takes the CPU for a while, the tasks did not cost that.
        let cost = if sample > cost { cost + (sample - cost) / 8 } else { (cost + sample) / 2 };
        self.cost.set(cost);
        self.interval.set((CHECK_NS / cost.max(1)).clamp(1, CHECK_TICKS.into()) as u32);
    }
}

/// Is it this tick, or a later one? Ticks wrap.
pub(super) fn has_come(at: u32, tick: u32) -> bool {
    tick.wrapping_sub(at) as i32 >= 0
}

impl M {
    /// The next task to run. `None`: the runtime ends.
    pub(super) fn find_runnable(&self) -> Option<G> {
        loop {
            if self.sched.stopping() {
                return None;
            }
            if self.p.get().is_some() {
                let g = self.check_around().or_else(|| self.next_local()).or_else(|| self.next_beyond());
                if g.is_some() {
                    return g;
                }
            }
            // A foreign waker that blocked may have cost it its P, or changed it.
            match self.p.get().map_or_else(|| self.rest_without_p(), |p| self.go_idle(p)) {
                Idled::Found(g) => return Some(g),
                Idled::Again => {}
                Idled::Exit => return None,
            }
        }
    }

    /// Now and then, and when it is asked to, an M looks up from its queue.
    #[inline]
    fn check_around(&self) -> Option<G> {
        let p = self.p()?;
        let due = self.check.is_due(self.tick.get()) || p.attention.load(Ordering::Relaxed);
        if due { self.look_around(p) } else { None }
    }

    /// The network, expired timers, the global queue. Nothing there may starve while the local queue has work
    /// (trap S6), nor the local queue while there is work there.
    #[inline(never)]
    fn look_around(&self, p: &P) -> Option<G> {
        let tick = self.tick.get();
        p.attention.store(false, Ordering::Relaxed);
        if self.sched.worker_runs_closure.load(Ordering::Relaxed)
            && self.sched.worker_runs_closure.swap(false, Ordering::Relaxed)
        {
            self.run_blocking();
            self.p.get()?;
        }
        self.call_left_behind()?;
        let now = self.sched.now();
        let ask_network = self.check.begin(tick, now);
        p.cost.store(self.check.cost.get(), Ordering::Relaxed);
        let list = &mut *self.list.borrow_mut();
        if ask_network {
            // A batch at least, and as much as is queued of other tasks: with what is left of the last time, where patience
            // ended early, or the queue would grow and grow.
            let mut brought = self.check.left_of_the_network(tick);
            let others = self.local.len().saturating_sub(brought);
            loop {
                // `None` is as good: another M polls.
                let full = self.sched.netpoll.netpoll(list) == Some(BATCH);
                let tasks = list.gs.len();
                brought += tasks;
                self.queue_all(list, Local::push);
                self.p.get()?;
                if !full || tasks == 0 || brought >= others {
                    break;
                }
            }
            self.check.asked(tick, brought, self.local.len());
        }
        self.sched.expire_timers(now, list);
        self.queue_all(list, Local::push_due);
        self.p.get()?;
        self.relieve_neighbour(now);
        let may_overtake = tick.wrapping_sub(self.check.overtaken.get()) > STREAK;
        let g = self.local.look_at(&self.sched.global, self.share(), may_overtake)?;
        self.check.overtaken.set(tick);
        Some(g)
    }

    /// Go's share of the global queue: as much as each P would get.
    fn share(&self) -> usize {
        (self.sched.global.len() / self.sched.ps().len() + 1).min(128)
    }

    /// What is due, the run-next slot, then the local queue.
    fn next_local(&self) -> Option<G> {
        let (local, remote) = (&self.local, &self.shared.remote);
        let streak = self.streak.get();
        if streak < STREAK {
            // The last one is the slot's: nothing else ever empties it.
            let slot_first = if streak + 1 == STREAK { remote.take_next() } else { None };
            if let Some(g) = slot_first.or_else(|| local.pop_due()).or_else(|| remote.take_next()) {
                self.streak.set(streak + 1);
                return Some(g);
            }
        }
        self.streak.set(0);
        local.pop().or_else(|| local.pop_due()).or_else(|| remote.take_next())
    }

    /// With nothing of its own: the global queue, due timers, other Ms' queues, slots whose turn got lost.
    #[inline(never)]
    fn next_beyond(&self) -> Option<G> {
        self.p.get()?;
        if !self.sched.global.is_empty() {
            // Who has lost it would have to bring them back.
            self.held_p()?;
            self.local.refill(&self.sched.global, self.share());
            if let Some(g) = self.local.pop_due().or_else(|| self.local.pop()) {
                return Some(g);
            }
        }
        let next = self.sched.next_timer();
        if next != NEVER && next <= self.sched.now() {
            rare();
            let list = &mut *self.list.borrow_mut();
            self.sched.expire_timers(self.sched.now(), list);
            if let Some(g) = self.take_first(list, Local::push_due) {
                return Some(g);
            }
            self.p.get()?;
        }
        if let Some(g) = self.steal_work() {
            return Some(g);
        }
        self.call_left_behind()?;
        // One waiter at a time, but to the last: those that were chosen so far may all have been forgotten (trap P23).
        let list = &mut *self.list.borrow_mut();
        while self.sched.netpoll.has_batons() {
            rare();
            self.sched.netpoll.pass_batons(list);
            if let Some(g) = self.take_first(list, Local::push) {
                return Some(g);
            }
            self.p.get()?;
        }
        None
    }

    /// Four rounds over the other Ms in random order; their run-next slots only in the last. Go's `stealWork`.
    #[inline(never)]
    fn steal_work(&self) -> Option<G> {
        let sched = &*self.sched;
        let ps = sched.ps();
        if sched.idle.idle_ps() as usize + 1 >= ps.len() {
            return None;
        }
        if self.spinning.get() {
            // It has run nothing since it was woken, or turned back on its way to rest.
            self.nap();
        } else if sched.idle.start_spinning() {
            self.spinning.set(true);
        } else {
            return None;
        }
        for round in 0..4 {
            let start = self.random() as usize;
            for i in 0..ps.len() {
                let p = &ps[(start + i) % ps.len()];
                let Some(remote) = p.remote().filter(|r| !std::ptr::eq(*r, &self.shared.remote)) else { continue };
                let g = self.local.steal(remote).or_else(|| if round == 3 { remote.take_next() } else { None });
                if g.is_some() {
                    return g;
                }
            }
        }
        None
    }

    /// Naps while there is nothing to steal but many small tasks, which their Ms will have run in a moment. To fetch one from another
    /// CPU's cache takes longer than to run it: two Ms at the same thousand are slower than one, and take twice the CPU time.
    fn nap(&self) {
        let sched = &*self.sched;
        let queued = |p: &P| p.remote().map_or(0, Remote::len) as u64;
        let is_small = |(n, cost): (u64, u64)| n >= MANY && (1..BRIEF_NS / n).contains(&cost);
        for _ in 0..NAPS {
            let queues = sched.ps().iter().map(|p| (queued(p), p.cost.load(Ordering::Relaxed)));
            let all_are_small = queues.filter(|&(n, _)| n > 0).map(is_small).min();
            if all_are_small != Some(true) || !sched.global.is_empty() {
                break;
            }
            thread::sleep(NAP);
        }
    }

    /// Gives the P back, looks at everything once more, then waits: in the network if no other M does, parked if one
    /// does.
    #[inline(never)]
    fn go_idle(&self, p: PId) -> Idled {
        let sched = &*self.sched;
        if !self.shared.remote.is_empty() {
            // A foreign waker that ran meanwhile has spawned or woken something.
            return Idled::Again;
        }
        self.check.end(self.tick.get(), || sched.now());
        if !self.let_go() {
            self.lost_p();
            return Idled::Again;
        }
        let role = sched.idle.release(self.shared.id, p, self.spinning.take());
        if role == Role::Exit {
            return Idled::Exit;
        }
        let asleep = || if role == Role::Poll { sched.asleep() } else { NEVER };
        let mut when = asleep();
        if sched.anything_waiting() || sched.closures_wait() || sched.stopping() {
            rare();
            if role == Role::Poll {
                // While it has the place still.
                sched.netpoll.until.awake();
            }
            if let Some(p) = sched.idle.retract(self.shared.id, role) {
                self.take_p(p, true);
                if sched.closures_wait() {
                    // No thread could be started for it.
                    self.run_blocking();
                }
                return Idled::Again;
            }
            when = asleep();
        }
        if role == Role::Poll { self.wait_in_network(when) } else { self.wait_parked() }
    }

    /// Waits for orders. If there are more threads than Ps, one that gets none for long ends.
    #[inline(never)]
    fn wait_parked(&self) -> Idled {
        let (sched, parker) = (&*self.sched, &self.shared.parker);
        while !parker.park_for((sched.alive.load(Ordering::Relaxed) > sched.procs as usize).then_some(KEEP)) {
            if sched.retire(self.shared.id) {
                self.retires.set(true);
                return Idled::Exit;
            }
        }
        let orders = *self.shared.orders.lock();
        match orders {
            Orders::Run(p) => self.take_p(p, true),
            Orders::Block => {
                if sched.anything_waiting() {
                    // Somebody may have left it to this M, which was on its way to rest.
                    sched.wakep();
                }
                self.run_blocking();
            }
            Orders::Exit => return Idled::Exit,
        }
        Idled::Again
    }

    fn wait_in_network(&self, when: u64) -> Idled {
        let sched = &*self.sched;
        let wait = (when != NEVER).then(|| when.max(self.check.rang.get() + RING_NS).saturating_sub(sched.now()));
        let list = &mut *self.list.borrow_mut();
        sched.netpoll.netpoll_block(wait.map(Duration::from_nanos), list);
        list.gs.fetch_first();
        sched.netpoll.until.awake();
        if wait.is_some() {
            let now = sched.now();
            self.check.rang.set(if when <= now { now } else { 0 });
        }
        match sched.idle.poller_back() {
            Back::Spinning(p) => self.take_p(p, true),
            Back::Running(p) => self.take_p(p, false),
            back @ (Back::NoP | Back::Job) => {
                rare();
                // A timer that is due would end the next wait at once.
                sched.expire_timers(sched.now(), list);
                // Every P is busy; their Ms look at the global queue before they rest.
                sched.inject(list);
                sched.wakep();
                sched.netpoll.foreign.call(list, || sched.wakep());
                if back == Back::Job {
                    self.run_blocking();
                }
                return Idled::Again;
            }
        }
        let (tick, brought) = (self.tick.get(), list.gs.len());
        if brought > 1 {
            self.check.begin(tick, sched.now());
        }
        self.check.asked(tick, brought, brought);
        self.take_first(list, Local::push).map_or(Idled::Again, Idled::Found)
    }

    /// Rests until somebody has a use for it; an idle P is use enough.
    #[inline(never)]
    fn rest_without_p(&self) -> Idled {
        let (sched, m) = (&*self.sched, self.shared.id);
        if sched.closures_wait() && sched.idle.idle_ps() == 0 {
            // No thread could be started for it.
            self.run_blocking();
            return Idled::Again;
        }
        let Err(role) = sched.idle.rest(m).map(|p| self.take_p(p, false)) else { return Idled::Again };
        if sched.closures_wait() && sched.idle.leave(m, role) {
            // Queued meanwhile, and no thread could be started for it.
            return Idled::Again;
        }
        match role {
            Role::Poll => self.wait_in_network(sched.asleep()),
            Role::Park => self.wait_parked(),
            Role::Exit => Idled::Exit,
        }
    }

    /// The first task of a harvest is this M's next; the rest are queued in order.
    fn take_first(&self, list: &mut WakeList, push: impl Fn(&Local, G) + Copy) -> Option<G> {
        // Foreign wakers may block: no task waits in this thread's hands meanwhile.
        let (keeps_one, mut first) = (!list.has_foreign(), None);
        while keeps_one && first.is_none() {
            let Some(g) = list.gs.next() else { break };
            self.sched.route(g, |g| first = Some(g));
        }
        self.queue_all(list, push);
        first
    }

    /// Queues a harvest behind what waits already, or before it (`push_due`: timers); then foreign wakers run.
    fn queue_all(&self, list: &mut WakeList, push: impl Fn(&Local, G)) {
        for g in &mut list.gs {
            self.sched.route(g, |g| push(&self.local, g));
        }
        self.share_backlog();
        if list.has_foreign() && self.has_p() {
            // While they block, this M looks for nothing.
            self.reset_spinning();
        }
        // Sysmon sees to who blocks with a P.
        self.sched.netpoll.foreign.call(list, || {
            if !self.has_p() {
                self.sched.wakep()
            }
        });
    }

    /// Calls the foreign wakers that another thread has left behind, which is held up by one of them. `None`: the P is gone.
    fn call_left_behind(&self) -> Option<()> {
        let foreign = &self.sched.netpoll.foreign;
        // Not before a look at the P: it has requeued a task, perhaps.
        if !foreign.is_empty() && self.has_p() {
            // While they block, this M looks for nothing.
            self.reset_spinning();
            foreign.call_left_behind();
        }
        self.p.get().map(drop)
    }

    /// Wakes another M only if more is left than this one will soon run itself. Go wakes one for every task, which is
    /// part of why it burns four times a C loop's CPU at light load.
    fn share_backlog(&self) {
        let backlog = self.local.len() as u64;
        if backlog > 0 && backlog * self.check.cost.get() > BACKLOG_NS {
            self.sched.wakep_if_handy();
        }
    }

    /// Where to begin to steal. Go's `cheaprand`; here Knuth's linear congruential generator (MMIX), whose upper half is good.
    pub(super) fn random(&self) -> u64 {
        let x = self.rng.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.rng.set(x);
        x >> 32
    }
}

impl Sched {
    /// Is there anything that sysmon alone sees to, beside Ms that are stuck?
    pub(super) fn needs_sysmon(&self) -> bool {
        // Not `worker_runs_closure`: an M that looks around sees it, and one that goes idle sees the closure.
        self.stopping()
            || self.netpoll.has_batons()
            || !self.netpoll.foreign.is_empty()
            || self.no_thread_for_p.load(Ordering::Relaxed)
            || self.no_thread_for_closure.load(Ordering::Relaxed)
    }

    /// Queues a harvest for those who have a P. They look at the global queue once in a while only: what is due there does
    /// not wait behind the rest of it. Go's `injectglist`.
    pub(crate) fn inject(&self, list: &mut WakeList) {
        let mut due = GList::default();
        list.gs.by_ref().for_each(|g| self.route(g, |g| due.push_back(g)));
        if !due.is_empty() {
            self.global.push_due(&mut due);
            self.queued();
            self.wakep();
        }
    }

    /// Gives a harvested task to `here`, unless it is another runtime's.
    #[inline(always)]
    pub(super) fn route(&self, g: G, here: impl FnOnce(G)) {
        if g.belongs_to(std::ptr::from_ref(self).cast()) { here(g) } else { g.submit() }
    }
}

/// How an M's rest ended.
enum Idled {
    Found(G),
    Again,
    Exit,
}
