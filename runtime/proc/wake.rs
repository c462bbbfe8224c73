//! How Ms and Ps come together: Go's `wakep`, `startm`, `stopm`, `handoffp`.

use super::{M, MAX_THREADS, MShared, Sched};
use crate::runtime::idle::{MId, PId, Wakeup};
use crate::runtime::park::Parker;
use crate::runtime::queue;
use crate::runtime::task::{G, Ran};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
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

impl Orders {
    pub(super) fn pack(self) -> u32 {
        match self {
            Orders::Run(p) => p,
            Orders::Block => u32::MAX - 1,
            Orders::Exit => u32::MAX,
        }
    }

    pub(super) fn unpack(word: u32) -> Self {
        match word {
            u32::MAX => Orders::Exit,
            p if p == u32::MAX - 1 => Orders::Block,
            p => Orders::Run(p),
        }
    }
}

impl Sched {
    /// There is work that no running M is sure to reach: sees to it that one looks. Go's `wakep`.
    pub(crate) fn wakep(&self) {
        if let Some(wakeup) = self.idle.wake() {
            self.carry_out(wakeup);
        }
    }

    /// The same for work that the calling M will reach by itself.
    pub(crate) fn wakep_if_handy(&self) {
        if let Some(wakeup) = self.idle.wake_if_handy() {
            self.carry_out(wakeup);
        }
    }

    fn carry_out(&self, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Unpark(m, p) => self.order(m, Orders::Run(p)),
            Wakeup::Break => self.netpoll.netpoll_break(),
            Wakeup::Start(p) => {
                // A refusal (EAGAIN) leaves the P idle and the work where it is: the Ms there are come to it, and each
                // later wake tries again (trap S5).
                if self.start_m(Orders::Run(p)).is_err() && self.idle.unstart(p) && self.work_waiting() {
                    self.wakep();
                }
            }
        }
    }

    /// Starts the first M, and sysmon.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        if let Some(Wakeup::Start(p)) = self.idle.wake() {
            self.start_m(Orders::Run(p))?;
        }
        let sched = self.clone();
        let name = format!("{}-sysmon", self.thread_name());
        let sysmon = thread::Builder::new().name(name).spawn(move || sched.sysmon())?;
        self.threads().handles.push(sysmon);
        Ok(())
    }

    /// Tells a parked M, taken out of the idle list, what to do.
    pub(crate) fn order(&self, m: MId, orders: Orders) {
        let m = self.ms.lock().expect("no panic under this lock")[m as usize].clone();
        m.orders.store(orders.pack(), Ordering::Relaxed);
        m.parker.unpark();
    }

    /// Queues a closure and finds a thread for it: a parked M, else a new one. If none can be had, the next M that
    /// runs out of work takes it.
    pub(super) fn submit_blocking(&self, g: G) {
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

    fn thread_name(&self) -> &str {
        self.config.thread_name.as_deref().unwrap_or("gopark")
    }

    /// Starts a thread. Go's `newm`.
    pub(crate) fn start_m(&self, orders: Orders) -> io::Result<()> {
        let sched = self.this.upgrade().expect("whoever calls this holds an Arc");
        let mut threads = self.threads();
        // At the end one may come to drop what is left, but not behind the last one's back.
        let too_late = self.stopping() && (orders != Orders::Exit || threads.alive == 0);
        if too_late || threads.alive >= self.procs as usize + self.config.max_threads.unwrap_or(MAX_THREADS) {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the runtime ends, or max_threads are running"));
        }
        let (local, remote) = queue::local();
        let shared = {
            let mut ms = self.ms.lock().expect("no panic under this lock");
            let id = ms.len() as MId;
            let orders = AtomicU32::new(Orders::Exit.pack());
            let shared = Arc::new(MShared { id, remote, parker: Parker::new(), orders });
            ms.push(shared.clone());
            shared
        };
        let mut builder = thread::Builder::new().name(self.thread_name().to_owned());
        if let Some(size) = self.config.stack_size {
            builder = builder.stack_size(size);
        }
        match builder.spawn(move || M::main(sched, shared, local, orders)) {
            Ok(handle) => threads.handles.push(handle),
            Err(error) => {
                // Still the last: whoever adds one holds the lock of `threads`.
                self.ms.lock().expect("no panic under this lock").pop();
                return Err(error);
            }
        }
        threads.alive += 1;
        Ok(())
    }
}

impl M {
    /// Takes a P into use. Go's `acquirep`.
    pub(super) fn take_p(&self, p: PId, spinning: bool) {
        self.p.set(Some(p));
        self.spinning.set(spinning);
        let holder = Arc::as_ptr(&self.shared).cast_mut();
        // Release pairs with the Acquire in `P::remote`.
        self.sched.ps[p as usize].holder.store(holder, Ordering::Release);
    }

    /// Go's `releasep`.
    pub(super) fn clear_holder(&self) {
        if let Some(p) = self.p() {
            p.holder.store(ptr::null_mut(), Ordering::Release);
        }
    }

    /// Does as it is told. False: the thread is to end.
    pub(super) fn follow(&self, orders: Orders) -> bool {
        match orders {
            Orders::Run(p) => self.take_p(p, true),
            Orders::Block => self.run_blocking(),
            Orders::Exit => return false,
        }
        true
    }

    /// A spinning M has found work. Go's `resetspinning`; but where Go wakes another M always, here it does so only if
    /// there is work in sight (rule 2 of idle.rs).
    pub(super) fn reset_spinning(&self) {
        if self.spinning.take() && self.sched.idle.stop_spinning() && self.sched.work_waiting() {
            self.sched.wakep();
        }
    }

    /// Gives the P away together with all that is queued: the task that runs is about to block. Go's `handoffp`.
    pub(super) fn drop_p(&self) {
        let Some(p) = self.p.get() else { return };
        self.reset_spinning();
        // Order: what ran next comes first (trap S3).
        self.sched.global.push_front(self.local.drain(&self.shared.remote));
        self.clear_holder();
        self.p.set(None);
        self.sched.idle.give(p);
        if !self.sched.global.is_empty() || !self.sched.idle.has_poller() {
            self.sched.wakep();
        }
    }

    /// Goes on with a P if one is idle, without otherwise. Go's `exitsyscall`.
    fn retake_p(&self) {
        // Not at the end: nobody would look at this M's queue again.
        if self.p.get().is_none() && !self.sched.stopping() {
            if let Some(p) = self.sched.idle.acquire() {
                self.take_p(p, false);
            }
        }
    }

    /// Is about to run what may block, without a P. Go's `entersyscallblock`.
    fn step_aside(&self) {
        self.drop_p();
        if self.aside.get() == 0 {
            self.sched.step_aside();
        }
        self.aside.set(self.aside.get() + 1);
    }

    /// Back from the outermost of these.
    fn step_back(&self) {
        self.aside.set(self.aside.get() - 1);
        if self.aside.get() == 0 {
            self.sched.threads().aside -= 1;
            self.retake_p();
        }
    }

    /// Runs closures until none waits.
    pub(super) fn run_blocking(&self) {
        self.step_aside();
        while !self.sched.stopping() {
            let Some(g) = self.sched.blocking.pop() else { break };
            let Ran::Done = g.run() else { unreachable!("a closure is ready when it returns") };
        }
        self.step_back();
    }
}

/// Runs `f`, which may block, with the thread's P in other hands. On a thread without one it just runs.
pub(crate) fn without_p<R>(f: impl FnOnce() -> R) -> R {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            super::current(|m| m.into_iter().for_each(M::step_back));
        }
    }
    super::current(|m| m.into_iter().for_each(M::step_aside));
    let _back = Back;
    let _budget = crate::runtime::budget::without_budget();
    f()
}
