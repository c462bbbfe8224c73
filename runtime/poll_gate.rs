//! The few calls of the netpoller that `net` may make: Go's `internal/poll.runtime_poll*`.

use super::netpoll::Netpoll;
use super::netpoll::desc::PollDesc;
use super::netpoll::slot::Slot;
use super::proc::Sched;
use super::runtime::Handle;
use super::timer::NEVER;
use super::wake_list::WakeList;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

pub(crate) use super::netpoll::desc::Side;
pub(crate) use super::netpoll::slot::{Go, Shut, Start, Ticket};
pub(crate) use super::rare::rare;
pub(crate) use super::sys::complain;
pub(crate) use super::syscall::syscall6;

/// A descriptor's registration with a netpoller, which it keeps alive. Dropping it ends it: Go's `runtime_pollClose`.
#[allow(missing_debug_implementations, reason = "nobody can name it")]
pub struct Gate {
    netpoll: Arc<Netpoll>,
    /// Stays where it is while `netpoll` lives.
    desc: NonNull<PollDesc>,
    fd: BorrowedFd<'static>,
}

// SAFETY: `desc` is a shared borrow of a Sync type, valid for as long as `netpoll` is held.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

/// What an operation gets whose runtime is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeGone(());
plain_error!(
    RuntimeGone,
    "the socket's runtime has been shut down; keep the Runtime alive for as long as its sockets are used"
);

/// What an operation gets on a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed(());
plain_error!(Closed, "the socket was closed by a call of `close`");

impl From<Shut> for io::Error {
    fn from(shut: Shut) -> io::Error {
        match shut {
            Shut::Closed => io::Error::new(io::ErrorKind::NotConnected, Closed(())),
            Shut::Gone => io::Error::other(RuntimeGone(())),
            Shut::Expired => io::ErrorKind::TimedOut.into(),
        }
    }
}

impl Gate {
    /// Registers a descriptor, which outlives the gate, with the current runtime, or, outside of one, with that of `by`.
    /// Go's `runtime_pollOpen`.
    #[track_caller]
    pub(crate) fn open(fd: BorrowedFd<'static>, start: Start, by: Option<&Gate>) -> io::Result<Gate> {
        let netpoll = Handle::netpoll("a socket", by.map(|gate| &gate.netpoll));
        let id = netpoll.open(fd, start)?.ok_or(Shut::Gone)?;
        let desc = NonNull::from(netpoll.desc(id));
        Ok(Gate { netpoll, desc, fd })
    }

    /// Refuses every operation from now on and wakes all that wait. Go's `runtime_pollUnblock`.
    pub(crate) fn unblock(&self) {
        self.serve(|list| self.desc().shut(self.slot(Side::Read).id().fdseq, Shut::Closed, list));
    }

    /// Until when operations of that direction may wait. One that has passed counts until it is set anew. Go's
    /// `runtime_pollSetDeadline`.
    #[inline]
    pub(crate) fn set_deadline(&self, side: Side, at: Option<Instant>) -> io::Result<()> {
        let when = at.map_or(NEVER, |at| self.netpoll.clock.when(at));
        if let Err(shut @ (Shut::Closed | Shut::Gone)) = self.slot(side).ready() {
            return Err(shut.into());
        }
        self.serve(|list| self.netpoll.set_deadline(self.desc(), side, when, list));
        Ok(())
    }

    /// At that time an operation is worth another try, whatever the kernel says. By the gate's clock: see `now`.
    pub(crate) fn retry_at(&self, side: Side, when: u64) {
        self.netpoll.retry_at(self.slot(side).id(), when);
    }

    /// The nanoseconds of the gate's clock.
    pub(crate) fn now(&self) -> u64 {
        self.netpoll.clock.now()
    }

    /// May an operation make its system call?
    #[inline]
    pub(crate) fn begin(&self, side: Side) -> Result<Option<Go>, Shut> {
        self.slot(side).begin().inspect_err(|shut| self.expired(side, *shut))
    }

    /// Whoever sees that one direction's deadline has passed finds the other's passed, too, if it has: each has a timer of
    /// its own, which may be on its way still.
    #[cold]
    fn expired(&self, side: Side, shut: Shut) {
        if shut == Shut::Expired {
            let other = if side == Side::Read { Side::Write } else { Side::Read };
            self.serve(|list| self.netpoll.fire(self.slot(other).id(), self.now(), list));
        }
    }

    /// After the system call. `left`: it did not drain the kernel.
    #[inline]
    pub(crate) fn finish(&self, side: Side, left: bool) {
        if left && !self.slot(side).finish() {
            self.hand_on(side);
        }
    }

    #[cold]
    fn hand_on(&self, side: Side) {
        let slot = self.slot(side);
        self.serve(|list| slot.edge(slot.id().fdseq, side == Side::WriteLock, list));
    }

    /// Somebody has come for the lock of `write_all`.
    pub(crate) fn uncut(&self) {
        self.slot(Side::WriteLock).uncut();
    }

    /// Has it been closed, perhaps by another thread, during a call?
    pub(crate) fn is_closed(&self, side: Side) -> bool {
        self.slot(side).ready() == Err(Shut::Closed)
    }

    /// Is there anything to try for? Observes only.
    pub(crate) fn is_ready(&self, side: Side) -> io::Result<bool> {
        Ok(self.slot(side).ready().inspect_err(|shut| self.expired(side, *shut))?)
    }

    /// Go's `runtime_pollWait`, to be polled: false if there is news, so that the caller looks again.
    pub(crate) fn arm(&self, side: Side, op: Option<&mut Ticket>, waker: &Waker, also_try: bool) -> bool {
        let keep = || Sched::is_small_here(waker, &self.netpoll);
        self.serve(|list| self.slot(side).arm(op, waker, keep, also_try, list))
    }

    /// An operation that waited has come to its end: see [`Slot::leave`].
    #[inline]
    pub(crate) fn leave(&self, side: Side, ticket: &mut Ticket, dropped: bool) {
        if *ticket == 0 {
            return;
        }
        let ticket = std::mem::take(ticket);
        if !self.slot(side).has_left() {
            self.take_out(side, ticket, dropped);
        }
    }

    #[cold]
    fn take_out(&self, side: Side, ticket: Ticket, dropped: bool) {
        self.serve(|list| self.slot(side).leave(ticket, dropped, list));
    }

    /// Does something to a slot, and wakes whom it chose.
    fn serve<R>(&self, f: impl FnOnce(&mut WakeList) -> R) -> R {
        let mut list = WakeList::default();
        let result = f(&mut list);
        if !list.is_untouched() {
            if self.netpoll.keep_batons(&mut list) && !Sched::passes_batons(&self.netpoll) {
                // The Ms may all be asleep: one of them has to look (trap P23).
                self.netpoll.netpoll_break();
            }
            self.netpoll.deliver(&mut list);
        }
        result
    }

    #[inline]
    fn desc(&self) -> &PollDesc {
        // SAFETY: descriptors are type-stable: they live as long as the netpoller, which is held.
        unsafe { self.desc.as_ref() }
    }

    #[inline]
    fn slot(&self, side: Side) -> &Slot {
        self.desc().slot(side)
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.netpoll.close(self.fd, self.slot(Side::Read).id());
    }
}
