//! The epoll backend: Go's runtime/netpoll_epoll.go. The contract it keeps stands in mod.rs.

use crate::runtime::sys::{self, Events};
use crate::runtime::wake_list::SlotId;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// No slot has that number: see `MAX_INDEX`.
const BREAK: SlotId = SlotId { slot: u32::MAX, fdseq: 0 };

/// Registered once, never modified. PRI: an urgent mark cuts a read short and makes no other edge (trap P25).
const INTEREST: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET) as u32;
const HANGUP: u32 = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
const READ: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI) as u32 | HANGUP;
const WRITE: u32 = libc::EPOLLOUT as u32 | HANGUP;
const CUT: u32 = (libc::EPOLLRDHUP | libc::EPOLLPRI) as u32 | HANGUP;

/// Events taken by one call. A slot that was touched at the harvest is still in the cache when its task runs.
pub(crate) const BATCH: usize = 64;

/// One event, in the netpoller's words.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// A descriptor has news for one or both directions. `cut`: short reads prove nothing from now on.
    Ready { id: SlotId, read: bool, write: bool, cut: bool },
    /// Somebody broke the wait.
    Break,
}

/// An epoll instance with its eventfd.
pub(crate) struct Epoll {
    ep: OwnedFd,
    /// Go's `netpollEventFd`. Registered edge-triggered and never read: every write to an eventfd wakes its waiters
    /// anew (eventfd_signal in fs/eventfd.c), and at one write a nanosecond the counter is full after 584 years.
    event: OwnedFd,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        let (ep, event) = (sys::epoll_create()?, sys::eventfd()?);
        sys::epoll_add(ep.as_fd(), event.as_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, BREAK.pack())?;
        Ok(Epoll { ep, event })
    }

    pub(crate) fn buffer() -> Events {
        // Not only room: MemorySanitizer does not see what the kernel writes.
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; BATCH];
        events.clear();
        events
    }

    pub(crate) fn open(&self, fd: BorrowedFd<'_>, id: SlotId) -> io::Result<()> {
        sys::epoll_add(self.ep.as_fd(), fd, INTEREST, id.pack())
    }

    pub(crate) fn close(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        sys::epoll_del(self.ep.as_fd(), fd)
    }

    /// Ends the wait that is under way, or else the next one.
    pub(crate) fn wake(&self) -> io::Result<()> {
        sys::eventfd_signal(self.event.as_fd())
    }

    /// Waits for events: so long at most, or for ever. Each batch comes in the kernel's order: the longest ready first.
    pub(crate) fn poll<'a>(
        &self,
        events: &'a mut Events,
        wait: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Event> + use<'a>> {
        let ep = self.ep.as_fd();
        match wait {
            None => sys::epoll_wait(ep, events, -1)?,
            Some(Duration::ZERO) => sys::epoll_wait(ep, events, 0)?,
            // To the nanosecond (trap TM4).
            Some(time) => sys::epoll_pwait2(ep, events, time)?,
        }
        Ok(events.iter().map(|&libc::epoll_event { events: mask, u64: data }| match SlotId::unpack(data) {
            BREAK => Event::Break,
            id => Event::Ready { id, read: mask & READ != 0, write: mask & WRITE != 0, cut: mask & CUT != 0 },
        }))
    }
}
