//! Idle Ps, parked Ms, the spinning count: the "delicate dance" of Go's runtime/proc.go, alone in a file so that loom
//! can model it.
//!
//! Two rules keep work from being forgotten:
//!
//! 1. Who submits work that no running M is sure to reach first makes it visible, then [`Idle::wake`] looks at the
//!    word. Who goes idle changes the word first ([`Idle::release`]), then looks for work. A `fence(SeqCst)` lies in
//!    the middle of both, so one of the two sees the other.
//! 2. While somebody spins, submitters wake nobody. So who stops spinning lowers the count first and then looks at
//!    every queue once more (trap S14): what was submitted against the old count is seen now.
//!
//! ```text
//!  an M with a P:      release ──▶ rests ──▶ orders, or poller_back      (work turned up: retract)
//!  an M without one:   rest ─────▶ rests ──▶ the same                    (a closure turned up: leave)
//!  a P without an M:   give, acquire
//! ```
//!
//! An M becomes visible as idle (in `ms`, or as `poller`) under the same lock as its P does. Go lets them be a moment
//! apart, and starts a thread for a P whose M is about to park.

use super::sync::{AtomicU32, Mutex, Ordering, fence_unless};

/// The word's fields. Idle Ps in the upper half: changed under the lock only.
const IDLE: u32 = 1 << 16;
/// Sysmon dozes: its clock stands until somebody who makes a P busy starts it.
const DOZES: u32 = 1 << 15;
const SPINNING: u32 = 1;
const SPINNING_MASK: u32 = DOZES - 1;

/// An M's place in the runtime's table.
pub(crate) type MId = u32;
/// A P's index.
pub(crate) type PId = u32;

#[derive(Debug)]
pub(crate) struct Idle {
    word: AtomicU32,
    lists: Mutex<Lists>,
    procs: u32,
}

#[derive(Debug)]
struct Lists {
    ps: Vec<PId>,
    ms: Vec<MId>,
    poller: Option<Poller>,
    stopping: bool,
}

/// The M that waits in the netpoller, or is about to.
#[derive(Debug)]
struct Poller {
    /// The P that a waker has given it, together with a place among the spinning.
    given: Option<PId>,
    /// It is to do a job without a P instead.
    job: bool,
}

/// What an M without work is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Role {
    /// Wait in the netpoller.
    Poll,
    /// Park; whoever unparks it has given it orders.
    Park,
    /// The runtime ends.
    Exit,
}

/// Whom a waker has chosen. The P is taken, and the M counts as spinning already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Wakeup {
    /// Unpark this M with this P.
    Unpark(MId, PId),
    /// Break the poller's wait; it finds the P when it comes back.
    Break,
    /// No M is free: start a thread with this P, or `give` it back.
    Start(PId),
}

/// How an M comes back from the netpoller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Back {
    /// Woken by `wake`: it spins.
    Spinning(PId),
    Running(PId),
    /// Every P is taken.
    NoP,
    /// Chosen by `take_poller`.
    Job,
}

impl Idle {
    pub(crate) fn new(procs: u32) -> Self {
        // LIFO: the lowest first.
        let lists = Lists { ps: (0..procs).rev().collect(), ms: Vec::new(), poller: None, stopping: false };
        Idle { word: AtomicU32::new(procs * IDLE), lists: Mutex::new(lists), procs }
    }

    /// An M gives its P up for want of work. The caller looks for work once more after this, and `retract`s if it
    /// finds some.
    pub(crate) fn release(&self, m: MId, p: PId, spinning: bool) -> Role {
        let role = {
            let mut lists = self.lists.lock();
            lists.ps.push(p);
            // Relaxed: ordered by the fence below.
            self.word.fetch_add(IDLE - if spinning { SPINNING } else { 0 }, Ordering::Relaxed);
            lists.rest(m)
        };
        // Pairs with the fence in `wake`.
        fence_unless(cfg!(gopark_mutant = "idle_release_no_fence"));
        role
    }

    /// An M that has lost its P goes to rest; it takes an idle P instead, if there is one.
    pub(crate) fn rest(&self, m: MId) -> Result<PId, Role> {
        let mut lists = self.lists.lock();
        self.take(&mut lists, 0).ok_or_else(|| lists.rest(m))
    }

    /// Work turned up while an M was on its way to rest: it takes a P back and spins. `None`: there is no P, or the M
    /// has its orders already; it goes on to rest.
    pub(crate) fn retract(&self, m: MId, role: Role) -> Option<PId> {
        let mut lists = self.lists.lock();
        if role == Role::Poll {
            let poller = lists.poller.as_mut().filter(|poller| !poller.job)?;
            let given = poller.given.take();
            let p = given.or_else(|| self.take(&mut lists, SPINNING))?;
            lists.poller = None;
            Some(p)
        } else {
            let at = lists.ms.iter().position(|&other| other == m)?;
            let p = self.take(&mut lists, SPINNING)?;
            lists.ms.swap_remove(at);
            Some(p)
        }
    }

    /// An M that has no orders takes itself out again. False: it has some.
    pub(crate) fn leave(&self, m: MId, role: Role) -> bool {
        let mut lists = self.lists.lock();
        if role == Role::Poll {
            return lists.poller.take_if(|poller| poller.is_free()).is_some();
        }
        let at = lists.ms.iter().position(|&other| other == m);
        at.map(|at| lists.ms.remove(at)).is_some()
    }

    /// The poller comes back.
    pub(crate) fn poller_back(&self) -> Back {
        let mut lists = self.lists.lock();
        match lists.poller.take() {
            Some(Poller { job: true, .. }) => Back::Job,
            Some(Poller { given: Some(p), .. }) => Back::Spinning(p),
            _ => self.take(&mut lists, 0).map_or(Back::NoP, Back::Running),
        }
    }

    /// Takes an idle P for an M that has none.
    pub(crate) fn acquire(&self) -> Option<PId> {
        let mut lists = self.lists.lock();
        self.take(&mut lists, 0)
    }

    /// There is work that no running M is sure to reach: chooses an idle M for it, unless one spins already.
    /// Go's `wakep`.
    pub(crate) fn wake(&self) -> Option<Wakeup> {
        // Pairs with the fences in `release` and `stop_spinning`: what the caller submitted is visible before the
        // word is read.
        fence_unless(cfg!(gopark_mutant = "idle_wake_no_fence"));
        self.wake_if_handy()
    }

    /// The same without the fence: for work that the calling M will come to itself if nobody else does.
    pub(crate) fn wake_if_handy(&self) -> Option<Wakeup> {
        let one_more = |word| (word >= IDLE && word & SPINNING_MASK == 0).then_some(word + SPINNING);
        self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let mut lists = self.lists.lock();
        let Some(p) = self.take(&mut lists, 0) else {
            // Every P is busy after all: each of their Ms looks at all the queues before it goes idle.
            self.word.fetch_sub(SPINNING, Ordering::Relaxed);
            return None;
        };
        Some(if let Some(m) = lists.ms.pop() {
            Wakeup::Unpark(m, p)
        } else if let Some(poller) = lists.poller.as_mut().filter(|poller| poller.is_free()) {
            poller.given = Some(p);
            Wakeup::Break
        } else {
            Wakeup::Start(p)
        })
    }

    /// Gives a P back. If its M goes on without it (Go's `handoffp`), the caller looks at every queue, and `wake`s for what it
    /// finds: who submitted something a moment ago saw no idle P. If no M could be started for it, which counted as
    /// `spinning` (rule 2), only if an M rests, which may have looked before (true): one that rests later looks itself.
    pub(crate) fn give(&self, p: PId, spinning: bool) -> bool {
        let rests = {
            let mut lists = self.lists.lock();
            lists.ps.push(p);
            self.word.fetch_add(IDLE - if spinning { SPINNING } else { 0 }, Ordering::Relaxed);
            !lists.ms.is_empty() || lists.poller.as_ref().is_some_and(Poller::is_free)
        };
        // Pairs with the fence in `wake`.
        fence_unless(cfg!(gopark_mutant = "idle_give_no_fence"));
        rests
    }

    /// A parked M for a job that needs no P.
    pub(crate) fn take_m(&self) -> Option<MId> {
        self.lists.lock().ms.pop()
    }

    /// The poller for such a job, if it has no orders yet; its wait needs a break.
    pub(crate) fn take_poller(&self) -> bool {
        let mut lists = self.lists.lock();
        let free = lists.poller.as_mut().filter(|poller| poller.is_free());
        free.map(|poller| poller.job = true).is_some()
    }

    /// An M with a P but no work asks whether to go stealing. At most half of the busy Ps' number do.
    pub(crate) fn start_spinning(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        let spins = 2 * (word & SPINNING_MASK) < self.procs - word / IDLE;
        if spins {
            self.word.fetch_add(SPINNING, Ordering::Relaxed);
        }
        spins
    }

    /// A spinning M has found work. True: it was the last, so the caller looks at every queue, and `wake`s for what it
    /// finds (rule 2).
    pub(crate) fn stop_spinning(&self) -> bool {
        let last = self.word.fetch_sub(SPINNING, Ordering::Relaxed) & SPINNING_MASK == SPINNING;
        // Pairs with the fence in `wake`.
        fence_unless(cfg!(gopark_mutant = "idle_stop_no_fence"));
        last
    }

    pub(crate) fn idle_ps(&self) -> u32 {
        self.word.load(Ordering::Relaxed) / IDLE
    }

    pub(crate) fn has_poller(&self) -> bool {
        self.lists.lock().poller.is_some()
    }

    /// Every resting M is to exit: returns the parked ones; the poller needs a break.
    pub(crate) fn stop(&self) -> Vec<MId> {
        let mut lists = self.lists.lock();
        lists.stopping = true;
        std::mem::take(&mut lists.ms)
    }

    /// Sysmon asks whether it may doze until a P is busy: not if one is, or nobody polls.
    pub(crate) fn doze(&self) -> bool {
        let idle = self.procs * IDLE;
        // The poller takes its leave under this lock; either it takes a P with it, or it `wake`s somebody, which does.
        let lists = self.lists.lock();
        let polled = lists.poller.is_some() || cfg!(gopark_mutant = "idle_doze_no_poller");
        // The bit may be there still: a signal ended the last doze.
        let dozes = |word: u32| (word & !DOZES == idle).then_some(idle | DOZES);
        polled && self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, dozes).is_ok()
    }

    /// For whoever has been given a P. True: sysmon dozes, and the caller, one alone, starts its clock.
    pub(crate) fn rouse(&self) -> bool {
        // Relaxed: the P was taken out of the same word, by the caller or by who handed it over, after sysmon had found it there.
        self.word.load(Ordering::Relaxed) & DOZES != 0 && self.word.fetch_and(!DOZES, Ordering::Relaxed) & DOZES != 0
    }

    /// Takes an idle P, and `spinning` places among the spinning with it.
    fn take(&self, lists: &mut Lists, spinning: u32) -> Option<PId> {
        let p = lists.ps.pop()?;
        self.word.fetch_sub(IDLE - spinning, Ordering::Relaxed);
        Some(p)
    }
}

impl Poller {
    fn is_free(&self) -> bool {
        let job = self.job && !cfg!(gopark_mutant = "idle_wake_poller_at_job");
        self.given.is_none() && !job || cfg!(gopark_mutant = "idle_wake_given_twice")
    }
}

impl Lists {
    fn rest(&mut self, m: MId) -> Role {
        if self.stopping {
            Role::Exit
        } else if self.poller.is_none() {
            self.poller = Some(Poller { given: None, job: false });
            Role::Poll
        } else {
            self.ms.push(m);
            Role::Park
        }
    }
}

#[cfg(all(test, gopark_loom))]
mod models;
