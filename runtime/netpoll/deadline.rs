//! One direction's deadline: Go's `rd`, `rt` and `rseq`, or `wd`, `wt` and `wseq` (runtime/netpoll.go).
//!
//! Go resets a timer each time. Here a deadline that moves further into the future, as a server's does before each
//! request, leaves the timer that is pending alone: that comes too early, finds the later deadline, and is set to that. So
//! there is at most one timer for each direction, and it never comes later than the deadline.

use super::slot::{Shut, Slot};
use crate::runtime::sync::{AtomicU64, Mutex, Ordering};
use crate::runtime::timer::{Key, NEVER, Timers, What};
use crate::runtime::wake_list::{Alarm, SlotId, WakeList};

/// No deadline any more, but a timer that may still come.
const TAKEN_AWAY: u64 = NEVER - 1;

/// See the head of the file.
pub(crate) struct Deadline {
    /// `NEVER`: none, nor a timer. Changed under the lock below; Relaxed, since that orders it, and the slots what follows.
    when: AtomicU64,
    /// The pending timer, and when it comes. Held while the slots are shut or renewed.
    timer: Mutex<Option<(u64, Key)>>,
}

impl Deadline {
    pub(crate) fn new() -> Self {
        Deadline { when: AtomicU64::new(NEVER), timer: Mutex::new(None) }
    }

    /// Sets it; `passed`, if it has. Once it has, `slots` refuse operations. True: a timer was inserted that comes before all
    /// others.
    pub(crate) fn set(&self, when: u64, passed: bool, slots: &[Slot], timers: &Timers, list: &mut WakeList) -> bool {
        let mut timer = self.timer.lock();
        let when = if timer.is_some() { when.min(TAKEN_AWAY) } else { when };
        self.when.store(when, Ordering::Relaxed);
        if passed {
            cancel(&mut timer, timers);
            shut(slots, slots[0].id(), list);
            return false;
        }
        if timer.is_none() {
            // It had passed, perhaps.
            slots.iter().for_each(Slot::renew);
        }
        if when == NEVER || timer.is_some_and(|(at, _)| at <= when) {
            return false;
        }
        cancel(&mut timer, timers);
        insert(&mut timer, when, slots[0].id(), timers)
    }

    /// Its timer came: the deadline has passed, or has moved meanwhile. True: as `set`.
    pub(crate) fn fire(&self, now: u64, id: SlotId, slots: &[Slot], timers: &Timers, list: &mut WakeList) -> bool {
        let mut timer = self.timer.lock();
        // It may be late: the deadline was set anew, or the descriptor is in other hands.
        let is_old = slots[0].id() != id && !cfg!(gopark_mutant = "deadline_fire_old");
        if is_old || timer.is_none_or(|(at, _)| at > now) {
            return false;
        }
        cancel(&mut timer, timers);
        match self.when.load(Ordering::Relaxed) {
            TAKEN_AWAY => self.when.store(NEVER, Ordering::Relaxed),
            when if when > now && !cfg!(gopark_mutant = "deadline_fire_no_recheck") => {
                return insert(&mut timer, when, id, timers);
            }
            _ => shut(slots, id, list),
        }
        false
    }

    /// Ends the generation, which the slots have done already: a timer that comes still finds that.
    pub(crate) fn retire(&self, timers: &Timers) {
        // The last `set` came before this, since it borrowed the descriptor.
        if self.when.load(Ordering::Relaxed) != NEVER {
            let mut timer = self.timer.lock();
            cancel(&mut timer, timers);
            self.when.store(NEVER, Ordering::Relaxed);
        }
    }
}

fn shut(slots: &[Slot], id: SlotId, list: &mut WakeList) {
    slots.iter().for_each(|slot| slot.shut(id.fdseq, Shut::Expired, list));
}

fn cancel(timer: &mut Option<(u64, Key)>, timers: &Timers) {
    if let Some((_, key)) = timer.take() {
        // An alarm holds nothing that would have to be dropped.
        let _ = timers.cancel(key);
    }
}

fn insert(timer: &mut Option<(u64, Key)>, when: u64, id: SlotId, timers: &Timers) -> bool {
    debug_assert!(when != NEVER);
    // If the runtime is gone, every operation says so already.
    timers.insert(when, What::Alarm(Alarm::Deadline(id))).is_some_and(|(key, earliest)| {
        *timer = Some((when, key));
        earliest
    })
}

#[cfg(all(test, gopark_loom))]
mod models;
