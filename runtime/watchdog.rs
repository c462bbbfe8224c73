//! Sysmon's alarm clock. An M that finds all well vouches for it by putting the clock off, so that sysmon, whose waking up
//! costs ten times what it does then, sleeps as long as nothing is amiss. (Go's wakes up by itself, every 20 us to 10 ms.)

use super::idle::MId;
use super::sync::Mutex;
use super::sys;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often sysmon looks while anything runs that nobody vouches for: when a thread that went to sleep at once may lose its P.
/// Go starts at 20 us and slows down to 10 ms.
pub(crate) const TICK_NS: u64 = 4_000_000;
/// So long before the clock would go off the Ms begin to glance at each other, one of them each `GLANCE_NS`: a glance moves a
/// cache line of each P, and to put the clock off takes some microseconds.
const SOON_NS: u64 = 1_500_000;
pub(crate) const GLANCE_NS: u64 = 500_000;

#[derive(Debug)]
pub(crate) struct Watchdog {
    /// A timerfd: a clock for which one thread waits, and which others put off.
    timer: OwnedFd,
    /// When it goes off; `FIXED` where it is not to be put off. Relaxed, as `glanced`: they stand for themselves.
    due: AtomicU64,
    /// When somebody last glanced.
    glanced: AtomicU64,
    /// When it was put off last.
    put_off: AtomicU64,
}

const FIXED: u64 = 0;

impl Watchdog {
    pub(crate) fn new() -> io::Result<Watchdog> {
        Ok(Watchdog { timer: sys::timerfd()?, due: FIXED.into(), glanced: 0.into(), put_off: 0.into() })
    }

    /// For sysmon: it is to go off so long from now. If that is a whole tick, others may put it off.
    pub(crate) fn set(&self, now: u64, time: u64) {
        sys::timerfd_set(self.timer.as_fd(), Duration::from_nanos(time));
        self.due.store(if time == TICK_NS { now + time } else { FIXED }, Ordering::Relaxed);
    }

    /// Waits until it goes off. (A signal ends the wait, too.)
    pub(crate) fn wait(&self) {
        sys::timerfd_wait(self.timer.as_fd());
        self.due.store(FIXED, Ordering::Relaxed);
    }

    /// It goes off now.
    pub(crate) fn ring(&self) {
        sys::timerfd_set(self.timer.as_fd(), Duration::from_nanos(1));
    }

    /// Is it time for a glance? One M at a time is told so: when the clock is to go off, and whether somebody glanced a moment
    /// ago: then who is in another poll now has just begun it.
    pub(crate) fn glance(&self, now: u64) -> Option<(u64, bool)> {
        let (due, last) = (self.due.load(Ordering::Relaxed), self.glanced.load(Ordering::Relaxed));
        let (since, soon) = (now.saturating_sub(last), due != FIXED && due < now + SOON_NS);
        let mine = soon
            && since >= GLANCE_NS
            && self.glanced.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        mine.then_some((due, since <= SOON_NS))
    }

    /// The tick begins again, if sysmon has not begun another than the one seen at the glance; where it does so in this very moment,
    /// the clock may go off later than that says, but by a tick at most. `mark`: before anybody hears of it.
    pub(crate) fn put_off(&self, due: u64, now: u64, mark: impl FnOnce()) {
        if self.due.load(Ordering::Relaxed) == due {
            mark();
            self.start(now);
        }
    }

    /// The tick begins. By itself, where every P was idle until now: then nothing is marked.
    pub(crate) fn start(&self, now: u64) {
        self.due.store(now + TICK_NS, Ordering::Relaxed);
        // Release pairs with the Acquire in `last_put_off`: with it come the marks.
        self.put_off.store(now, Ordering::Release);
        sys::timerfd_set(self.timer.as_fd(), Duration::from_nanos(TICK_NS));
    }

    pub(crate) fn last_put_off(&self) -> u64 {
        self.put_off.load(Ordering::Acquire)
    }
}

/// A poll: of which M, and at which of its ticks.
pub(crate) type Poll = (MId, u32);

/// What Ms have seen of a P.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// In which poll it was at the last glance.
    glance: Mutex<Poll>,
    /// When the clock was put off, in which poll it was then, and the CPU time of its M's thread.
    put_off: Mutex<(u64, Poll, u64)>,
}

impl Mark {
    /// Has it moved on since the last glance?
    pub(crate) fn glance(&self, poll: Poll) -> bool {
        mem::replace(&mut *self.glance.lock(), poll) != poll
    }

    pub(crate) fn set(&self, at: u64, poll: Poll, cpu: u64) {
        *self.put_off.lock() = (at, poll, cpu);
    }

    /// The poll and the CPU time, if the P was held then.
    pub(crate) fn get(&self, at: u64) -> Option<(Poll, u64)> {
        let (then, poll, cpu) = *self.put_off.lock();
        (then == at).then_some((poll, cpu))
    }
}
