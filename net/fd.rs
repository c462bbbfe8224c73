//! A descriptor and its registration: Go's `internal/poll.FD`. The one EAGAIN loop of the project is here.
//!
//! Go guards an FD with a lock and a reference count (fdMutex), since anyone may close it at any time. Here an operation
//! borrows the `Fd`, so it cannot be closed under it.

use super::sys::Received;
use crate::runtime::budget;
use crate::runtime::poll_gate::{Begin, Gate, Side, Start, Ticket, Waiter};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// An open socket `T`, registered with the netpoller. Dropping it takes it out and closes it.
pub struct Fd<T: AsFd> {
    gate: Gate,
    /// `None` only on the way out of `into_inner`.
    io: Option<T>,
    /// A short transfer shows that the kernel was drained. True of TCP alone: traps P14, P25.
    short_is_sound: bool,
}

/// What a system call's result says of the kernel's buffer.
pub(crate) trait Transfer {
    /// It moved less than it could have. Something whole, such as a connection and its address, never shows that.
    fn is_short(&self, _asked: usize) -> bool {
        false
    }
}

impl Transfer for usize {
    fn is_short(&self, asked: usize) -> bool {
        // Zero is the end of the stream, or nothing asked for: neither says that an edge will come.
        (1..asked).contains(self)
    }
}

impl<A, B> Transfer for (A, B) {}
impl<A> Transfer for Received<A> {}

impl<T: AsFd> Fd<T> {
    /// Registers `io`, which must not block.
    pub(crate) fn new(io: T, read: Start, write: Start, short_is_sound: bool) -> io::Result<Self> {
        let gate = Gate::open(io.as_fd(), read, write, None)?;
        Ok(Fd { gate, io: Some(io), short_is_sound })
    }

    /// The same for a connection that this listener has accepted, perhaps on an executor that knows no runtime.
    pub(crate) fn accepted<S: AsFd>(&self, io: S, short_is_sound: bool) -> io::Result<Fd<S>> {
        let gate = Gate::open(io.as_fd(), Start::Try, Start::Try, Some(&self.gate))?;
        Ok(Fd { gate, io: Some(io), short_is_sound })
    }

    pub(crate) fn io(&self) -> &T {
        self.io.as_ref().expect("it leaves in `into_inner` only")
    }

    /// Takes the socket out of the netpoller.
    pub(crate) fn into_inner(mut self) -> T {
        self.gate.close(self.io().as_fd());
        self.io.take().expect("it leaves here only")
    }

    /// Refuses every operation from now on and wakes all that wait.
    pub(crate) fn unblock(&self) {
        self.gate.unblock();
    }

    /// Until when operations may wait: Go's `setDeadlineImpl`. One that is expired stays so until it is set anew.
    #[inline]
    pub(crate) fn set_deadline(&self, sides: &[Side], at: Option<Instant>) -> io::Result<()> {
        sides.iter().try_for_each(|side| self.gate.set_deadline(*side, at))
    }

    /// As if there were news of that side.
    pub(crate) fn news(&self, side: Side) {
        self.gate.finish(side, true);
    }

    /// As if there were news of that side after this time.
    pub(crate) fn retry_after(&self, side: Side, time: Duration) {
        self.gate.retry_after(side, time);
    }

    /// Waits for half to all of that time, or until writing is refused; keeps nobody else from it. For datagrams: what it
    /// waits at is the lock of `write_all`, for which they have no use.
    pub(crate) async fn pause_writing(&self, time: Duration) -> io::Result<()> {
        let until = self.gate.retry_together(Side::WriteLock, time);
        std::future::poll_fn(|cx| {
            loop {
                // The news was for all that were armed, so whoever comes first may take it.
                if let Begin::Shut(shut) = self.gate.begin(Side::WriteLock) {
                    return Poll::Ready(Err(shut.into()));
                }
                if self.gate.arm(Side::WriteLock, Waiter::Poll, cx.waker(), true) {
                    // Only now: whoever was not armed when its time came sees it here.
                    return if self.gate.has_come(until) { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
            }
        })
        .await
    }

    /// One attempt, if it is worth one: EAGAIN is an error. `asked` is how much the call could move at most.
    pub(crate) fn try_io<R: Transfer>(
        &self,
        side: Side,
        asked: usize,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.attempt(side, asked, &mut op)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// The EAGAIN loop, to be polled: an attempt whenever there is news, else the waiter is queued.
    pub(crate) fn poll_io<R: Transfer>(
        &self,
        side: Side,
        cx: &mut Context<'_>,
        mut ticket: Option<&mut Ticket>,
        asked: usize,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        ready!(budget::poll_take(cx));
        loop {
            let result = self.attempt(side, asked, &mut op).transpose();
            if let Some(result) = result {
                ticket.into_iter().for_each(|ticket| self.gate.leave(side, ticket, false));
                return Poll::Ready(result);
            }
            let waiter = ticket.as_deref_mut().map_or(Waiter::Poll, Waiter::Op);
            if self.gate.arm(side, waiter, cx.waker(), true) {
                return Poll::Pending;
            }
        }
    }

    /// `None`: the kernel had nothing.
    #[inline]
    fn attempt<R: Transfer>(
        &self,
        side: Side,
        asked: usize,
        op: &mut impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<Option<R>> {
        let cut = match self.gate.begin(side) {
            Begin::Go { cut } => cut,
            Begin::Nil => return Ok(None),
            Begin::Shut(shut) => return Err(shut.into()),
        };
        let begun = Begun { gate: &self.gate, side };
        loop {
            match op(self.io()) {
                Ok(done) => {
                    std::mem::forget(begun);
                    let drained = self.short_is_sound && !cut && done.is_short(asked);
                    self.gate.finish(side, !drained);
                    return Ok(Some(done));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::mem::forget(begun);
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// An operation that may wait is dropped: if it had the turn, that goes to the next.
    pub(crate) fn leave(&self, side: Side, ticket: &mut Ticket) {
        self.gate.leave(side, ticket, true);
    }

    /// An operation as a future.
    pub(crate) fn io_op<R: Transfer, F: FnMut(&T) -> io::Result<R>>(
        &self,
        side: Side,
        asked: usize,
        op: F,
    ) -> Io<'_, T, F> {
        Io { wait: Wait { fd: self, side, ticket: 0 }, asked, op }
    }

    /// Waits until an operation is worth trying. Only observes.
    pub(crate) fn ready(&self, side: Side) -> Readiness<'_, T> {
        Readiness(Wait { fd: self, side, ticket: 0 })
    }

    /// What `ready` saw was spurious: the next edge counts.
    pub(crate) fn forget_ready(&self, side: Side) {
        // Begun and never finished is as if a call had ended in EAGAIN.
        let _ = self.gate.begin(side);
    }

    /// Takes the lock of `write_all`: until it is dropped, no other of the socket writes.
    pub(crate) async fn lock_writes(&self) -> io::Result<Begun<'_>> {
        let mut wait = Wait { fd: self, side: Side::WriteLock, ticket: 0 };
        std::future::poll_fn(move |cx| {
            // The whole of it: the closure would otherwise capture a copy of the number in it, and the rest stay outside.
            let wait = &mut wait;
            loop {
                match self.gate.begin(Side::WriteLock) {
                    Begin::Go { .. } => {
                        self.gate.leave(Side::WriteLock, &mut wait.ticket, false);
                        return Poll::Ready(Ok(Begun { gate: &self.gate, side: Side::WriteLock }));
                    }
                    Begin::Shut(shut) => return Poll::Ready(Err(shut.into())),
                    Begin::Nil => {
                        if self.gate.arm(Side::WriteLock, Waiter::Op(&mut wait.ticket), cx.waker(), true) {
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
        .await
    }
}

/// What has begun and leaves the next one its turn when this is dropped: an operation that ends in an error or a panic, or
/// the lock of `write_all`.
pub(crate) struct Begun<'a> {
    gate: &'a Gate,
    side: Side,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.gate.finish(self.side, true);
    }
}

impl<T: AsFd> Drop for Fd<T> {
    fn drop(&mut self) {
        if let Some(io) = &self.io {
            self.gate.close(io.as_fd());
        }
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for Fd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.io(), f)
    }
}

/// An operation's place among those that wait on one side. Dropping it leaves that.
struct Wait<'a, T: AsFd> {
    fd: &'a Fd<T>,
    side: Side,
    ticket: Ticket,
}

impl<T: AsFd> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        self.fd.leave(self.side, &mut self.ticket);
    }
}

/// See [`Fd::io_op`]. Cancel-safe: what a system call moved is always returned by the poll that made it.
pub(crate) struct Io<'a, T: AsFd, F> {
    wait: Wait<'a, T>,
    asked: usize,
    op: F,
}

// No pin is ever projected.
impl<T: AsFd, F> Unpin for Io<'_, T, F> {}

impl<T: AsFd, R: Transfer, F: FnMut(&T) -> io::Result<R>> Future for Io<'_, T, F> {
    type Output = io::Result<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let Io { wait, asked, op } = &mut *self;
        wait.fd.poll_io(wait.side, cx, Some(&mut wait.ticket), *asked, op)
    }
}

/// See [`Fd::ready`].
pub(crate) struct Readiness<'a, T: AsFd>(Wait<'a, T>);

impl<T: AsFd> Future for Readiness<'_, T> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(budget::poll_take(cx));
        let Wait { fd, side, ticket } = &mut self.0;
        loop {
            if fd.gate.ready(*side)? {
                // What it saw is left for all: the next waiter has its turn.
                fd.gate.leave(*side, ticket, true);
                return Poll::Ready(Ok(()));
            }
            if fd.gate.arm(*side, Waiter::Op(ticket), cx.waker(), false) {
                return Poll::Pending;
            }
        }
    }
}
