//! Sysmon's alarm clock. An M that finds all well vouches for it by putting the clock off, so that sysmon, whose waking up
//! costs ten times what it does then, sleeps as long as nothing is amiss. (Go's wakes up by itself, every 20 us to 10 ms.)

use super::idle::MId;
use super::sys;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often sysmon looks while anything runs that nobody vouches for. Go starts at 20 us and slows down to 10 ms.
pub(crate) const TICK_NS: u64 = 5_000_000;
/// So long before it would go off it is put off: each time costs some microseconds.
const SOON_NS: u64 = 1_500_000;

#[derive(Debug)]
pub(crate) struct Watchdog {
    /// A timerfd: a clock for which one thread waits, and which others put off.
    timer: OwnedFd,
    /// When it goes off; `FIXED` where it is not to be put off.
    due: AtomicU64,
    /// When it was put off last, and the time before.
    put_off: AtomicU64,
    before: AtomicU64,
}

const FIXED: u64 = 0;

impl Watchdog {
    pub(crate) fn new() -> io::Result<Watchdog> {
        let [due, put_off, before] = [const { AtomicU64::new(0) }; 3];
        Ok(Watchdog { timer: sys::timerfd()?, due, put_off, before })
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

    /// When it goes off, if that is soon.
    pub(crate) fn due_soon(&self, now: u64) -> Option<u64> {
        let due = self.due.load(Ordering::Relaxed);
        (due != FIXED && due < now + SOON_NS).then_some(due)
    }

    /// Of several Ms one may put it off.
    pub(crate) fn claim(&self, due: u64, now: u64) -> bool {
        self.due.compare_exchange(due, now + TICK_NS, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The tick begins again, with the marks set. Where sysmon sets the clock in this very moment, it may go off later than
    /// that says, but by a tick at most.
    pub(crate) fn put_off(&self, now: u64) {
        self.before.store(self.put_off.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release pairs with the Acquire in `last_put_off`: with it come the marks.
        self.put_off.store(now, Ordering::Release);
        sys::timerfd_set(self.timer.as_fd(), Duration::from_nanos(TICK_NS));
    }

    /// When it was put off last, and when before that.
    pub(crate) fn last_put_off(&self) -> (u64, u64) {
        let last = self.put_off.load(Ordering::Acquire);
        (last, self.before.load(Ordering::Relaxed))
    }
}

/// A poll: of which M, and at which of its ticks.
pub(crate) type Poll = (MId, u32);

/// What an M saw of a P when it put the clock off. Relaxed, all of it: where that M was held up until another one did so,
/// what is torn tells sysmon a little less.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// In which poll it was at the last glance, of which there are some between one vouching and the next: who has been in one
    /// poll since then is not vouched for, though it was another when that was done last.
    glance: AtomicU64,
    at: AtomicU64,
    /// In which poll it was; if it was that M's own, the one that was about to begin.
    poll: AtomicU64,
    /// The CPU time of its M's thread then, and how much of that was used since the P was last marked with that M.
    cpu: AtomicU64,
    used: AtomicU64,
}

impl Mark {
    pub(crate) fn set(&self, at: u64, poll: Poll, cpu: u64) {
        let same_m = self.poll.load(Ordering::Relaxed) >> 32 == u64::from(poll.0);
        let used = if same_m { cpu.saturating_sub(self.cpu.load(Ordering::Relaxed)) } else { 0 };
        let all = [(&self.at, at), (&self.poll, pack(poll)), (&self.cpu, cpu), (&self.used, used)];
        all.into_iter().for_each(|(field, to)| field.store(to, Ordering::Relaxed));
    }

    /// The poll has not begun: none of that was used by it.
    pub(crate) fn begins(&self) {
        self.used.store(0, Ordering::Relaxed);
    }

    /// Has it moved on since the last glance?
    pub(crate) fn glance(&self, poll: Poll) -> bool {
        let before = self.glance.load(Ordering::Relaxed);
        self.glance.store(pack(poll), Ordering::Relaxed);
        before != pack(poll)
    }

    /// The poll, the CPU time, and how much of it was used since, if the P was held at that time.
    pub(crate) fn get(&self, at: u64) -> Option<(Poll, u64, u64)> {
        let [then, poll, cpu, used] = [&self.at, &self.poll, &self.cpu, &self.used].map(|v| v.load(Ordering::Relaxed));
        (then == at).then_some((((poll >> 32) as MId, poll as u32), cpu, used))
    }
}

fn pack((m, tick): Poll) -> u64 {
    u64::from(m) << 32 | u64::from(tick)
}
