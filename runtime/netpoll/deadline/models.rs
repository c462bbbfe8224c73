//! Loom models of the shipped deadline, with the shipped slot and timers.
//!
//! Not covered: the clock, and when the timers are looked at; what a slot does with waiters, which its own models have.
//!
//! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
//! |---|---|
//! | `deadline_fire_no_recheck` | `a_deadline_that_moves_back_is_not_ended_by_its_timer` |
//! | `deadline_fire_old` | `a_late_timer_and_the_next_generation` |

use super::*;
use crate::runtime::netpoll::slot::Start;
use loom::thread;
use std::sync::Arc;

struct Read {
    slot: Slot,
    deadline: Deadline,
    timers: Timers,
}

const SEQ: u32 = 0;

impl Read {
    /// A direction with its deadline at 10.
    fn new() -> Arc<Read> {
        let slot = Slot::new(0);
        slot.open(Start::Nil);
        let read = Arc::new(Read { slot, deadline: Deadline::new(), timers: Timers::default() });
        read.set(10, false);
        read
    }

    fn slots(&self) -> &[Slot] {
        std::slice::from_ref(&self.slot)
    }

    /// `Netpoll::set_deadline`.
    fn set(&self, when: u64, passed: bool) {
        let mut list = WakeList::default();
        let _ = self.deadline.set(when, passed, self.slots(), &self.timers, &mut list);
        list.deliver();
    }

    /// `Netpoll::ring_alarms`.
    fn ring(&self, now: u64) {
        let mut list = WakeList::default();
        self.timers.expire(now, &mut list);
        while let Some(alarm) = list.pop_alarm() {
            let Alarm::Deadline(id) = alarm else { panic!("no other alarm was set") };
            let _ = self.deadline.fire(now, id, self.slots(), &self.timers, &mut list);
        }
        list.deliver();
    }

    fn expired(&self) -> bool {
        self.slot.ready() == Err(Shut::Expired)
    }
}

fn with(read: &Arc<Read>, f: impl FnOnce(&Read) + 'static) -> thread::JoinHandle<()> {
    let read = read.clone();
    thread::spawn(move || f(&read))
}

/// Whether the timer comes before, after or while the deadline moves: it ends at the new one, not before.
#[test]
fn a_deadline_that_moves_back_is_not_ended_by_its_timer() {
    loom::model(|| {
        let read = Read::new();
        let timer = with(&read, |read| read.ring(20));
        read.set(30, false);
        timer.join().unwrap();
        assert!(!read.expired());
        read.ring(29);
        assert!(!read.expired());
        read.ring(30);
        assert!(read.expired());
    });
}

/// Two set it and its timer comes: what remains is one of the two, and its timer is there.
#[test]
fn two_deadlines_and_a_timer() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let read = Read::new();
        let timer = with(&read, |read| read.ring(20));
        let other = with(&read, |read| read.set(30, false));
        read.set(40, false);
        timer.join().unwrap();
        other.join().unwrap();
        assert!(!read.expired());
        read.ring(30);
        read.ring(40);
        assert!(read.expired());
    });
}

/// The deadline is taken away while its timer comes: it has ended or it has not, and what holds at last is the last word.
#[test]
fn a_deadline_is_taken_away() {
    loom::model(|| {
        let read = Read::new();
        let timer = with(&read, |read| read.ring(10));
        read.set(NEVER, false);
        timer.join().unwrap();
        assert!(!read.expired());
        read.ring(NEVER - 1);
        assert!(!read.expired());
        assert_eq!(read.timers.next_when(), NEVER);
    });
}

/// A deadline in the past is in force when the call returns, whatever the timer does.
#[test]
fn a_deadline_in_the_past_and_its_timer() {
    loom::model(|| {
        let read = Read::new();
        let timer = with(&read, |read| read.ring(20));
        read.set(5, true);
        assert!(read.expired());
        timer.join().unwrap();
        assert!(read.expired());
        assert_eq!(read.timers.next_when(), NEVER);
    });
}

/// Trap P1: a timer that comes while the descriptor changes hands does not end the next socket's deadline, nor lose it; nor
/// where the first socket's deadline was taken away before.
#[test]
fn a_late_timer_and_the_next_generation() {
    for taken_away in [false, true] {
        loom::model(move || {
            let read = Read::new();
            let timer = with(&read, |read| read.ring(20));
            if taken_away {
                read.set(NEVER, false);
            }
            let mut list = WakeList::default();
            read.slot.retire(&mut list);
            read.deadline.retire(&read.timers);
            read.slot.open(Start::Nil);
            read.set(15, false);
            timer.join().unwrap();
            // The second deadline's timer may have come in the same round; then it has passed.
            if !read.expired() {
                assert_eq!(read.timers.next_when(), 15);
            }
            read.ring(20);
            assert!(read.expired());
        });
    }
}
