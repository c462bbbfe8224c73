//! One direction's deadline: Go's `rd`, `rt` and `rseq`, or `wd`, `wt` and `wseq` (runtime/netpoll.go).
//!
//! Go resets a timer each time. Here a deadline that moves further into the future, as a server's does before each
//! request, is one exchange of one word: the timer that is pending comes too early, finds the later deadline, and is set
//! to that. So there is at most one timer for each direction, and it never comes later than the deadline.
//!
//! ```text
//!     NONE ──── set: insert ────▶ ARMED, when ──── fire: when has passed ────▶ when: the slots are shut, Expired
//!      ▲                           │  ▲   │                                      │
//!      └── fire: NONE was set ─────┘  └───┘ postpone; fire: insert again         └── set: the slots are renewed
//! ```

use super::slot::{Shut, Slot};
use crate::runtime::sync::{AtomicU64, Mutex, Ordering};
use crate::runtime::timer::{Key, NEVER, Timers, What};
use crate::runtime::wake_list::{Alarm, SlotId, WakeList};

/// A timer is pending that comes no later than the rest of the word says.
const ARMED: u64 = 1 << 63;
/// Without a deadline.
const NONE: u64 = ARMED - 1;

/// See the head of the file.
pub(crate) struct Deadline {
    /// ARMED and the deadline. All accesses are Relaxed: the word stands for itself, and what follows from it is ordered
    /// by the lock below and by the slots.
    word: AtomicU64,
    /// The pending timer, and when it comes. Held while the slots are shut or renewed.
    timer: Mutex<Option<(u64, Key)>>,
}

impl Deadline {
    pub(crate) fn new() -> Self {
        Deadline { word: AtomicU64::new(NONE), timer: Mutex::new(None) }
    }

    /// The common case of a deadline in the future: it moves back. False: `set` must do it. `NEVER` is no deadline.
    #[inline]
    pub(crate) fn postpone(&self, when: u64) -> bool {
        let (word, when) = (self.word.load(Ordering::Relaxed), when.min(NONE));
        if word & ARMED == 0 {
            return word == NONE && when == NONE;
        }
        when >= word & !ARMED
            && if cfg!(gopark_mutant = "deadline_postpone_store") {
                self.word.store(when | ARMED, Ordering::Relaxed);
                true
            } else {
                self.word.compare_exchange(word, when | ARMED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            }
    }

    /// Sets any deadline; `passed`, if it has. Once one has, `slots` refuse operations. True: a timer was inserted that comes
    /// before all others.
    pub(crate) fn set(&self, when: u64, passed: bool, slots: &[Slot], timers: &Timers, list: &mut WakeList) -> bool {
        let (when, id) = (when.min(NONE), slots[0].id());
        let mut timer = self.timer.lock();
        let was_armed = self.word.load(Ordering::Relaxed) & ARMED != 0;
        if passed {
            self.word.store(when, Ordering::Relaxed);
            cancel(&mut timer, timers);
            shut(slots, id, list);
            return false;
        }
        if !was_armed {
            slots.iter().for_each(Slot::renew);
        }
        let fits = timer.is_some_and(|(at, _)| at <= when);
        let mut earliest = false;
        if !fits && when != NONE {
            cancel(&mut timer, timers);
            earliest = insert(&mut timer, when, id, timers);
        }
        let armed = if timer.is_some() { ARMED } else { 0 };
        self.word.store(when | armed, Ordering::Relaxed);
        earliest
    }

    /// Its timer came: the deadline has passed, or has moved meanwhile. True: as `set`.
    pub(crate) fn fire(&self, now: u64, id: SlotId, slots: &[Slot], timers: &Timers, list: &mut WakeList) -> bool {
        let mut timer = self.timer.lock();
        // It may be late: the deadline was set anew, or the descriptor is in other hands.
        if slots[0].id() != id || timer.is_none_or(|(at, _)| at > now) {
            return false;
        }
        cancel(&mut timer, timers);
        loop {
            let word = self.word.load(Ordering::Relaxed);
            let when = word & !ARMED;
            if when > now && when != NONE && !cfg!(gopark_mutant = "deadline_fire_no_recheck") {
                return insert(&mut timer, when, id, timers);
            }
            // Whoever postpones it meanwhile makes this fail.
            if self.word.compare_exchange(word, when, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                if when != NONE {
                    shut(slots, id, list);
                }
                return false;
            }
        }
    }

    /// Ends the generation, which the slots have done already: a timer that comes still finds that.
    pub(crate) fn retire(&self, timers: &Timers) {
        // The last `set` came before this, since it borrowed the descriptor.
        if self.word.load(Ordering::Relaxed) != NONE {
            let mut timer = self.timer.lock();
            cancel(&mut timer, timers);
            self.word.store(NONE, Ordering::Relaxed);
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
