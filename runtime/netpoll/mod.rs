//! The netpoller: Go's runtime/netpoll.go.
//!
//! # What a backend does (there is one: epoll.rs)
//!
//! - `open(fd, id)` registers a descriptor once, edge-triggered, for everything; it fails for what cannot be polled.
//! - `close(fd)` takes it out. Events that were fetched before may still be under way; the generation tells them off.
//! - `poll(wait)` gives each event once, in the order in which descriptors became ready. A signal ends it empty.
//! - `wake()` ends the poll that waits, or the next that would.
//!
//! # What the netpoller does with it
//!
//! `netpoll` turns events into a [`WakeList`] and never calls the scheduler. Polls exclude each other: a poll that does
//! not wait steps back when another is under way, and sets a break aside that it harvests: the poll it was meant for may
//! not have begun (traps P4 and P24; Go lets them overlap and checks the delay instead).

mod brk;
mod deadline;
pub(crate) mod desc;
mod epoll;
pub(crate) mod slot;
#[cfg(all(test, not(gopark_loom)))]
mod tests;
mod until;

pub(crate) use brk::Break;

use crate::runtime::sync::{Mutex, UnsafeCell, spin};
use crate::runtime::sys::{self, Events};
use crate::runtime::timer::{Clock, Timers, What};
use crate::runtime::wake_list::{Alarm, Foreign, SlotId, WakeList};
use desc::{PollDesc, Side, Table};
pub(crate) use epoll::BATCH;
use epoll::{Epoll, Event};
use slot::Start;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use until::PollUntil;

/// One runtime's netpoller. Sockets hold it, so that it outlives the runtime while they do.
pub(crate) struct Netpoll {
    epoll: Epoll,
    table: Table,
    /// Held by whoever polls; guards `events`.
    polling: AtomicBool,
    events: UnsafeCell<Events>,
    brk: Break,
    pub(crate) until: PollUntil,
    /// Somebody has polled since sysmon last looked (Go's `sched.lastpoll` holds the time). Relaxed: it stands for itself.
    polled: AtomicBool,
    pub(crate) clock: Clock,
    /// Deadlines and other alarms of descriptors. Go keeps them with the Ps' timers; but here a socket may be used where
    /// there is no P.
    pub(crate) timers: Timers,
    pub(crate) foreign: Foreign,
    batons: Mutex<Vec<SlotId>>,
    /// How many `batons` there are, so that nobody takes the lock for none. Relaxed: an M that adds some comes to them itself
    /// before it goes idle; for anybody else's the break that follows ends the poller's wait (brk.rs orders that).
    baton_count: AtomicUsize,
}

// SAFETY: `events` is touched only by whoever holds `polling`; everything else is Sync by itself.
unsafe impl Sync for Netpoll {}

impl Netpoll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Netpoll {
            epoll: Epoll::new()?,
            table: Table::new(),
            polling: AtomicBool::new(false),
            events: UnsafeCell::new(Epoll::buffer()),
            brk: Break::default(),
            until: PollUntil::default(),
            polled: AtomicBool::new(false),
            clock: Clock::new(),
            timers: Timers::default(),
            foreign: Foreign::default(),
            batons: Mutex::new(Vec::new()),
            baton_count: AtomicUsize::new(0),
        })
    }

    /// Registers a descriptor, and names it. `None`: the runtime is gone.
    pub(crate) fn open(&self, fd: BorrowedFd<'_>, start: Start) -> io::Result<Option<SlotId>> {
        let Some(id) = self.table.alloc(start) else { return Ok(None) };
        // Trap P12.
        self.epoll.open(fd, id).inspect_err(|_| self.free(id))?;
        Ok(Some(id))
    }

    /// Takes a descriptor out, before it is closed: a duplicate would keep it registered otherwise (trap P13).
    pub(crate) fn close(&self, fd: BorrowedFd<'_>, id: SlotId) {
        // It fails only where the kernel has already forgotten the descriptor.
        let _ = self.epoll.close(fd);
        self.free(id);
    }

    fn free(&self, id: SlotId) {
        let mut list = WakeList::default();
        self.table.free(id, &self.timers, &mut list);
        self.deliver(&mut list);
    }

    /// Wakes and drops what is in a list. For callers that are not a P.
    pub(crate) fn deliver(&self, list: &mut WakeList) {
        list.submit();
        // The Ms may all be asleep: should one of the calls block, one of them has to take the next.
        self.foreign.call(list, || self.netpoll_break());
    }

    /// The descriptor that one of its slots names.
    pub(crate) fn desc(&self, id: SlotId) -> &PollDesc {
        self.table.desc(id)
    }

    /// Sets the deadline of reading or of writing; `NEVER` is none. Go's `poll_runtime_pollSetDeadline`.
    pub(crate) fn set_deadline(&self, desc: &PollDesc, side: Side, when: u64, list: &mut WakeList) {
        let ((deadline, slots), passed) = (desc.deadline(side), self.clock.has_come(when));
        if deadline.set(when, passed, slots, &self.timers, list) {
            self.timer_added(when);
        }
    }

    /// As if the slot had news at that time: an operation is worth another try.
    pub(crate) fn retry_at(&self, slot: SlotId, when: u64) {
        let alarm = What::Alarm(Alarm::Retry(slot));
        if self.timers.insert(when, alarm).is_some_and(|(_, earliest)| earliest) {
            self.timer_added(when);
        }
    }

    /// Sees to the deadlines and other alarms that are due.
    pub(crate) fn ring_alarms(&self, now: u64, list: &mut WakeList) {
        self.timers.expire(now, list);
        while let Some(alarm) = list.pop_alarm() {
            match alarm {
                Alarm::Retry(id) => self.table.slot(id).edge(id.fdseq, false, list),
                Alarm::Deadline(id) => self.fire(id, now, list),
            }
        }
        self.keep_batons(list);
    }

    /// Looks whether a deadline has passed: that of the slot with this name.
    pub(crate) fn fire(&self, id: SlotId, now: u64, list: &mut WakeList) {
        let side = if id.slot % 4 == Side::Read as u32 { Side::Read } else { Side::Write };
        let (deadline, slots) = self.desc(id).deadline(side);
        if deadline.fire(now, id, slots, &self.timers, list) {
            self.timer_added(self.timers.next_when());
        }
    }

    /// Wakes every waiter; later operations and registrations are refused.
    pub(crate) fn shut(&self, list: &mut WakeList) {
        self.table.shut_all(list);
    }

    /// Polls without waiting: how many events there were, of `BATCH` at most. Steps back where another poll is under way:
    /// `None`.
    pub(crate) fn netpoll(&self, list: &mut WakeList) -> Option<usize> {
        // Acquire pairs with the Release in `harvest`.
        if self.polling.load(Ordering::Relaxed) || self.polling.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(self.harvest(Some(Duration::ZERO), list, || self.brk.set_aside()))
    }

    /// Waits for events, so long at most, or for ever. Only the M that has the poller's place (idle.rs) calls this.
    pub(crate) fn netpoll_block(&self, wait: Option<Duration>, list: &mut WakeList) {
        let mut turn = 0;
        // Acquire as above. Whoever holds it does not wait.
        while self.polling.swap(true, Ordering::Acquire) {
            turn += 1;
            spin(turn);
        }
        // A break meant for this sleep may have been harvested before it began.
        let wait = if self.brk.take_aside() { Some(Duration::ZERO) } else { wait };
        self.harvest(wait, list, || self.brk.harvested());
    }

    /// With `polling` held: one call of the backend.
    fn harvest(&self, wait: Option<Duration>, list: &mut WakeList, broken: impl Fn()) -> usize {
        let mut count = 0;
        let result = self.events.with_mut(|events| -> io::Result<()> {
            // SAFETY: `polling` is held.
            let events = unsafe { &mut *events };
            for event in self.epoll.poll(events, wait)? {
                match event {
                    Event::Break => broken(),
                    Event::Ready { id, read, write, cut } => {
                        count += 1;
                        let desc = self.desc(id);
                        if read {
                            desc.slot(Side::Read).edge(id.fdseq, cut, list);
                        }
                        if write {
                            desc.slot(Side::Write).edge(id.fdseq, false, list);
                        }
                    }
                }
            }
            Ok(())
        });
        self.polled.store(true, Ordering::Relaxed);
        // Release pairs with the Acquire of the next poll.
        self.polling.store(false, Ordering::Release);
        self.keep_batons(list);
        // ENOMEM can end a wait.
        match result {
            Err(error) if error.raw_os_error() != Some(libc::ENOMEM) => sys::throw("epoll", &error),
            _ => count,
        }
    }

    /// Ends the wait of the M that blocks here, with one write at most per sleep. Go's `netpollBreak`.
    pub(crate) fn netpoll_break(&self) {
        if self.brk.send() {
            self.epoll.wake().unwrap_or_else(|error| sys::throw("eventfd", &error));
        }
    }

    /// A timer was added that comes before all others: ends the wait of a poller that would sleep past it. Go's
    /// `wakeNetPoller`.
    pub(crate) fn timer_added(&self, when: u64) {
        if self.until.is_past(when) {
            self.netpoll_break();
        }
    }

    /// Has anybody polled since the last call, or does somebody now?
    pub(crate) fn take_polled(&self) -> bool {
        self.polled.swap(false, Ordering::Relaxed) || self.polling.load(Ordering::Relaxed)
    }

    /// Puts a list's batons where the next M that would go idle finds them. True: there were any.
    pub(crate) fn keep_batons(&self, list: &mut WakeList) -> bool {
        let Some(new) = list.batons() else { return false };
        let mut batons = self.batons.lock();
        batons.extend(new.drain(..));
        self.baton_count.store(batons.len(), Ordering::Relaxed);
        true
    }

    pub(crate) fn has_batons(&self) -> bool {
        self.baton_count.load(Ordering::Relaxed) > 0
    }

    /// Looks again at the slots where one waiter was chosen and others wait. What it finds is in the list; where still
    /// others wait, there is a new baton.
    pub(crate) fn pass_batons(&self, list: &mut WakeList) {
        // Those that it leaves are in the list until all have had their turn.
        let mut batons = self.batons.lock();
        for baton in batons.drain(..) {
            self.table.slot(baton).pass(baton.fdseq, list);
        }
        self.baton_count.store(0, Ordering::Relaxed);
        drop(batons);
        self.keep_batons(list);
    }
}
