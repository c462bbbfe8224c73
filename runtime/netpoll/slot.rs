//! One direction of a [`PollDesc`](super::desc::PollDesc): Go's `rg` or `wg` (runtime/netpoll.go), for many waiters.
//!
//! Go keeps one word: nil, ready, wait, or the goroutine. Here a direction may have any number of waiters, of any
//! executor, so the word holds flags, and the waiters lie beside it, under the word's lock bit.
//!
//! ```text
//!                    begin: before a system call                   arm: nothing was there
//!        READY|TRY ───────────────────────────────▶ NIL ──────────────────────────────────▶ WAIT
//!            ▲                                       │ ▲                                      │
//!            │ finish: the call did not drain        │ │                  edge: choose one,   │
//!            ├───────────────────────────────────────┘ └── begin ── READY ◀──────────────────┘
//!            └── edge: the kernel has news
//! ```
//!
//! | bit | meaning | set by | cleared by |
//! |---|---|---|---|
//! | READY | the kernel may have something | `edge`, `finish` | `begin` |
//! | TRY | nothing is known yet: an operation tries, `readable` waits | `open` | `begin` |
//! | LOCK | somebody works on the waiters | `lock`, `edge` | `unlock` |
//! | WAIT | there are waiters that nobody has chosen | `unlock` | `unlock` |
//! | TURN | an edge came while the lock was held: its holder chooses | `edge` | `unlock` |
//! | CUT | a short call proves nothing (any more): traps P14, P25 | `open`, `edge` | `open` |
//! | | of the lock of `write_all`: somebody was chosen for it, and has not come yet | `edge` | `uncut` |
//! | CLOSED, GONE | operations are refused: the socket was closed, its runtime is gone | `shut` | `open` |
//! | EXPIRED | operations are refused: the deadline has passed | `shut` | `renew`, `open` |
//!
//! The upper half of the word is the generation (Go's `fdseq`), so that an event for an earlier socket changes nothing,
//! decided by the same atomic operation that would have changed it (trap P1).
//!
//! **The turn.** An edge chooses the first waiter. Whoever was chosen and leaves something in the kernel, or is dropped
//! before it tried, chooses the next (`finish`, `leave`). A chosen future may also never be polled again (trap P23):
//! so an edge that leaves others waiting also leaves a baton, and `pass` looks once more before an M goes idle.

use crate::runtime::rare::rare;
use crate::runtime::sync::{AtomicU64, Ordering, UnsafeCell, spin};
use crate::runtime::task;
use crate::runtime::wake_list::{SlotId, WakeList};
use std::collections::VecDeque;
use std::task::Waker;

const READY: u64 = 1;
const TRY: u64 = 1 << 1;
const LOCK: u64 = 1 << 2;
const WAIT: u64 = 1 << 3;
const TURN: u64 = 1 << 4;
const CUT: u64 = 1 << 5;
const CLOSED: u64 = 1 << 6;
const GONE: u64 = 1 << 7;
const EXPIRED: u64 = 1 << 8;
const SHUT: u64 = CLOSED | GONE | EXPIRED;
const FDSEQ: u32 = 32;

/// Release: the unlocker publishes the waiters. Pairs with the Acquire of `lock` and of `edge`.
const UNLOCK: Ordering =
    if cfg!(gopark_mutant = "slot_unlock_relaxed") { Ordering::Relaxed } else { Ordering::Release };

/// Why a slot takes no operations. The flags are in this order, from CLOSED on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    Closed,
    Gone,
    /// Until the deadline is set anew.
    Expired,
}

/// What `open` takes for known about a direction: the flags that the word begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Start {
    /// Nothing: an operation tries first.
    Try = TRY,
    /// The same; and a call that ends short never proves anything, as it does on TCP alone (traps P14, P25).
    TryCut = TRY | CUT,
    /// The kernel will tell by an edge.
    Nil = 0,
}

/// An operation may make its system call, and `finish` must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Go {
    /// That the call ends short does not show that the kernel has no more.
    pub(crate) cut: bool,
}

/// A waiting operation's name in the slot; 0 while it does not wait. It calls `leave` at its end, and one turn wakes one of them.
pub(crate) type Ticket = u32;

/// The ticket of all `poll_*` methods, which have no end: every distinct waker is kept, unless its task is complete, and a turn
/// wakes all of them.
const POLL: Ticket = u32::MAX;

struct Entry {
    ticket: Ticket,
    /// The waker stays when it was woken.
    keep: bool,
    waker: Waker,
}

struct Waiters {
    /// The head of the queue, if `armed`; else the waker of a task that waited last, kept for when it waits again, which then
    /// costs no reference count.
    first: Option<Entry>,
    armed: bool,
    #[expect(clippy::box_collection, reason = "rarely there, and 8 bytes instead of 32 in every slot")]
    more: Option<Box<VecDeque<Entry>>>,
    tickets: Ticket,
}

/// One direction of one descriptor, in a cache line of its own.
#[repr(align(64))]
pub(crate) struct Slot {
    word: AtomicU64,
    waiters: UnsafeCell<Waiters>,
    /// See [`SlotId::slot`].
    id: u32,
}

// SAFETY: `waiters` is touched only by whoever holds the LOCK bit.
unsafe impl Sync for Slot {}

impl Slot {
    pub(crate) fn new(id: u32) -> Self {
        let waiters = Waiters { first: None, armed: false, more: None, tickets: 0 };
        Slot { word: AtomicU64::new(CLOSED), waiters: UnsafeCell::new(waiters), id }
    }

    /// Takes the slot into use. The caller owns the descriptor alone.
    pub(crate) fn open(&self, start: Start) {
        // A baton of an earlier generation may still come by and look: not without the lock.
        let word = self.lock();
        // Release pairs with the Acquire of whoever comes by way of the descriptor's name; it gives the lock back.
        self.word.store(u64::from(fdseq_of(word)) << FDSEQ | start as u64, Ordering::Release);
    }

    /// Before a system call: NIL first, so that an edge that comes during the call is not lost. `None`: the kernel had nothing
    /// when last asked, so `arm`.
    #[inline]
    pub(crate) fn begin(&self) -> Result<Option<Go>, Shut> {
        let mut word = self.word.load(Ordering::Acquire);
        // One operation at a time: who finds it taken waits, and is chosen if the other leaves something.
        while word & (READY | TRY | SHUT) != 0 {
            if let Some(shut) = shut_of(word) {
                return Err(shut);
            }
            // AcqRel orders the clearing before the call and after the edge that set it.
            match self.word.compare_exchange_weak(word, word & !(READY | TRY), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(Some(Go { cut: word & CUT != 0 })),
                Err(now) => {
                    rare();
                    word = now;
                }
            }
        }
        Ok(None)
    }

    /// After a system call that left something. False: others wait, so the next must have its turn by an `edge`.
    #[inline]
    #[must_use]
    pub(crate) fn finish(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        // AcqRel as in `edge`.
        word & (WAIT | LOCK) == 0
            && self.word.compare_exchange(word, word | READY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// See the table. Relaxed: the flag stands for itself.
    pub(crate) fn uncut(&self) {
        self.word.fetch_and(!CUT, Ordering::Relaxed);
    }

    /// Is an operation worth trying? Observes only.
    pub(crate) fn ready(&self) -> Result<bool, Shut> {
        let word = self.word.load(Ordering::Acquire);
        shut_of(word).map_or(Ok(word & READY != 0), Err)
    }

    /// Queues an operation, or, without a ticket, a `poll_*` method. False: there is news (`also_try` counts a fresh slot as
    /// news), so look again instead. `keep`: a task of gopark's may be kept from being freed until the slot's next waiter comes,
    /// or its end.
    #[inline]
    pub(crate) fn arm(
        &self,
        op: Option<&mut Ticket>,
        waker: &Waker,
        keep: impl FnOnce() -> bool,
        also_try: bool,
        list: &mut WakeList,
    ) -> bool {
        let own = task::from_waker(waker).is_some();
        // A foreign waker's clone may run anything, so it is made before the lock; an own one only counts.
        let foreign = if own { None } else { Some(waker.clone()) };
        let word = self.lock();
        let news = READY | SHUT | if also_try { TRY } else { 0 };
        if word & news != 0 && !cfg!(gopark_mutant = "slot_arm_no_recheck") {
            list.drop_later(foreign);
            self.unlock(list);
            return false;
        }
        // SAFETY: this thread holds the lock.
        self.waiters.with_mut(|w| unsafe { &mut *w }.add(op, waker, || own && keep(), foreign, list));
        self.unlock(list);
        true
    }

    /// Has an operation that waited nothing to clean up? It has been chosen, and there is none to pass its turn to.
    #[inline]
    pub(crate) fn has_left(&self) -> bool {
        // Acquire pairs with `unlock`. While it is in the queue, WAIT is set.
        self.word.load(Ordering::Acquire) & (WAIT | LOCK) == 0
    }

    /// An operation that waited has come to its end: its entry goes. If it was `dropped` after it had been chosen, its
    /// turn goes to the next (trap P22).
    pub(crate) fn leave(&self, ticket: Ticket, dropped: bool, list: &mut WakeList) {
        let word = self.lock();
        // SAFETY: this thread holds the lock.
        let was_chosen = self.waiters.with_mut(|w| !unsafe { &mut *w }.remove(ticket, list));
        if dropped && was_chosen && word & READY != 0 {
            self.choose(word, list);
        }
        self.unlock(list);
    }

    /// A baton of generation `fdseq`: gives the turn to the next waiter, if something is left and somebody waits.
    pub(crate) fn pass(&self, fdseq: u32, list: &mut WakeList) {
        let word = self.lock();
        if word & READY != 0 && fdseq == fdseq_of(word) {
            self.choose(word, list);
        }
        self.unlock(list);
    }

    /// The kernel has news for generation `fdseq`: sets READY and chooses a waiter. Whoever holds the lock meanwhile finds
    /// TURN, and chooses in this one's place. `cut`: see the table.
    #[inline(always)]
    pub(crate) fn edge(&self, fdseq: u32, cut: bool, list: &mut WakeList) {
        let mut word = self.word.load(Ordering::Relaxed);
        while fdseq == fdseq_of(word) {
            let next = word | READY | if cut { CUT } else { 0 };
            let next = match word & (WAIT | LOCK) {
                0 => next,
                WAIT => next | LOCK,
                _ => next | TURN,
            };
            // AcqRel: Release hands the news to `begin`; Acquire takes the waiters from `unlock`.
            match self.word.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if word & (WAIT | LOCK) == WAIT => {
                    self.choose(next, list);
                    return self.unlock(list);
                }
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Refuses operations of generation `fdseq` from now on and wakes everybody.
    pub(crate) fn shut(&self, fdseq: u32, how: Shut, list: &mut WakeList) {
        if fdseq_of(self.lock()) == fdseq {
            // AcqRel: whoever is woken by this sees the flag.
            self.word.fetch_or(CLOSED << how as u32, Ordering::AcqRel);
            // SAFETY: this thread holds the lock.
            self.waiters.with_mut(|w| unsafe { &mut *w }.take_all(list));
        }
        self.unlock(list);
    }

    /// The deadline was set anew: operations are taken again.
    pub(crate) fn renew(&self) {
        // Relaxed: `deadline.rs` calls this and `shut` under its lock, and no operation depends on what came before.
        self.word.fetch_and(!EXPIRED, Ordering::Relaxed);
    }

    /// Its name in this generation.
    pub(crate) fn id(&self) -> SlotId {
        SlotId { slot: self.id, fdseq: fdseq_of(self.word.load(Ordering::Relaxed)) }
    }

    /// Ends the generation: late events pass by, kept wakers go. Nobody borrows the descriptor any more.
    pub(crate) fn retire(&self, list: &mut WakeList) {
        let word = self.lock();
        // SAFETY: this thread holds the lock.
        self.waiters.with_mut(|w| unsafe {
            (*w).take_all(list);
            (*w).more = None;
        });
        let next = u64::from(fdseq_of(word).wrapping_add(1)) << FDSEQ | CLOSED;
        // Release: as `unlock`, which this is too. An edge that set bits since then belonged to the generation that ends
        // here. (A store would do; loom would let such an edge overtake it.)
        self.word.swap(next, Ordering::Release);
    }

    /// Takes the lock; returns the word as it was.
    fn lock(&self) -> u64 {
        let mut turn = 0;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            // Acquire pairs with `unlock`.
            if word & LOCK == 0
                && self.word.compare_exchange_weak(word, word | LOCK, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return word;
            }
            turn += 1;
            spin(turn);
        }
    }

    /// Gives the lock back, and serves the edges that came meanwhile.
    fn unlock(&self, list: &mut WakeList) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & TURN != 0 {
                word = self.take_edge(list);
            }
            // SAFETY: this thread still holds the lock.
            let waiting = self.waiters.with(|w| !unsafe { &*w }.is_empty());
            let next = word & !(LOCK | WAIT) | if waiting { WAIT } else { 0 };
            match self.word.compare_exchange_weak(word, next, UNLOCK, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    #[cold]
    fn take_edge(&self, list: &mut WakeList) -> u64 {
        // Cleared before it is served, so that an edge that comes meanwhile is served, too. Relaxed: the flag stands for
        // itself.
        let word = self.word.fetch_and(!TURN, Ordering::Relaxed) & !TURN;
        self.choose(word, list);
        word
    }

    /// Under the lock: wakes the first operation and all `poll_*`; leaves a baton where others go on waiting.
    #[inline]
    fn choose(&self, word: u64, list: &mut WakeList) {
        // SAFETY: this thread holds the lock.
        if self.waiters.with_mut(|w| unsafe { &mut *w }.take_turn(list)) {
            list.add_baton(SlotId { slot: self.id, fdseq: fdseq_of(word) });
        }
    }
}

#[inline]
fn shut_of(word: u64) -> Option<Shut> {
    if word & SHUT == 0 { None } else { which_shut(word) }
}

#[cold]
fn which_shut(word: u64) -> Option<Shut> {
    [Shut::Closed, Shut::Gone, Shut::Expired].into_iter().find(|how| word & (CLOSED << *how as u32) != 0)
}

fn fdseq_of(word: u64) -> u32 {
    (word >> FDSEQ) as u32
}

impl Waiters {
    fn is_empty(&self) -> bool {
        !self.armed && self.more.as_ref().is_none_or(|m| m.is_empty())
    }

    #[inline]
    fn add(
        &mut self,
        op: Option<&mut Ticket>,
        waker: &Waker,
        keep: impl FnOnce() -> bool,
        foreign: Option<Waker>,
        list: &mut WakeList,
    ) {
        // An operation that was chosen, tried, and found nothing, keeps its place: before all that came after it.
        let (ticket, again) = match op {
            None => (POLL, false),
            Some(ticket) if *ticket != 0 => (*ticket, true),
            Some(ticket) => {
                self.tickets = if self.tickets >= POLL - 1 { 1 } else { self.tickets + 1 };
                *ticket = self.tickets;
                (*ticket, false)
            }
        };
        // A new one is not there yet.
        if ticket == POLL || again {
            rare();
            let same = |e: &&mut Entry| e.ticket == ticket && (ticket != POLL || e.waker.will_wake(waker));
            let armed = self.first.as_mut().filter(|_| self.armed);
            let more = self.more.iter_mut().flat_map(|m| m.iter_mut());
            if let Some(entry) = armed.into_iter().chain(more).find(same) {
                if entry.waker.will_wake(waker) {
                    list.drop_later(foreign);
                } else {
                    let new = foreign.unwrap_or_else(|| waker.clone());
                    list.drop_later(Some(std::mem::replace(&mut entry.waker, new)));
                    entry.keep = keep();
                }
                return;
            }
            if let Some(more) = self.more.as_mut().filter(|more| !again && more.len() == more.capacity()) {
                Self::thin_out(more, list);
            }
        }
        // Tickets wrap, so it is their distance that tells who came later.
        let is_later = |e: &Entry| e.ticket != POLL && (e.ticket.wrapping_sub(ticket) as i32) > 0;
        let place = |m: &VecDeque<_>| again.then(|| m.iter().position(is_later)).flatten().unwrap_or(m.len());
        let at = self.more.as_ref().map_or(0, |more| place(more));
        if !self.armed && at == 0 {
            match &mut self.first {
                Some(kept) if kept.waker.will_wake(waker) => {
                    kept.ticket = ticket;
                    list.drop_later(foreign);
                }
                first => {
                    let new = Entry { ticket, keep: keep(), waker: foreign.unwrap_or_else(|| waker.clone()) };
                    list.drop_later(first.replace(new).map(|e| e.waker));
                }
            }
            self.armed = true;
            return;
        }
        rare();
        let mut entry = Entry { ticket, keep: keep(), waker: foreign.unwrap_or_else(|| waker.clone()) };
        if let Some(head) = self.first.as_mut().filter(|head| self.armed && again && is_later(head)) {
            std::mem::swap(head, &mut entry);
        }
        self.more.get_or_insert_default().insert(at, entry);
    }

    /// Before the queue grows: a task that has given up a `poll_*` method has told nobody, and the next edge may be far away.
    /// (Whether another executor's waker is still of use cannot be seen.) As many come until the next time as are left.
    #[cold]
    fn thin_out(more: &mut VecDeque<Entry>, list: &mut WakeList) {
        for _ in 0..more.len() {
            let Some(entry) = more.pop_front() else { break };
            let is_done = entry.ticket == POLL && task::from_waker(&entry.waker).is_some_and(|task| task.is_complete());
            if is_done { list.drop_later(Some(entry.waker)) } else { more.push_back(entry) }
        }
        more.reserve(more.len());
    }

    /// Takes out a waiting operation. False: it does not wait, so it was chosen.
    fn remove(&mut self, ticket: Ticket, list: &mut WakeList) -> bool {
        if self.armed && self.first.as_ref().is_some_and(|e| e.ticket == ticket) {
            self.armed = false;
            list.drop_later(self.first.take_if(|e| !e.keep).map(|e| e.waker));
            return true;
        }
        let Some(more) = &mut self.more else { return false };
        let Some(at) = more.iter().position(|e| e.ticket == ticket) else { return false };
        list.drop_later(more.remove(at).map(|e| e.waker));
        true
    }

    /// Wakes the first operation and every `poll_*`. True: others go on waiting.
    #[inline(always)]
    fn take_turn(&mut self, list: &mut WakeList) -> bool {
        let mut op_chosen = false;
        if self.armed {
            op_chosen = self.first.as_ref().is_some_and(|e| e.ticket != POLL);
            self.wake_first(list);
        }
        self.more.as_mut().is_some_and(|more| Self::take_more(more, op_chosen, list))
    }

    fn take_more(more: &mut VecDeque<Entry>, mut op_chosen: bool, list: &mut WakeList) -> bool {
        let mut at = 0;
        while at < more.len() {
            if more[at].ticket == POLL || !op_chosen {
                op_chosen |= more[at].ticket != POLL;
                if let Some(entry) = more.remove(at) {
                    list.wake(entry.waker);
                }
            } else {
                at += 1;
            }
        }
        !more.is_empty()
    }

    /// Wakes everybody, and keeps nothing.
    fn take_all(&mut self, list: &mut WakeList) {
        if self.armed {
            self.wake_first(list);
        }
        list.drop_later(self.first.take().map(|e| e.waker));
        for entry in self.more.iter_mut().flat_map(|m| m.drain(..)) {
            list.wake(entry.waker);
        }
    }

    /// Wakes the armed head.
    #[inline]
    fn wake_first(&mut self, list: &mut WakeList) {
        self.armed = false;
        match &self.first {
            Some(kept) if kept.keep => drop(list.wake_own(&kept.waker)),
            _ => self.first.take().into_iter().for_each(|e| list.wake(e.waker)),
        }
    }
}

#[cfg(all(test, gopark_loom))]
mod models;
#[cfg(all(test, not(gopark_loom)))]
mod tests;
