//! What is to be woken once no lock is held: the list that Go's `netpoll` returns (runtime/netpoll.go, `gList`).

use super::sync::{AtomicUsize, Mutex, Ordering};
use super::task::{self, G, GList, quietly};
use std::cell::Cell;
use std::collections::VecDeque;
use std::ptr;
use std::task::Waker;

/// Names one slot in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId {
    /// The descriptor's index, four times, plus which of its slots it is.
    pub(crate) slot: u32,
    pub(crate) fdseq: u32,
}

/// What the netpoller is to do about a slot because a time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// Its deadline may have passed.
    Deadline(SlotId),
    /// An operation is worth another try.
    Retry(SlotId),
}

/// Collected under a lock, worked off without one: own tasks first, then foreign wakers.
#[derive(Debug, Default)]
pub(crate) struct WakeList {
    /// gopark's own tasks, already notified: whoever holds the list queues them.
    pub(crate) gs: GList,
    /// Rarely needed, so that an empty list is cheap to make and to drop.
    rest: Option<Box<Rest>>,
}

thread_local! {
    /// The storage of the last list that this thread dropped.
    static SPARE: Cell<Option<Box<Rest>>> = const { Cell::new(None) };
}

#[derive(Debug, Default)]
struct Rest {
    /// Wakers of other executors, whose code may panic or call back; and what is only to be dropped.
    calls: Vec<Call>,
    /// Slots whose turn was handed to one waiter while others still wait: looked at once more before an M goes idle.
    batons: Vec<SlotId>,
    alarms: VecDeque<Alarm>,
}

impl WakeList {
    /// Notes that the task behind `waker` must run. Runs no code of the waker's: own tasks change their state word.
    pub(crate) fn wake(&mut self, waker: Waker) {
        let act = if self.wake_own(&waker) { drop } else { Waker::wake };
        self.call_later(waker, act);
    }

    /// The same for a waker that stays where it is. False: it belongs to another executor.
    pub(crate) fn wake_own(&mut self, waker: &Waker) -> bool {
        let Some(task) = task::from_waker(waker) else { return false };
        if let Some(g) = task.notify() {
            self.gs.push_back(g);
        }
        true
    }

    /// Notes that `waker` is to be dropped.
    #[inline]
    pub(crate) fn drop_later(&mut self, waker: Option<Waker>) {
        if let Some(waker) = waker {
            self.call_later(waker, drop);
        }
    }

    #[cold]
    fn call_later(&mut self, waker: Waker, act: fn(Waker)) {
        self.rest().calls.push((waker, act));
    }

    pub(crate) fn add_baton(&mut self, baton: SlotId) {
        self.rest().batons.push(baton);
    }

    /// For the taker to empty; `None` if there are none.
    pub(crate) fn batons(&mut self) -> Option<&mut Vec<SlotId>> {
        self.rest.as_mut().map(|rest| &mut rest.batons).filter(|batons| !batons.is_empty())
    }

    pub(crate) fn add_alarm(&mut self, alarm: Alarm) {
        self.rest().alarms.push_back(alarm);
    }

    pub(crate) fn pop_alarm(&mut self) -> Option<Alarm> {
        self.rest.as_mut()?.alarms.pop_front()
    }

    /// Schedules the own tasks wherever they belong. For callers that are not a P.
    pub(crate) fn submit(&mut self) {
        self.gs.by_ref().for_each(G::submit);
    }

    /// All of it, for tests of what lies below the netpoller.
    #[cfg(test)]
    pub(crate) fn deliver(&mut self) {
        self.submit();
        if let Some(rest) = &mut self.rest {
            rest.calls.drain(..).for_each(make);
        }
    }

    /// Is there anything in it whose code is not the runtime's? (Who drops a waker of an own task
    /// frees memory at most; or what the hooks of a runtime own that is gone, if it was the last that held it.)
    pub(crate) fn has_foreign(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.has_foreign())
    }

    /// Is there nothing to do with it, not even batons to keep?
    pub(crate) fn is_untouched(&self) -> bool {
        self.gs.is_empty() && self.rest.is_none()
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_with(Rest::take)
    }
}

/// Calls of foreign wakers: of several that are due at once, those that nobody has begun lie here, and while one of them blocks,
/// another thread can take the next.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    /// Each with the address of the `Rest` that it is of, which stays until all of them are begun.
    calls: Mutex<VecDeque<(usize, Call)>>,
    /// For a look without the lock. Changed under it.
    len: AtomicUsize,
}

/// A foreign waker, and what is to be done with it: `Waker::wake` or `drop`.
type Call = (Waker, fn(Waker));

fn is_foreign((waker, _): &Call) -> bool {
    task::from_waker(waker).is_none()
}

/// A panic stays here (trap S23).
fn make((waker, act): Call) {
    quietly(|| act(waker));
}

impl Foreign {
    /// Wakes and drops what in the list is not the scheduler's, and no one else's: the caller may hold locks of the user's. Under
    /// none of the runtime's (traps S16, S18); a panic stays here (S23). Before it begins with the first of several it has
    /// somebody `told` who can take the others.
    #[inline]
    pub(crate) fn call(&self, list: &mut WakeList, tell: impl FnOnce()) {
        if let Some(rest) = &mut list.rest {
            self.call_all(rest, tell);
        }
    }

    #[cold]
    fn call_all(&self, rest: &mut Rest, tell: impl FnOnce()) {
        // These run no code of another executor's: see `has_foreign`.
        rest.calls.retain(is_foreign);
        if rest.calls.len() < 2 {
            return rest.calls.drain(..).for_each(make);
        }
        let batch = ptr::from_ref(rest).addr();
        {
            let mut calls = self.calls.lock();
            calls.extend(rest.calls.drain(..).map(|call| (batch, call)));
            self.len.store(calls.len(), Ordering::Relaxed);
        }
        tell();
        while let Some(call) = self.next(|of| of == batch) {
            make(call);
        }
    }

    /// The same for what other threads have left behind. For a thread that holds nothing.
    pub(crate) fn call_left_behind(&self) {
        while let Some(call) = self.next(|_| true) {
            make(call);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    fn next(&self, of: impl Fn(usize) -> bool) -> Option<Call> {
        if self.is_empty() {
            return None;
        }
        let mut calls = self.calls.lock();
        let at = calls.iter().position(|(batch, _)| of(*batch))?;
        let call = calls.remove(at);
        self.len.store(calls.len(), Ordering::Relaxed);
        call.map(|(_, call)| call)
    }
}

impl Drop for WakeList {
    #[inline]
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            rest.keep();
        }
    }
}

impl Rest {
    #[cold]
    fn take() -> Box<Rest> {
        // At the end of a thread there is no place for one.
        SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default()
    }

    #[cold]
    fn has_foreign(&self) -> bool {
        self.calls.iter().any(is_foreign)
    }

    /// Leaves its storage to the next list.
    #[cold]
    fn keep(mut self: Box<Self>) {
        self.calls.clear();
        if self.batons.is_empty() && self.alarms.is_empty() {
            let _ = SPARE.try_with(|spare| spare.set(Some(self)));
        }
    }
}
