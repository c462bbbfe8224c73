//! How Ms and Ps come together: Go's `wakep`, `startm`, `stopm`, `handoffp`.
//!
//! | who has a P | |
//! |---|---|
//! | `M::p` | what the M believes |
//! | `M::held_p`, `has_p` | it looks; if sysmon was there before (`lost_p`), what it has queued goes to others |
//! | `M::take_p`, `let_go` | it gets one, and gives it up: Go's `acquirep`, `releasep` |
//! | `M::handoffp`, `Sched::retake` | the M gives it to others, or sysmon takes it; both end in `hand_on` |
//! | `M::step_aside`, `step_back` | around what may block: Go's `entersyscallblock`, `exitsyscall` |
//!
//! The rule that goes with it (hold.rs says why): between a push to the M's queues and any code of the user's lies a look.

use super::{Errand, M, MShared, Sched};
use crate::runtime::defer::defer;
use crate::runtime::idle::{MId, PId, Wakeup};
use crate::runtime::park::Parker;
use crate::runtime::queue::{self, Local};
use crate::runtime::rare::rare;
use crate::runtime::sync::Mutex;
use crate::runtime::sys;
use crate::runtime::task::{G, TaskInfo, quietly};
use crate::runtime::timer::Notes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

/// What an M is told when it is woken or started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orders {
    /// Run tasks with this P; look for them as one that spins.
    Run(PId),
    /// Run closures that block, without a P.
    Block,
    Exit,
}

/// So many threads that are no Ms there are at a time: sysmon, and those that do errands in its place.
const BESIDE: usize = 9;
/// So many tasks does the line on stderr name.
const NAMED: usize = 4;

/// A system's refusal, with what may be done about it.
fn no_thread(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{error} (see `ulimit -u`, the limit of pids, and `Builder::thread_stack_size`)"),
    )
}

impl Sched {
    /// There is work that no running M is sure to reach: sees to it that one looks. Go's `wakep`.
    pub(crate) fn wakep(&self) {
        self.wakep_or_tell(false);
    }

    /// The same for sysmon: where no thread can be had, and tasks wait, it says so if `tells`.
    pub(crate) fn wakep_or_tell(&self, tells: bool) {
        if let Some(wakeup) = self.idle.wake() {
            self.carry_out(wakeup, tells);
        }
    }

    /// The same for work that the calling M will reach by itself.
    pub(crate) fn wakep_if_handy(&self) {
        if let Some(wakeup) = self.idle.wake_if_handy() {
            self.carry_out(wakeup, false);
        }
    }

    fn carry_out(&self, wakeup: Wakeup, tells: bool) {
        match wakeup {
            Wakeup::Unpark(m, p) => self.order(m, Orders::Run(p)),
            Wakeup::Break => self.netpoll.netpoll_break(),
            Wakeup::Start(p) => {
                // Not once more for each wake.
                let refused = self.no_thread_for_p.load(Ordering::Relaxed);
                let started = if refused { Err(None) } else { self.start_m(Orders::Run(p)).map_err(Some) };
                let Err(error) = started else { return };
                self.no_thread_for_p.store(true, Ordering::Relaxed);
                self.rouse_sysmon();
                // A refusal (EAGAIN) leaves the P idle and the work where it is: the Ms there are come to it, a later
                // wake tries again, and so does sysmon if nobody runs (trap S5).
                if self.idle.give(p, true) && self.anything_waiting() {
                    self.wakep();
                }
                if let Some(error) = error.filter(|_| tells && self.work_waiting()) {
                    self.tell_refusal(&error);
                }
            }
        }
    }

    /// The first P is busy, or was to be.
    fn rouse_sysmon(&self) {
        if self.idle.rouse() {
            rare();
            self.watchdog.start(self.now());
        }
    }

    /// Do tasks wait, although a P is idle, since no thread can be had?
    fn tasks_want_a_thread(&self) -> bool {
        self.no_thread_for_p.load(Ordering::Relaxed) && self.idle.idle_ps() > 0 && self.work_waiting()
    }

    /// Says once that tasks wait because no thread can be had.
    #[cold]
    fn tell_refusal(&self, error: &io::Error) {
        if self.stopping() || std::mem::replace(&mut self.threads.lock().refusal_told, true) {
            return;
        }
        let mut polled: Vec<String> = self.owned.running().iter().map(TaskInfo::to_string).collect();
        let more = polled.len().saturating_sub(NAMED);
        polled.truncate(NAMED);
        polled.extend((more > 0).then(|| format!("and {more} more")));
        let polled = if polled.is_empty() { "nothing".to_owned() } else { polled.join("; ") };
        sys::complain(&format!(
            "gopark: no thread can be started: {error}. Tasks may have to wait until one that blocks is done. \
             In a poll or a closure now: {polled}\n"
        ));
    }

    /// Starts the first M, and sysmon.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        if let Some(Wakeup::Start(p)) = self.idle.wake() {
            self.start_m(Orders::Run(p))?;
        }
        self.start_beside(Sched::sysmon)
    }

    /// Starts a thread that is no M: sysmon, or one that does an errand in its place.
    fn start_beside<R>(self: &Arc<Self>, life: impl FnOnce(&Arc<Sched>) -> R + Send + 'static) -> io::Result<()> {
        let sched = self.clone();
        let main = move || {
            sched.at_home(|| life(&sched));
            sched.threads.lock().beside -= 1;
            sched.ended.notify_all();
        };
        let mut threads = self.threads.lock();
        threads.forget_ended();
        let name = format!("{}-sysmon", self.thread_name());
        threads.handles.push(thread::Builder::new().name(name).spawn(main).map_err(no_thread)?);
        threads.beside += 1;
        Ok(())
    }

    pub(crate) fn m(&self, m: MId) -> Arc<MShared> {
        self.ms.lock()[m as usize].clone()
    }

    /// Tells a parked M, taken out of the idle list, what to do.
    pub(crate) fn order(&self, m: MId, orders: Orders) {
        let m = self.m(m);
        *m.orders.lock() = orders;
        m.parker.unpark();
    }

    /// Queues a closure, and finds a thread for it unless as many as may run closures already.
    pub(super) fn submit_blocking(&self, g: G) {
        self.blocking.push(g);
        self.queued();
        if self.closures_wait() {
            self.wake_for_closures();
        }
    }

    fn take_place(&self) -> bool {
        let mut threads = self.threads.lock();
        let free = threads.closures < self.config.max_blocking();
        threads.closures += usize::from(free);
        free
    }

    /// Finds a thread for closures. If none can be had, the next M that runs out of work runs them. False: none.
    pub(crate) fn wake_for_closures(&self) -> bool {
        let found = self.find_thread() || self.send_poller();
        if !found {
            self.no_thread_for_closure.store(true, Ordering::Relaxed);
        }
        found
    }

    /// A parked M for something that may block, or else a new one.
    fn find_thread(&self) -> bool {
        self.idle.take_m().map(|m| self.order(m, Orders::Block)).is_some() || self.start_m(Orders::Block).is_ok()
    }

    /// The poller, where no other can be had.
    fn send_poller(&self) -> bool {
        self.idle.take_poller().then(|| self.netpoll.netpoll_break()).is_some()
    }

    /// For sysmon, which must not block: finds a thread for an errand; where it must be, that of the poller, or one that is no M
    /// and ends with it, of which there are not many. Gives it back if none can be had.
    pub(crate) fn send(self: &Arc<Self>, errand: Errand, must: bool) -> Result<(), Errand> {
        self.errands.lock().push_back(errand);
        if self.find_thread() || must && (self.send_poller() || self.send_beside()) {
            return Ok(());
        }
        // Before it are only those that have found a thread, which takes the oldest.
        self.errands.lock().pop_back().map_or(Ok(()), Err)
    }

    fn send_beside(self: &Arc<Self>) -> bool {
        self.threads.lock().beside < BESIDE && self.start_beside(|sched| sched.run_errand()).is_ok()
    }

    /// Runs the errand that has waited longest. False: there is none.
    fn run_errand(&self) -> bool {
        let errand = self.errands.lock().pop_front();
        errand.map(quietly).is_some()
    }

    fn thread_name(&self) -> &str {
        self.config.thread_name.as_deref().unwrap_or("gopark")
    }

    /// A P is free, whose tasks are in the global queue. The second half of Go's `handoffp`.
    fn hand_on(&self, p: PId) {
        self.idle.give(p, false);
        if self.anything_waiting() || !self.idle.has_poller() {
            self.wakep();
        }
    }

    /// Puts what an M has queued where others find it. False: there was nothing.
    pub(crate) fn take_over(&self, from: &MShared) -> bool {
        let any = self.global.take_over(&from.remote);
        self.queued();
        any
    }

    /// Takes a P from an M that is stuck, unless that has given it up meanwhile, and hands it on. Go's `retake`.
    pub(crate) fn retake(&self, p: PId, from: &MShared) {
        if self.ps[p as usize].hold.retake(from) {
            self.take_over(from);
            self.hand_on(p);
        }
    }

    /// Starts a thread. Go's `newm`.
    pub(crate) fn start_m(&self, orders: Orders) -> io::Result<()> {
        let sched = self.this.upgrade().expect("whoever calls this holds an Arc");
        let mut threads = self.threads.lock();
        // At the end one may come to drop what is left, or with an errand, but not behind the last one's back.
        let alive = self.alive.load(Ordering::Relaxed);
        if self.stopping() && (matches!(orders, Orders::Run(_)) || alive == 0) {
            return Err(io::Error::other("the runtime ends"));
        }
        let max = self.config.max_threads();
        if alive >= max.saturating_add(self.procs as usize) {
            let text = format!("{max} beyond the workers are running, the most that `Builder::max_threads` allows");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        threads.forget_ended();
        let mut builder = thread::Builder::new().name(self.thread_name().to_owned());
        if let Some(size) = self.config.stack_size {
            builder = builder.stack_size(size);
        }
        // Before it runs, and lets others rest: one that rests looks at this.
        self.alive.store(alive + 1, Ordering::Relaxed);
        let started = builder.spawn(move || sched.at_home(|| M::main(sched.clone(), orders)));
        if started.is_err() {
            self.alive.store(alive, Ordering::Relaxed);
        }
        threads.handles.push(started.map_err(no_thread)?);
        Ok(())
    }

    /// The parts of an M that outlive its thread.
    pub(super) fn new_m(&self) -> (Arc<MShared>, Local, Notes) {
        let (local, remote) = queue::local();
        let mut ms = self.ms.lock();
        let shared = Arc::new(MShared {
            id: ms.len() as MId,
            remote,
            parker: Parker::new(),
            thread: AtomicI32::new(0),
            running: Mutex::default(),
            orders: Mutex::new(Orders::Exit),
        });
        ms.push(shared.clone());
        (shared, local, Notes::default())
    }
}

impl M {
    /// Takes a P into use. Go's `acquirep`.
    pub(super) fn take_p(&self, p: PId, spinning: bool) {
        self.p.set(Some(p));
        self.spinning.set(spinning);
        self.sched.ps[p as usize].hold.give(&self.shared);
        self.sched.rouse_sysmon();
    }

    /// Go's `releasep`. False: sysmon has taken the P.
    pub(super) fn let_go(&self) -> bool {
        let had = self.p().is_some_and(|p| p.hold.let_go(&self.shared));
        self.p.set(None);
        had
    }

    /// Sysmon has taken the P: what this M has queued meanwhile is for others to run.
    #[cold]
    pub(super) fn lost_p(&self) {
        self.p.set(None);
        self.reset_spinning();
        self.sched.take_over(&self.shared);
        if !self.sched.global.is_empty() || self.sched.netpoll.has_batons() {
            self.sched.wakep();
        }
    }

    /// A spinning M has found work. Go's `resetspinning`; but where Go wakes another M always, here it does so only if
    /// there is work in sight (rule 2 of idle.rs).
    #[inline]
    pub(super) fn reset_spinning(&self) {
        if self.spinning.take() {
            self.stop_spinning();
        }
    }

    #[cold]
    fn stop_spinning(&self) {
        if self.sched.idle.stop_spinning() && self.sched.anything_waiting() {
            self.sched.wakep();
        }
    }

    /// Gives the P away together with all that is queued: the task that runs is about to block. Go's `handoffp`.
    pub(super) fn handoffp(&self) {
        let Some(p) = self.p.get() else { return };
        self.reset_spinning();
        // Order: what ran next comes first (trap S3).
        self.sched.take_over(&self.shared);
        if self.let_go() {
            self.sched.hand_on(p);
        } else {
            self.lost_p();
        }
    }

    /// Is about to run what may block, without a P. Go's `entersyscallblock`.
    fn step_aside(&self) {
        self.handoffp();
        if self.aside.get() == 0 {
            self.sched.threads.lock().aside += 1;
        }
        self.aside.set(self.aside.get() + 1);
    }

    /// Back. From the outermost of these it goes on with a P if one is idle, without otherwise. Go's `exitsyscall`.
    fn step_back(&self) {
        self.aside.set(self.aside.get() - 1);
        if self.aside.get() > 0 {
            return;
        }
        self.sched.threads.lock().aside -= 1;
        // Not at the end: nobody would look at this M's queue again.
        let goes_on = self.p.get().is_none() && !self.retires.get() && !self.sched.stopping();
        if let Some(p) = goes_on.then(|| self.sched.idle.acquire()).flatten() {
            self.take_p(p, false);
        }
    }

    /// Runs errands, and closures until none waits, or as many threads as may do so already, or tasks wait for a thread.
    pub(super) fn run_blocking(&self) {
        let sched = &*self.sched;
        self.step_aside();
        while sched.run_errand() {}
        let mut wanted = false;
        while !wanted && sched.closures_wait() && !sched.stopping() && sched.take_place() {
            while !wanted && !sched.stopping() {
                let Some(g) = sched.blocking.take_out() else { break };
                g.finish();
                wanted = sched.tasks_want_a_thread();
            }
            sched.threads.lock().closures -= 1;
        }
        if wanted {
            // It leaves closures behind, perhaps.
            sched.no_thread_for_closure.store(true, Ordering::Relaxed);
        }
        self.step_back();
    }
}

/// Runs `f`, which may block, with the thread's P in other hands. On a thread without one it just runs.
pub(crate) fn without_p<R>(f: impl FnOnce() -> R) -> R {
    super::current(|m| m.into_iter().for_each(M::step_aside));
    let _back = defer(|| super::current(|m| m.into_iter().for_each(M::step_back)));
    let _budget = crate::runtime::budget::without_budget();
    f()
}
