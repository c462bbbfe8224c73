//! Timers: Go's runtime/time.go.
//!
//! A heap of (when, which, generation) with lazy cancel: a cancelled entry stays in the heap, dead, until it comes to
//! the top or until the dead outnumber the living (trap TM6), when one sweep takes them all out.

use super::sync::{AtomicU64, Mutex, Ordering};
use super::sys;
use super::wake_list::{Alarm, WakeList};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::num::NonZeroU32;
use std::task::Waker;
use std::time::{Duration, Instant};

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

    #[inline(never)]
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

/// The same for one thread, and without sums: what lies two seconds ahead takes a comparison and the coarse clock.
pub(crate) struct Horizon {
    /// Has not come while the coarse clock is below `until`.
    at: Cell<Instant>,
    until: Cell<u64>,
}

impl Horizon {
    pub(crate) fn new() -> Horizon {
        Horizon { at: Cell::new(Instant::now()), until: Cell::new(0) }
    }

    #[inline]
    pub(crate) fn has_come(&self, time: Instant) -> bool {
        let ahead = time > self.at.get() && (sys::coarse_ns() < self.until.get() || time > self.look());
        !ahead && time <= Instant::now()
    }

    /// The coarse clock is less than a second behind: as long as it shows less than one more, it is less than two from now.
    #[cold]
    fn look(&self) -> Instant {
        const SECOND: Duration = Duration::from_secs(1);
        self.until.set(sys::coarse_ns() + SECOND.as_nanos() as u64);
        self.at.set(Instant::now() + 2 * SECOND);
        self.at.get()
    }
}

/// What happens when the time has come.
pub(crate) enum What {
    Wake(Waker),
    Alarm(Alarm),
    /// Nothing yet: what an M has noted was given this time by another thread, before the M could file it.
    Moved(u64),
}

/// A timer that was inserted, or noted. Firing and cancelling end it; the key then fits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: u32,
    /// Not zero, so that an `Option` of a key takes no more room.
    generation: NonZeroU32,
}

/// One heap, for any thread.
pub(crate) struct Timers {
    /// When the first entry is due: a look without the lock. Changed under it.
    next_when: AtomicU64,
    heap: Mutex<Heap>,
}

#[derive(Default)]
struct Heap {
    queue: BinaryHeap<Reverse<(u64, u32, NonZeroU32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Timers that wait; more slots may be claimed.
    alive: usize,
    gone: bool,
}

struct Slot {
    generation: NonZeroU32,
    /// `None` where it is free; this or `Moved` where it is claimed for a note.
    what: Option<What>,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { next_when: AtomicU64::new(NEVER), heap: Mutex::default() }
    }
}

impl Timers {
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
        let key = heap.claim();
        heap.fill(key, when, what);
        Some((key, self.comes_first(when)))
    }

    /// Sees to it that the timer wakes `waker`. False: it has fired, or was only noted and ends here.
    pub(crate) fn refresh(&self, key: Key, waker: &Waker) -> bool {
        let mut heap = self.heap.lock();
        match heap.entry(key).and_then(|entry| entry.what.as_ref()) {
            Some(What::Wake(old)) if old.will_wake(waker) => return true,
            Some(What::Wake(_) | What::Alarm(_)) => {}
            Some(What::Moved(_)) | None => {
                heap.end(key);
                return false;
            }
        }
        drop(heap);
        // A foreign waker's clone may run anything, and so may its drop, which comes after the lock's.
        let mut new = Some(What::Wake(waker.clone()));
        let mut heap = self.heap.lock();
        heap.entry(key).map(|entry| mem::swap(&mut entry.what, &mut new)).is_some()
    }

    /// Ends the timer. What it held, if it had not fired, is the caller's to drop.
    pub(crate) fn cancel(&self, key: Key) -> Option<What> {
        let mut heap = self.heap.lock();
        let what = heap.end(key)?;
        heap.sweep();
        self.next_when.store(heap.next_when(), Ordering::Relaxed);
        Some(what)
    }

    /// Another time for a timer; as `insert`. `None`: it has fired.
    #[must_use]
    pub(crate) fn reset(&self, key: Key, when: u64) -> Option<(Key, bool)> {
        let mut heap = self.heap.lock();
        let entry = heap.entry(key)?;
        if !matches!(entry.what, Some(What::Wake(_) | What::Alarm(_))) {
            entry.what = Some(What::Moved(when));
            return Some((key, false));
        }
        let what = heap.end(key)?;
        let key = heap.claim();
        heap.fill(key, when, what);
        heap.sweep();
        let first = when < self.next_when();
        self.next_when.store(heap.next_when(), Ordering::Relaxed);
        Some((key, first))
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
                Some(What::Moved(_)) | None => {}
            }
        }
        self.next_when.store(heap.next_when(), Ordering::Relaxed);
    }

    /// The runtime ends: refuses new timers and wakes whoever waits for one.
    pub(crate) fn shut(&self, list: &mut WakeList) {
        // May come again and again, where the end takes long.
        self.heap.lock().gone = true;
        self.expire(NEVER, list);
    }

    /// What is noted still is inserted, to wake `waker`, which is a task's of this runtime. As `insert`, with the time of the
    /// first of them.
    #[cold]
    #[must_use]
    pub(crate) fn file(&self, notes: &Notes, clock: Clock, waker: &Waker) -> Option<u64> {
        let mut heap = self.heap.lock();
        let mut places = notes.places.borrow_mut();
        let used = notes.used.take();
        if heap.gone {
            places.clear();
            return None;
        }
        let mut first = NEVER;
        for (at, key) in &mut places[..used] {
            let Some(at) = at.take() else { continue };
            // Not if the sleep was taken to another thread meanwhile: that one has ended it.
            if let Some(entry) = heap.entry(*key) {
                let moved = if let Some(What::Moved(when)) = entry.what { Some(when) } else { None };
                let when = moved.unwrap_or_else(|| clock.when(at));
                heap.fill(*key, when, What::Wake(waker.clone()));
                first = first.min(when);
            }
            *key = heap.claim();
        }
        self.comes_first(first).then_some(first)
    }

    /// Makes room for one more note; always of the same heap.
    #[cold]
    pub(crate) fn make_room(&self, notes: &Notes) {
        let mut heap = self.heap.lock();
        if !heap.gone {
            notes.places.borrow_mut().push((None, heap.claim()));
        }
    }

    /// With the lock held: is it due before all others?
    fn comes_first(&self, when: u64) -> bool {
        let first = when < self.next_when();
        if first {
            self.next_when.store(when, Ordering::Relaxed);
        }
        first
    }
}

impl Heap {
    /// Takes a slot for a timer.
    fn claim(&mut self) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: NonZeroU32::MIN, what: None });
            (self.slots.len() - 1) as u32
        });
        Key { slot, generation: self.slots[slot as usize].generation }
    }

    /// What was claimed gets its timer.
    fn fill(&mut self, key: Key, when: u64, what: What) {
        self.slots[key.slot as usize].what = Some(what);
        self.queue.push(Reverse((when, key.slot, key.generation)));
        self.alive += 1;
    }

    /// The slot behind a key, until the timer ends.
    fn entry(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot as usize).filter(|s| s.generation == key.generation)
    }

    /// Frees the slot behind a key; its entry in the queue, if it has one, is dead from then on.
    fn end(&mut self, key: Key) -> Option<What> {
        let entry = self.entry(key)?;
        let what = entry.what.take().filter(|what| !matches!(what, What::Moved(_)));
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push(key.slot);
        self.alive -= usize::from(what.is_some());
        what
    }

    /// Takes the dead out of the queue, if there are more of them than of the living.
    fn sweep(&mut self) {
        let Heap { queue, slots, alive, .. } = self;
        if queue.len() > 2 * *alive {
            queue.retain(|Reverse((_, slot, generation))| slots[*slot as usize].generation == *generation);
        }
    }

    fn next_when(&self) -> u64 {
        self.queue.peek().map_or(NEVER, |Reverse((when, ..))| *when)
    }
}

/// So many timers are noted before they are filed.
const NOTES: usize = 64;

/// The timers that an M was told to wake the task for that it polls. While the poll lasts nobody could tell whether one of
/// them has fired, so they need not be in the heap, and a note takes no lock.
///
/// Each has a key of the heap all the same, with a slot that was claimed for it: if the sleep is taken to another thread
/// before the poll ends, that one finds the slot, and ends the timer there or gives it another time; `file` sees that.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// When each is due, unless it was crossed out, and its key. From `used` on: claimed for the next.
    places: RefCell<Vec<(Option<Instant>, Key)>>,
    used: Cell<usize>,
}

impl Notes {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.used.get() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used.get() == NOTES
    }

    /// Notes a timer: its place, and its key. `None`: there is no room.
    #[inline]
    pub(crate) fn add(&self, at: Instant) -> Option<(u16, Key)> {
        let used = self.used.get();
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(used)?;
        place.0 = Some(at);
        self.used.set(used + 1);
        Some((used as u16, place.1))
    }

    /// Gives a timer another time; without one, it is crossed out. False: it is not noted here.
    #[inline]
    pub(crate) fn change(&self, place: u16, key: Key, at: Option<Instant>) -> bool {
        let mut places = self.places.borrow_mut();
        let Some(note) = places.get_mut(place as usize).filter(|note| note.1 == key) else { return false };
        note.0 = at;
        self.used.set(places[..self.used.get()].iter().rposition(|(at, _)| at.is_some()).map_or(0, |last| last + 1));
        true
    }
}

#[cfg(all(test, not(gopark_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, LazyLock};
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
        let timers = Timers::default();
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
        let timers = Timers::default();
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
        let timers = Timers::default();
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
        let timers = Timers::default();
        let (count, waker) = counter();
        let kept: Vec<_> = (0..100).map(|n| key(timers.insert(1_000_000 + n, What::Wake(waker.clone())))).collect();
        for n in 0..if cfg!(miri) { 500 } else { 10_000 } {
            assert!(timers.cancel(key(timers.insert(2_000_000 + n, What::Wake(waker.clone())))).is_some());
            let heap = timers.heap.lock();
            assert!(heap.queue.len() <= 2 * heap.alive, "{} entries, {} alive", heap.queue.len(), heap.alive);
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
        let timers = Timers::default();
        let ((old, old_waker), (new, new_waker)) = (counter(), counter());
        let k = key(timers.insert(10, What::Wake(old_waker.clone())));
        assert!(timers.refresh(k, &new_waker));
        fire(&timers, 10);
        assert_eq!((old.0.load(Ordering::Relaxed), new.0.load(Ordering::Relaxed)), (0, 1));
    }

    static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::new);

    fn noted(notes: &Notes, timers: &Timers, when: u64) -> (u16, Key) {
        let at = CLOCK.start + Duration::from_nanos(when);
        notes.add(at).or_else(|| (timers.make_room(notes), notes.add(at)).1).unwrap()
    }

    /// Nothing is in the heap before it is filed, nor after it was crossed out, in whatever order.
    #[test]
    fn note_and_remove_and_file() {
        let (timers, notes) = (Timers::default(), Notes::default());
        let (count, waker) = counter();
        for round in 1..=3 {
            let keys: Vec<_> = (0..5).map(|n| noted(&notes, &timers, 10 * (5 - n))).collect();
            assert_eq!(timers.next_when(), NEVER);
            for n in [4, 1] {
                assert!(notes.change(keys[n].0, keys[n].1, None));
            }
            assert_eq!(timers.file(&notes, *CLOCK, &waker), Some(20));
            assert!(notes.is_empty() && !notes.change(keys[0].0, keys[0].1, None));
            // What is filed is as what was inserted.
            assert!(timers.cancel(keys[2].1).is_some());
            assert_eq!(fire(&timers, 50), NEVER);
            assert_eq!(count.0.load(Ordering::Relaxed), 2 * round);
        }
        // What is claimed for notes, and nothing else.
        let heap = timers.heap.lock();
        assert_eq!((heap.slots.len() - heap.free.len(), heap.queue.len()), (5, 0));
        drop(waker);
        assert_eq!(Arc::strong_count(&count), 1);
    }

    /// A noted sleep that another thread gets hold of before the poll ends is ended there.
    #[test]
    fn note_and_cancel_and_refresh_elsewhere() {
        let (timers, notes) = (Timers::default(), Notes::default());
        let ((mine, my_waker), (other, other_waker)) = (counter(), counter());
        let keys = [30, 20, 10].map(|when| noted(&notes, &timers, when).1);
        assert!(timers.cancel(keys[2]).is_none());
        assert!(!timers.refresh(keys[1], &other_waker));
        let _ = key(timers.insert(20, What::Wake(other_waker)));
        assert_eq!(timers.file(&notes, *CLOCK, &my_waker), None);
        assert!(!timers.refresh(keys[2], &my_waker));
        assert_eq!(fire(&timers, 20), 30);
        assert_eq!((mine.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (0, 1));
    }

    /// One that another thread gives another time before the poll ends wakes whom it was noted for, at that time.
    #[test]
    fn note_and_reset_elsewhere() {
        let (timers, notes) = (Timers::default(), Notes::default());
        let ((mine, my_waker), (_, other_waker)) = (counter(), counter());
        let [sooner, later, gone, taken] = [30, 30, 20, 20].map(|when| noted(&notes, &timers, when).1);
        assert_eq!(timers.reset(sooner, 50), Some((sooner, false)));
        for (key, when) in [(sooner, 10), (later, 40), (gone, 10), (taken, 10)] {
            assert_eq!(timers.reset(key, when), Some((key, false)));
        }
        assert_eq!(timers.next_when(), NEVER);
        assert!(timers.cancel(gone).is_none() && !timers.refresh(taken, &other_waker));
        assert_eq!(timers.file(&notes, *CLOCK, &my_waker), Some(10));
        for (now, next, wakes) in [(10, 40, 1), (39, 40, 1), (40, NEVER, 2)] {
            assert_eq!((fire(&timers, now), mine.0.load(Ordering::Relaxed)), (next, wakes));
        }
        assert!([sooner, later, gone, taken].into_iter().all(|key| timers.reset(key, 60).is_none()));
        assert_eq!(timers.heap.lock().alive, 0);
    }

    /// A timer that is given another time fires then, once; what that leaves in the queue does not pile up (trap TM6).
    #[test]
    fn insert_and_reset() {
        let timers = Timers::default();
        let (count, waker) = counter();
        let mut k = key(timers.insert(10, What::Wake(waker.clone())));
        for (when, first) in [(20, false), (5, true), (30, false), (30, false)] {
            let (new, is_first) = timers.reset(k, when).unwrap();
            assert_eq!((is_first, timers.reset(k, 1)), (first, None), "{when}: the old name is nobody's");
            k = new;
        }
        assert_eq!((fire(&timers, 29), count.0.load(Ordering::Relaxed)), (30, 0));
        for n in 0..1000 {
            k = timers.reset(k, 100 + n).unwrap().0;
            assert!(timers.heap.lock().queue.len() <= 2);
        }
        assert_eq!((fire(&timers, 1099), count.0.load(Ordering::Relaxed)), (NEVER, 1));
        assert!(timers.reset(k, 2000).is_none());
    }

    #[test]
    fn note_and_shut() {
        let (timers, notes) = (Timers::default(), Notes::default());
        let (count, waker) = counter();
        let (_, key) = noted(&notes, &timers, 10);
        timers.shut(&mut WakeList::default());
        assert!(!timers.refresh(key, &waker));
        assert_eq!(timers.file(&notes, *CLOCK, &waker), None);
        timers.make_room(&notes);
        assert!(notes.add(Instant::now()).is_none());
        drop(waker);
        assert_eq!(Arc::strong_count(&count), 1);
    }

    #[test]
    fn shut_wakes_and_refuses() {
        let timers = Timers::default();
        let (count, waker) = counter();
        let k = key(timers.insert(10, What::Wake(waker.clone())));
        for _ in 0..3 {
            let mut list = WakeList::default();
            timers.shut(&mut list);
            list.deliver();
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
            assert!(timers.insert(10, What::Wake(waker.clone())).is_none());
            assert!(timers.cancel(k).is_none());
            assert_eq!(timers.heap.lock().free.len(), 1, "slots that are free");
        }
    }
}
