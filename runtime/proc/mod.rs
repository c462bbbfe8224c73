//! The scheduler: Go's runtime/proc.go. **G** is a task, **M** a thread that runs tasks, **P** the right to run them.
//!
//! This file holds what they share, the P, and the way a task comes in; `m.rs` is an M's life, `find.rs` how it finds the next
//! task, `neighbours.rs` what it does about the others meanwhile, `sleep.rs` what its tasks sleep for, `wake.rs` how Ms and Ps
//! come together, `end.rs` how threads end.
//!
//! Go keeps the run queue in the P. Here it belongs to the M: a crossbeam `Worker` has one owner, and a thread that is
//! stuck in a task may call back into the runtime at any moment. So a P is a token with a timer heap; an M that gives
//! its token away empties its queue first.

mod end;
mod find;
mod m;
mod neighbours;
mod sleep;
mod wake;

use super::defer::defer;
use super::hold::Hold;
use super::idle::{Idle, MId};
use super::netpoll::Netpoll;
use super::park::Parker;
use super::queue::{Global, Local, Remote};
use super::stuck::StuckTask;
use super::sync::Mutex;
use super::task::{self, G, JoinHandle, OwnedTasks, TaskInfo};
use super::timer::{Notes, Timers};
use super::wake_list::WakeList;
use super::watchdog::{Mark, Watchdog};
use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Weak};
use std::task::Waker;
use std::thread::{self, LocalKey};

use m::{M, current};

pub(crate) use sleep::Timer;
pub(crate) use wake::Orders;
pub(crate) use wake::without_p;

/// What a runtime was built with, beside the number of Ps.
#[derive(Default)]
pub(crate) struct Config {
    /// Threads beyond the Ps.
    pub(crate) max_threads: Option<usize>,
    /// Sysmon takes no P away.
    pub(crate) keep_ps: bool,
    pub(crate) thread_name: Option<String>,
    pub(crate) stack_size: Option<usize>,
    pub(crate) on_thread_start: Option<Box<dyn Fn() + Send + Sync>>,
    pub(crate) on_thread_stop: Option<Box<dyn Fn() + Send + Sync>>,
    pub(crate) on_task_panic: Option<PanicHook>,
    pub(crate) on_stuck_task: Option<StuckHook>,
}

impl Config {
    fn max_threads(&self) -> usize {
        self.max_threads.unwrap_or(512)
    }

    /// How many threads may run closures: three quarters, but one at least.
    fn max_blocking(&self) -> usize {
        (self.max_threads().saturating_mul(3) / 4).max(1)
    }
}

pub(crate) type PanicHook = Box<dyn Fn(&TaskInfo, &(dyn Any + Send)) + Send + Sync>;
pub(crate) type StuckHook = Box<dyn Fn(&StuckTask) + Send + Sync>;

/// One runtime: Go's `sched`, `allp` and `allm`.
pub(crate) struct Sched {
    this: Weak<Sched>,
    /// By which its timers know it.
    number: u32,
    pub(crate) idle: Idle,
    pub(crate) global: Global,
    ps: Box<[P]>,
    /// What others see of each M; an M's id is its place here. It serves one thread after another.
    ms: Mutex<Vec<Arc<MShared>>>,
    /// What threads have left behind that had nothing to do for long, for the next ones.
    spare: Mutex<Vec<(Arc<MShared>, Local, Notes)>>,
    /// Closures of `spawn_blocking` that no thread has begun.
    blocking: Global,
    /// No thread was to be had for one of them: sysmon tries again.
    pub(crate) no_thread_for_closure: AtomicBool,
    /// Nor then: an M that is at work is to run it.
    pub(crate) worker_runs_closure: AtomicBool,
    /// Each has a thread on its way.
    errands: Mutex<VecDeque<Errand>>,
    /// The tasks and closures that are not done.
    pub(crate) owned: OwnedTasks,
    pub(crate) netpoll: Arc<Netpoll>,
    pub(crate) watchdog: Watchdog,
    procs: u32,
    pub(crate) config: Config,
    stopping: AtomicBool,
    threads: Mutex<Threads>,
    /// Ms that have not ended. The last one cleans up. Changed under the lock of `threads` alone.
    alive: AtomicUsize,
    /// A thread could not be had for a P: sysmon has the next one tried.
    pub(crate) no_thread_for_p: AtomicBool,
    /// Signalled when the last thread is about to end.
    ended: Condvar,
}

#[derive(Default)]
struct Threads {
    handles: Vec<thread::JoinHandle<()>>,
    /// Ms that block in the middle of a poll, or run a closure that may.
    aside: usize,
    /// Ms that are about to end since there was nothing to do for long.
    retiring: usize,
    /// Threads that are no Ms: sysmon, and those that do an errand in its place.
    beside: usize,
    /// Those that run closures of `spawn_blocking`.
    closures: usize,
    /// Somebody was told that no thread can be had.
    refusal_told: bool,
    ended: bool,
}

impl Threads {
    /// Lets go of threads that have ended, and their stacks.
    fn forget_ended(&mut self) {
        self.handles.retain(|handle| !handle.is_finished());
    }
}

/// What sysmon leaves to another thread, since it is user code, and may block.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

/// A P: what goes with the right to run. Alone in its cache lines, since its M writes to it at each poll (two, because x86
/// fetches them in pairs).
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct P {
    hold: Hold<MShared>,
    /// Tasks run so far (Go's `schedtick`), by which sysmon sees whether one of them takes long.
    pub(crate) schedtick: AtomicU32,
    /// Sysmon asks the M to look at the clock, the network and the timers before its next task.
    pub(crate) attention: AtomicBool,
    /// Nanoseconds that a task of its M takes, for thieves; 0 until that is known. Relaxed: an estimate.
    cost: AtomicU64,
    pub(crate) mark: Mark,
    timers: Timers,
}

/// So many shards the list of tasks has for each P: who completes tasks stays out of the way of who spawns more.
const SHARDS: usize = 4;

/// What others see of an M.
pub(crate) struct MShared {
    pub(crate) id: MId,
    pub(crate) remote: Remote,
    parker: Parker,
    /// The kernel's number of its thread.
    thread: AtomicI32,
    /// The task that it polls, if somebody wants to know, and whether he was told of this poll.
    running: Mutex<Option<(TaskInfo, bool)>>,
    /// What the M is to do when it is unparked.
    orders: Mutex<Orders>,
}

thread_local! {
    /// The runtime whose thread this is: an M, or sysmon.
    static HOME: Cell<*const Arc<Sched>> = const { Cell::new(ptr::null()) };
}

/// Sets that, or the thread's M, until the guard is dropped.
fn set<T>(which: &'static LocalKey<Cell<*const T>>, to: *const T) -> impl Drop {
    which.set(to);
    defer(move || which.set(ptr::null()))
}

impl Sched {
    pub(crate) fn new(procs: u32, config: Config) -> io::Result<Arc<Sched>> {
        let (netpoll, watchdog) = (Arc::new(Netpoll::new()?), Watchdog::new()?);
        Ok(Arc::new_cyclic(|this| Sched {
            this: this.clone(),
            number: sleep::register(this),
            idle: Idle::new(procs),
            global: Global::default(),
            // One more than there are Ps: the last has timers only, for threads without a P.
            ps: (0..=procs).map(|_| P::default()).collect(),
            ms: Mutex::default(),
            spare: Mutex::default(),
            blocking: Global::default(),
            no_thread_for_closure: AtomicBool::new(false),
            worker_runs_closure: AtomicBool::new(false),
            errands: Mutex::default(),
            owned: OwnedTasks::new(SHARDS * procs as usize),
            netpoll,
            watchdog,
            procs,
            config,
            stopping: AtomicBool::new(false),
            threads: Mutex::default(),
            alive: AtomicUsize::new(0),
            no_thread_for_p: AtomicBool::new(false),
            ended: Condvar::new(),
        }))
    }

    /// Spawns a task, or a closure of `spawn_blocking`.
    pub(crate) fn spawn<F: Future<Output: Send> + Send + 'static>(
        self: &Arc<Self>,
        future: F,
        blocking: bool,
        at: &'static Location<'static>,
    ) -> JoinHandle<F::Output> {
        current(|m| {
            let (g, handle) = task::spawn(future, m.and_then(|m| m.spare(self)).unwrap_or_else(|| self.clone()), at);
            match g {
                Some(g) if blocking => self.submit_blocking(g),
                Some(g) => self.ready_on(m, g),
                None => {}
            }
            handle
        })
    }

    /// Queues a task that is to run: Go's `ready`.
    pub(crate) fn ready(&self, g: G) {
        current(|m| self.ready_on(m, g));
    }

    fn ready_on(&self, m: Option<&M>, g: G) {
        match m {
            Some(m) if m.owns(self) => m.ready(g),
            _ => {
                self.global.push(g);
                self.queued();
                self.wakep();
            }
        }
    }

    pub(crate) fn ps(&self) -> &[P] {
        &self.ps[..self.procs as usize]
    }

    /// When the first timer of all is due.
    #[inline(never)]
    pub(crate) fn next_timer(&self) -> u64 {
        let sleeps = self.ps.iter().map(|p| p.timers.next_when());
        sleeps.fold(self.netpoll.timers.next_when(), u64::min)
    }

    /// Until when the poller may sleep; it has said so to whoever adds a timer.
    fn asleep(&self) -> u64 {
        self.netpoll.until.asleep(|| self.next_timer())
    }

    /// Ends every timer that is due.
    pub(crate) fn expire_timers(&self, now: u64, list: &mut WakeList) {
        for p in &self.ps {
            p.timers.expire(now, list);
        }
        self.netpoll.ring_alarms(now, list);
    }

    /// Is there a closure that one more thread may run? Who has queued one asks; who gives a place back looks at the queue again.
    /// Whichever has the lock second sees what the other did.
    #[inline]
    pub(crate) fn closures_wait(&self) -> bool {
        !self.blocking.is_empty() && self.threads.lock().closures < self.config.max_blocking()
    }

    /// Is there anything that an M which goes idle would still find?
    fn anything_waiting(&self) -> bool {
        self.work_waiting() || self.netpoll.has_batons()
    }

    /// Is there a task that an idle M could take, or a foreign waker to be called?
    pub(crate) fn work_waiting(&self) -> bool {
        !self.global.is_empty() || !self.netpoll.foreign.is_empty() || self.ps().iter().any(P::has_work)
    }

    pub(crate) fn now(&self) -> u64 {
        self.netpoll.clock.now()
    }

    pub(crate) fn stopping(&self) -> bool {
        // Relaxed: `stop` reaches every M that sleeps by a lock, a token or a break; one that runs sees it in time.
        self.stopping.load(Ordering::Relaxed)
    }

    /// The runtime whose thread this is, if it is one's.
    #[inline]
    pub(crate) fn with_current<R>(f: impl FnOnce(Option<&Arc<Sched>>) -> R) -> R {
        // SAFETY: `at_home` sets the pointer for as long as what it points to is borrowed, on this thread alone.
        f(unsafe { HOME.get().as_ref() })
    }

    /// A thread's life as one of the runtime's.
    fn at_home<R>(self: &Arc<Self>, life: impl FnOnce() -> R) -> R {
        let _home = set(&HOME, self);
        life()
    }

    /// Is the calling thread one of this runtime's?
    pub(crate) fn is_inside(&self) -> bool {
        Self::with_current(|sched| sched.is_some_and(|sched| ptr::eq(&**sched, self)))
    }

    /// Is the waker that of the task which the calling thread polls, of this netpoller's runtime, and a small one? It may be kept
    /// from being freed for as long as its socket is open: that holds little memory, and no other runtime.
    #[cold]
    pub(crate) fn is_small_here(waker: &Waker, netpoll: &Arc<Netpoll>) -> bool {
        current(|m| {
            let m = m.filter(|m| m.polled.get() == waker.data() && Arc::ptr_eq(&m.sched.netpoll, netpoll));
            m.is_some() && task::from_waker(waker).is_some_and(|task| task.is_small())
        })
    }

    /// Will the calling thread look at this netpoller's batons before it goes idle?
    pub(crate) fn passes_batons(netpoll: &Arc<Netpoll>) -> bool {
        current(|m| m.is_some_and(|m| m.p.get().is_some() && Arc::ptr_eq(&m.sched.netpoll, netpoll) && m.has_p()))
    }
}

impl task::Schedule for Sched {
    fn schedule(&self, g: G) {
        self.ready(g);
    }

    fn owned(&self) -> &OwnedTasks {
        &self.owned
    }

    fn give_back(this: Arc<Sched>) {
        current(|m| match m {
            Some(m) if ptr::eq(&*m.sched, &*this) => m.keep(this),
            _ => drop(this),
        });
    }

    #[inline]
    fn polled(&self, waker: &Waker) {
        // Not for a task that is cancelled in the poll of another.
        current(|m| m.filter(|m| m.polled.get() == waker.data()).into_iter().for_each(|m| m.end_poll(waker)));
    }

    fn unjoined_panic(&self, info: &TaskInfo, payload: Box<dyn Any + Send>) {
        match &self.config.on_task_panic {
            Some(hook) => hook(info, &*payload),
            None => {
                let text = task::panic_text(&*payload).unwrap_or("(no text)");
                eprintln!("gopark: {info}, panicked: {text}");
            }
        }
    }
}

impl P {
    /// The queues of the M that holds it.
    fn remote(&self) -> Option<&Remote> {
        self.holder().map(|m| &m.remote)
    }

    pub(crate) fn holder(&self) -> Option<&MShared> {
        // SAFETY: an M's shared part is kept in `Sched::ms`, which only grows, and this P is part of the same Sched.
        unsafe { self.hold.holder().as_ref() }
    }

    /// Does anything wait in the queues of its M?
    pub(crate) fn has_work(&self) -> bool {
        self.remote().is_some_and(|r| !r.is_empty())
    }
}

impl MShared {
    pub(crate) fn thread(&self) -> i32 {
        self.thread.load(Ordering::Relaxed)
    }

    pub(crate) fn running(&self) -> Option<TaskInfo> {
        self.running.lock().map(|(task, _)| task)
    }

    /// The task that it polls, once in each poll, if this is still that one: the next is noted after its tick.
    pub(crate) fn to_be_told(&self, same_poll: impl FnOnce() -> bool) -> Option<TaskInfo> {
        let mut running = self.running.lock();
        let (task, told) = running.as_mut().filter(|_| same_poll())?;
        (!std::mem::replace(told, true)).then_some(*task)
    }

    fn set_running(&self, task: Option<TaskInfo>) {
        *self.running.lock() = task.map(|task| (task, false));
    }
}

impl fmt::Debug for Sched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sched").field("idle", &self.idle).field("global", &self.global.len()).finish_non_exhaustive()
    }
}
