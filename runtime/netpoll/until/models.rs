//! Loom models of the shipped `PollUntil`, with the shipped `Idle` and `Timers` (trap TM1).
//!
//! Not covered: the break, which has models of its own; a poller that is back from its sleep.
//!
//! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
//! |---|---|
//! | `until_asleep_no_fence` | `a_timer_is_seen_by_the_poller_or_breaks_its_sleep` |
//! | `until_past_no_fence` | `a_timer_is_seen_by_the_poller_or_breaks_its_sleep` |
//! | `until_awake_late` | `a_poller_that_turns_back_does_not_hide_the_next` |

use super::*;
use crate::runtime::idle::{Idle, Role};
use crate::runtime::timer::{Timers, What};
use crate::runtime::wake_list::{Alarm, SlotId};
use loom::thread;
use std::sync::Arc;

struct World {
    idle: Idle,
    timers: Timers,
    until: PollUntil,
}

impl World {
    fn new() -> Arc<World> {
        Arc::new(World { idle: Idle::new(2), timers: Timers::default(), until: PollUntil::default() })
    }

    /// `Netpoll::timer_added` after an insertion: is there a break?
    fn add_timer(&self, when: u64) -> bool {
        let alarm = What::Alarm(Alarm::Retry(SlotId { slot: 0, fdseq: 0 }));
        self.timers.insert(when, alarm).is_some_and(|(_, earliest)| earliest) && self.until.is_past(when)
    }

    fn asleep(&self) -> u64 {
        self.until.asleep(|| self.timers.next_when())
    }
}

/// The heart of it, by itself.
#[test]
fn a_timer_is_seen_by_the_poller_or_breaks_its_sleep() {
    loom::model(|| {
        let world = World::new();
        let there = world.clone();
        let adder = thread::spawn(move || there.add_timer(10));
        let asleep_until = world.asleep();
        assert!(adder.join().unwrap() || asleep_until <= 10, "it sleeps past the timer");
    });
}

/// `M::go_idle` of two Ms: one has the place, finds work, and turns back; the other may take the place meanwhile.
#[test]
fn a_poller_that_turns_back_does_not_hide_the_next() {
    loom::model(|| {
        let world = World::new();
        let ps = [world.idle.acquire().unwrap(), world.idle.acquire().unwrap()];
        assert_eq!(world.idle.release(0, ps[0], false), Role::Poll);
        let _ = world.asleep();
        let (a, b) = (world.clone(), world.clone());
        let turns_back = thread::spawn(move || {
            let early = !cfg!(gopark_mutant = "until_awake_late");
            if early {
                a.until.awake();
            }
            assert!(a.idle.retract(0, Role::Poll).is_some());
            if !early {
                a.until.awake();
            }
        });
        let adder = thread::spawn(move || b.add_timer(10));
        let asleep_until = match world.idle.release(1, ps[1], false) {
            Role::Poll => world.asleep(),
            // It parks; the other M looks at the timers before it rests again.
            _ => 0,
        };
        turns_back.join().unwrap();
        assert!(adder.join().unwrap() || asleep_until <= 10, "it sleeps past the timer");
    });
}
