//! A P's timers: Go's runtime/time.go.
//!
//! A heap of (when, which, generation) with lazy cancel: a cancelled entry stays in the heap, dead, until it comes to
//! the top or until the dead outnumber the living (trap TM6), when one sweep takes them all out.

use super::sync::Mutex;
use super::sys;
use super::wake_list::{Alarm, WakeList};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Instant;

/// Later than any deadline.
pub(crate) const NEVER: u64 = u64::MAX;

/// The runtime's nanoseconds, counted from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    /// The same moment by the kernel's count.
    start_ns: u64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now(), start_ns: sys::coarse_ns() }
    }

    pub(crate) fn now(self) -> u64 {
        self.when(Instant::now())
    }

    /// The past is 0; what lies centuries ahead is as good as never, yet not `NEVER`.
    pub(crate) fn when(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX).min(NEVER - 1)
    }

    /// Has this time come? The kernel's coarse clock is some milliseconds behind and costs next to nothing: what lies a
    /// second beyond it needs no look at the exact one.
    pub(crate) fn has_come(self, when: u64) -> bool {
        when <= (sys::coarse_ns() - self.start_ns).saturating_add(1_000_000_000) && when <= self.now()
    }
}

/// What happens when the time has come.
#[derive(Debug)]
pub(crate) enum What {
    Wake(Waker),
    Alarm(Alarm),
}

/// A timer that was inserted. Firing and cancelling end it; the key then fits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    generation: u32,
}

/// One heap, for any thread.
#[derive(Debug)]
pub(crate) struct Timers {
    /// When the first entry is due: a look without the lock. Changed under it.
    next_when: AtomicU64,
    heap: Mutex<Heap>,
}

#[derive(Debug, Default)]
struct Heap {
    queue: BinaryHeap<Reverse<(u64, u32, u32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    gone: bool,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    what: Option<What>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Timers { next_when: AtomicU64::new(NEVER), heap: Mutex::new(Heap::default()) }
    }

    /// When the first timer is due; `NEVER` if there is none. May be too early (a cancelled one), never too late for
    /// whoever's fence pairs with that of the inserter.
    pub(crate) fn next_when(&self) -> u64 {
        self.next_when.load(Ordering::Relaxed)
    }

    /// With `true`, no timer of this heap is due before it, so a sleeping poller may have to be told. `None`: the runtime
    /// is gone.
    #[must_use]
    pub(crate) fn insert(&self, when: u64, what: What) -> Option<(Key, bool)> {
        let mut heap = self.heap.lock();
        if heap.gone {
            // `what` goes after the lock: a waker's drop may run anything (trap S18).
            return None;
        }
        let slot = heap.free.pop().unwrap_or_else(|| {
            heap.slots.push(Slot { generation: 0, what: None });
            (heap.slots.len() - 1) as u32
        });
        let entry = &mut heap.slots[slot as usize];
        entry.what = Some(what);
        let generation = entry.generation;
        heap.queue.push(Reverse((when, slot, generation)));
        let earliest = when < self.next_when();
        if earliest {
            self.next_when.store(when, Ordering::Relaxed);
        }
        Some((Key { slot, generation }, earliest))
    }

    /// Sees to it that the timer wakes `waker`. False: it has fired.
    pub(crate) fn refresh(&self, key: Key, waker: &Waker) -> bool {
        match self.heap.lock().entry(key).map(|e| &e.what) {
            None => return false,
            Some(Some(What::Wake(old))) if old.will_wake(waker) => return true,
            Some(_) => {}
        }
        // A foreign waker's clone may run anything, and so may its drop, which comes after the lock's.
        let mut new = Some(What::Wake(waker.clone()));
        let mut heap = self.heap.lock();
        heap.entry(key).map(|entry| std::mem::swap(&mut entry.what, &mut new)).is_some()
    }

    /// Ends the timer. What it held, if it had not fired, is the caller's to drop.
    pub(crate) fn cancel(&self, key: Key) -> Option<What> {
        let mut heap = self.heap.lock();
        let what = heap.end(key)?;
        let Heap { queue, slots, free, .. } = &mut *heap;
        if queue.len() > 2 * (slots.len() - free.len()) {
            queue.retain(|Reverse((_, slot, generation))| slots[*slot as usize].generation == *generation);
        }
        self.next_when.store(heap.next_when(), Ordering::Relaxed);
        Some(what)
    }

    /// Ends every timer that is due.
    pub(crate) fn expire(&self, now: u64, list: &mut WakeList) {
        if self.next_when() > now {
            return;
        }
        let mut heap = self.heap.lock();
        while let Some(&Reverse((when, slot, generation))) = heap.queue.peek() {
            let alive = heap.entry(Key { slot, generation }).is_some();
            if alive && when > now {
                break;
            }
            heap.queue.pop();
            match heap.end(Key { slot, generation }) {
                Some(What::Wake(waker)) => list.wake(waker),
                Some(What::Alarm(alarm)) => list.add_alarm(alarm),
                None => {}
            }
        }
        self.next_when.store(heap.next_when(), Ordering::Relaxed);
    }

    /// The runtime ends: refuses new timers and wakes whoever waits for one.
    pub(crate) fn shut(&self, list: &mut WakeList) {
        let mut heap = self.heap.lock();
        heap.gone = true;
        for slot in 0..heap.slots.len() as u32 {
            let generation = heap.slots[slot as usize].generation;
            if let Some(What::Wake(waker)) = heap.end(Key { slot, generation }) {
                list.wake(waker);
            }
        }
        heap.queue.clear();
        self.next_when.store(NEVER, Ordering::Relaxed);
    }
}

impl Heap {
    /// The slot behind a key, while the timer waits.
    fn entry(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot as usize).filter(|s| s.generation == key.generation && s.what.is_some())
    }

    /// Frees the slot behind a key; the entry in the queue is dead from then on.
    fn end(&mut self, key: Key) -> Option<What> {
        let entry = self.entry(key)?;
        let what = entry.what.take();
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        what
    }

    fn next_when(&self) -> u64 {
        self.queue.peek().map_or(NEVER, |Reverse((when, ..))| *when)
    }
}

#[cfg(all(test, not(gopark_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), Waker::from(count))
    }

    fn key(inserted: Option<(Key, bool)>) -> Key {
        inserted.unwrap().0
    }

    fn fire(timers: &Timers, now: u64) -> u64 {
        let mut list = WakeList::default();
        timers.expire(now, &mut list);
        list.deliver();
        timers.next_when()
    }

    #[test]
    fn insert_and_expire_in_order() {
        let timers = Timers::new();
        let (count, waker) = counter();
        for when in [30, 10, 20, 10] {
            let _ = key(timers.insert(when, What::Wake(waker.clone())));
        }
        assert_eq!(timers.next_when(), 10);
        for (now, fired, next) in [(9, 0, 10), (10, 2, 20), (25, 3, 30), (30, 4, NEVER)] {
            assert_eq!(fire(&timers, now), next);
            assert_eq!(count.0.load(Ordering::Relaxed), fired);
        }
    }

    /// Trap TM2: fire and cancel exclude each other, and a key never fits a later timer in its slot.
    #[test]
    fn expire_and_cancel() {
        let timers = Timers::new();
        let (count, waker) = counter();
        let old = key(timers.insert(10, What::Wake(waker.clone())));
        fire(&timers, 10);
        assert!(timers.cancel(old).is_none());
        let new = key(timers.insert(10, What::Wake(waker.clone())));
        assert!(timers.cancel(old).is_none() && !timers.refresh(old, &waker));
        assert!(timers.cancel(new).is_some());
        fire(&timers, 10);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    /// Trap TM5: the ends of the range.
    #[test]
    fn zero_and_the_far_future() {
        let timers = Timers::new();
        let (count, waker) = counter();
        let _ = key(timers.insert(NEVER - 1, What::Wake(waker.clone())));
        let _ = key(timers.insert(0, What::Wake(waker.clone())));
        assert_eq!(fire(&timers, 0), NEVER - 1);
        assert_eq!(fire(&timers, NEVER - 1), NEVER);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    /// Trap TM6: dead entries never outnumber live ones, and every waker is given back.
    #[test]
    fn cancel_does_not_pile_up() {
        let timers = Timers::new();
        let (count, waker) = counter();
        let kept: Vec<_> = (0..100).map(|n| key(timers.insert(1_000_000 + n, What::Wake(waker.clone())))).collect();
        for n in 0..if cfg!(miri) { 500 } else { 10_000 } {
            assert!(timers.cancel(key(timers.insert(2_000_000 + n, What::Wake(waker.clone())))).is_some());
            let heap = timers.heap.lock();
            let live = heap.slots.len() - heap.free.len();
            assert!(heap.queue.len() <= 2 * live, "{} entries, {live} alive", heap.queue.len());
        }
        for k in kept {
            assert!(timers.cancel(k).is_some());
        }
        assert_eq!(timers.next_when(), NEVER);
        drop(waker);
        assert_eq!(Arc::strong_count(&count), 1);
    }

    #[test]
    fn refresh_and_expire_wakes_the_new_waker_only() {
        let timers = Timers::new();
        let ((old, old_waker), (new, new_waker)) = (counter(), counter());
        let k = key(timers.insert(10, What::Wake(old_waker.clone())));
        assert!(timers.refresh(k, &new_waker));
        fire(&timers, 10);
        assert_eq!((old.0.load(Ordering::Relaxed), new.0.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn shut_wakes_and_refuses() {
        let timers = Timers::new();
        let (count, waker) = counter();
        let k = key(timers.insert(10, What::Wake(waker.clone())));
        let mut list = WakeList::default();
        timers.shut(&mut list);
        list.deliver();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(timers.insert(10, What::Wake(waker.clone())).is_none());
        assert!(timers.cancel(k).is_none());
    }
}
