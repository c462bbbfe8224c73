//! A sleep as the scheduler sees it: Go's `timeSleep` (runtime/time.go).
//!
//! Many sleeps end in the poll in which they were armed: a timeout of what is ready, the losing branch of a `select!`. What
//! a task arms for itself would only wake that task, which is awake; so nobody could tell before the poll ends whether it
//! has fired. Its M makes a note of it, without a lock, and files what is left in a heap when the poll ends, before anybody
//! else may have the task.

use super::{Config, M, Sched, current};
use crate::runtime::netpoll::slot::Shut;
use crate::runtime::task;
use crate::runtime::timer::{Key, What};
use std::collections::BTreeMap;
use std::mem;
use std::ptr;
// Not the switch's: loom has no statics, and this is no part of any model.
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock, Weak};
use std::task::{Poll, Waker};
use std::time::Instant;

/// The runtimes that there are, by number.
static RUNTIMES: RwLock<BTreeMap<u32, Weak<Sched>>> = RwLock::new(BTreeMap::new());

/// Gives a new runtime its number.
pub(super) fn register(sched: &Weak<Sched>) -> u32 {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    // Relaxed: the number stands for itself.
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    assert!(number < u32::MAX, "gopark: four billion runtimes are enough");
    RUNTIMES.write().expect("no panic under this lock").insert(number, sched.clone());
    number
}

/// The runtime of this number, unless it is gone.
#[cold]
fn find(number: u32) -> Option<Arc<Sched>> {
    RUNTIMES.read().expect("no panic under this lock").get(&number).and_then(Weak::upgrade)
}

impl Drop for Sched {
    fn drop(&mut self) {
        RUNTIMES.write().expect("no panic under this lock").remove(&self.number);
        // What the user's closures own goes here, on whatever thread lets go last (trap S23).
        let Config { on_thread_start, on_thread_stop, on_task_panic, on_stuck_task, .. } = mem::take(&mut self.config);
        task::quietly(|| drop(on_thread_start));
        task::quietly(|| drop(on_thread_stop));
        task::quietly(|| drop(on_task_panic));
        task::quietly(|| drop(on_stuck_task));
    }
}

/// What a sleep holds: a number for its runtime, because a reference would cost two atomic operations. The runtime's own
/// threads know it by that, and others look it up.
#[derive(Debug)]
pub(crate) struct Timer {
    runtime: u32,
    /// From when it is armed until it ends.
    key: Option<Key>,
    /// In which P's heap that is; and where in the M's notes, if it is there.
    heap: u16,
    note: u16,
}

/// No place among the notes.
const NOWHERE: u16 = u16::MAX;

impl Timer {
    #[inline]
    pub(crate) fn new(sched: &Sched) -> Timer {
        Timer { runtime: sched.number, key: None, heap: 0, note: 0 }
    }

    /// Ready when the time has come, or with an error: never, as its runtime has ended. Until then it wakes the waker.
    #[inline]
    pub(crate) fn poll(&mut self, deadline: Instant, waker: &Waker) -> Poll<Result<(), Shut>> {
        current(|m| match m.filter(|m| m.sched.number == self.runtime) {
            Some(m) => self.poll_on(&m.sched, Some(m), deadline, waker),
            None => match find(self.runtime) {
                Some(sched) => self.poll_on(&sched, None, deadline, waker),
                None if deadline <= Instant::now() => Poll::Ready(Ok(())),
                None => Poll::Ready(Err(Shut::Gone)),
            },
        })
    }

    #[inline]
    fn poll_on(&mut self, sched: &Sched, m: Option<&M>, at: Instant, waker: &Waker) -> Poll<Result<(), Shut>> {
        if self.key.is_some() && self.goes_on(sched, m, at, waker) {
            return Poll::Pending;
        }
        if has_come(m, at) {
            return Poll::Ready(Ok(()));
        }
        if m.is_some_and(|m| m.note(self, at, waker)) { Poll::Pending } else { self.insert(sched, m, at, waker) }
    }

    /// Is it filed, and not due? Then it wakes this waker from now on.
    #[inline(never)]
    fn goes_on(&mut self, sched: &Sched, m: Option<&M>, at: Instant, waker: &Waker) -> bool {
        // A note cannot fire: it is crossed out, and made anew. What is due has fired, or will soon, and then wakes a task
        // once for nothing: to find out takes the lock.
        let filed = !self.note_again(m, None) && !has_come(m, at);
        // The key stays where it is meanwhile: a foreign waker may panic.
        let goes_on = filed && self.key.is_some_and(|key| sched.ps[self.heap as usize].timers.refresh(key, waker));
        self.key = self.key.filter(|_| goes_on);
        goes_on
    }

    #[inline(never)]
    fn insert(&mut self, sched: &Sched, m: Option<&M>, at: Instant, waker: &Waker) -> Poll<Result<(), Shut>> {
        let heap = m.map_or(sched.procs, |m| m.heap);
        let when = sched.netpoll.clock.when(at);
        let Some((key, earliest)) = sched.ps[heap as usize].timers.insert(when, What::Wake(waker.clone())) else {
            // The runtime has ended. A task of its own is about to be dropped; whoever else waits has to hear of it.
            let own = task::from_waker(waker).is_some_and(|task| task.belongs_to(ptr::from_ref(sched).cast()));
            return if own { Poll::Pending } else { Poll::Ready(Err(Shut::Gone)) };
        };
        (self.heap, self.key) = (heap as u16, Some(key));
        if earliest {
            sched.netpoll.timer_added(when);
        }
        Poll::Pending
    }

    /// It wakes whom it was to wake at that time; without one, nobody: it is dropped.
    #[inline]
    pub(crate) fn reset(&mut self, at: Option<Instant>) {
        if self.key.is_some() {
            current(|m| {
                let m = m.filter(|m| m.sched.number == self.runtime);
                if !self.note_again(m, at) {
                    self.key = self.file_again(m, at);
                    // Should another M have noted it, that is out of date: from now on all goes by the heap.
                    self.note = NOWHERE;
                }
            });
        }
    }

    #[inline(never)]
    fn file_again(&self, m: Option<&M>, at: Option<Instant>) -> Option<Key> {
        let found = if m.is_none() { find(self.runtime) } else { None };
        let (sched, key) = m.map(|m| &m.sched).or(found.as_ref()).zip(self.key)?;
        let timers = &sched.ps[self.heap as usize].timers;
        let Some(at) = at else {
            drop(timers.cancel(key));
            return None;
        };
        let when = sched.netpoll.clock.when(at);
        let (key, earliest) = timers.reset(key, when)?;
        if earliest {
            sched.netpoll.timer_added(when);
        }
        Some(key)
    }

    /// False: it is not noted by this M.
    #[inline]
    fn note_again(&self, m: Option<&M>, at: Option<Instant>) -> bool {
        let noted = m.filter(|m| m.heap == self.heap.into()).zip(self.key);
        noted.is_some_and(|(m, key)| m.notes.change(self.note, key, at))
    }
}

#[inline]
fn has_come(m: Option<&M>, at: Instant) -> bool {
    m.map_or_else(|| at <= Instant::now(), |m| m.horizon.has_come(at))
}

impl Drop for Timer {
    #[inline]
    fn drop(&mut self) {
        self.reset(None);
    }
}

impl M {
    /// Notes a timer, if `waker` is that of the task which this M polls.
    #[inline]
    fn note(&self, timer: &mut Timer, at: Instant, waker: &Waker) -> bool {
        if waker.data() != self.polled.get() || task::from_waker(waker).is_none() {
            return false;
        }
        let Some((note, key)) = self.notes.add(at).or_else(|| self.make_room(at, waker)) else { return false };
        (timer.heap, timer.note, timer.key) = (self.heap as u16, note, Some(key));
        true
    }

    #[cold]
    fn make_room(&self, at: Instant, waker: &Waker) -> Option<(u16, Key)> {
        if self.notes.is_full() {
            self.file_notes(waker);
        } else {
            self.sched.ps[self.heap as usize].timers.make_room(&self.notes);
        }
        self.notes.add(at)
    }

    /// `waker`'s task has been polled.
    #[inline]
    pub(super) fn end_poll(&self, waker: &Waker) {
        self.polled.set(ptr::null());
        self.file_notes(waker);
    }

    /// What is noted still becomes known to all.
    #[inline]
    fn file_notes(&self, waker: &Waker) {
        if !self.notes.is_empty() {
            let netpoll = &self.sched.netpoll;
            let first = self.sched.ps[self.heap as usize].timers.file(&self.notes, netpoll.clock, waker);
            first.into_iter().for_each(|when| netpoll.timer_added(when));
        }
    }
}
