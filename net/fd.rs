//! A descriptor and its registration: Go's `internal/poll.FD`. The one EAGAIN loop of the project is here.
//!
//! Go guards an FD with a lock and a reference count (fdMutex), since anyone may close it at any time. Here an operation
//! borrows the `Fd`, so it cannot be closed under it.

use super::sys::{self, Received};
use crate::runtime::budget;
use crate::runtime::poll_gate::{Gate, Go, Shut, Side, Start, Ticket, rare};
use pin_project_lite::pin_project;
use std::fmt;
use std::io;
use std::marker::{PhantomData, PhantomPinned};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// An open socket `T`, registered with the netpoller. Dropping it takes it out and closes it.
pub(crate) struct Fd<T> {
    /// Goes first: a descriptor is taken out before it is closed.
    gate: Gate,
    io: T,
    _outlived: Outlived<T>,
}

/// Dropping an `Fd` uses the descriptor, which `T` may have borrowed. The gate's `Drop` does not say so, this one does:
///
/// ```compile_fail,E0597
/// use std::{fs::File, os::fd::AsFd};
/// gopark::block_on(async {
///     let fd;
///     let file = File::open("/dev/null").unwrap();
///     fd = gopark::io::PollFd::new(file.as_fd());
/// });
/// ```
struct Outlived<T>(PhantomData<T>);

impl<T> Drop for Outlived<T> {
    fn drop(&mut self) {}
}

/// A system call on a descriptor, to be made as often as it takes.
pub(crate) trait Op<R>: FnMut(BorrowedFd<'_>) -> io::Result<R> {}
impl<R, F: FnMut(BorrowedFd<'_>) -> io::Result<R>> Op<R> for F {}

/// What a system call's result says of the kernel's buffer.
pub(crate) trait Transfer: Sized {
    /// What a read gives that asks for nothing. It makes no call: that would say the same at the end of the stream.
    const NOTHING: Option<Self> = None;

    /// How much it moved. Of something whole, such as a connection and its address, that tells nothing.
    fn bytes(&self) -> Option<usize> {
        None
    }
}

impl Transfer for usize {
    const NOTHING: Option<Self> = Some(0);

    fn bytes(&self) -> Option<usize> {
        Some(*self)
    }
}

/// The kernel moves less than this in one call, however much is there (MAX_RW_COUNT, where pages are as large as they come).
const MOST: usize = 0x7fff_0000;

/// Is that less than the call could have moved? Zero is the end of the stream, and does not say that an edge will come.
#[inline]
fn is_short(bytes: usize, asked: usize) -> bool {
    (1..asked.min(MOST)).contains(&bytes)
}

impl Transfer for () {}
impl<A, B> Transfer for (A, B) {}
impl<A> Transfer for Received<A> {}

impl<T: AsFd> Fd<T> {
    /// Registers `io` where [`Gate::open`] says. It must not block by the time of the first operation.
    #[track_caller]
    pub(crate) fn new(io: T, start: Start, by: Option<&Gate>) -> io::Result<Self> {
        // SAFETY: `io` keeps it open: it goes after the gate, what it may have borrowed outlives both, and nobody gets more
        // of it before than a shared borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(io.as_fd().as_raw_fd()) };
        Ok(Fd { gate: Gate::open(fd, start, by)?, io, _outlived: Outlived(PhantomData) })
    }

    pub(crate) fn io(&self) -> &T {
        &self.io
    }

    /// Takes the socket out of the netpoller.
    pub(crate) fn into_inner(self) -> T {
        self.io
    }
}

impl<T> Deref for Fd<T> {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.gate
    }
}

impl<T: fmt::Debug> fmt::Debug for Fd<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.io, f)
    }
}

/// Operations on a descriptor, whatever it is of.
impl Gate {
    /// Waits for so long, or until writing is refused; keeps nobody else from it. For datagrams: what it waits at is the lock
    /// of `write_all`, for which they have no use. All wait for equally long, so the first in line is the first to go on.
    pub(crate) async fn pause_writing(&self, time: Duration) -> io::Result<()> {
        let until = self.now() + time.as_nanos() as u64;
        self.retry_at(Side::WriteLock, until);
        let is_over = || (self.now() >= until).then_some(()).ok_or(io::ErrorKind::WouldBlock.into());
        self.io_op(Side::WriteLock, 0, |_| is_over()).await
    }

    /// One attempt, if it is worth one: EAGAIN is an error. `asked` is how much the call could move at most.
    pub(crate) fn try_io<R: Transfer>(&self, side: Side, asked: usize, mut op: impl Op<R>) -> io::Result<R> {
        self.attempt(side, asked, &mut op)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// An operation, to be polled.
    #[inline(always)]
    pub(crate) fn poll_io<R: Transfer>(
        &self,
        side: Side,
        cx: &mut Context<'_>,
        ticket: Option<&mut Ticket>,
        asked: usize,
        mut op: impl Op<R>,
    ) -> Poll<io::Result<R>> {
        ready!(budget::poll_take(cx));
        self.poll_at(
            side,
            cx,
            ticket,
            true,
            #[inline(always)]
            || self.attempt(side, asked, &mut op).transpose(),
        )
    }

    /// The EAGAIN loop: an attempt whenever there is news, else the waiter is queued. `also_try`: see [`Gate::arm`].
    #[inline(always)]
    fn poll_at<R>(
        &self,
        side: Side,
        cx: &mut Context<'_>,
        mut ticket: Option<&mut Ticket>,
        also_try: bool,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Poll<R> {
        loop {
            if let Some(result) = attempt() {
                // Who only observes leaves what it saw for all: the next waiter has its turn.
                ticket.into_iter().for_each(|ticket| self.leave(side, ticket, !also_try));
                return Poll::Ready(result);
            }
            if self.arm(side, ticket.as_deref_mut(), cx.waker(), also_try) {
                return Poll::Pending;
            }
        }
    }

    /// `None`: the kernel had nothing.
    #[inline(always)]
    fn attempt<R: Transfer>(&self, side: Side, asked: usize, op: &mut impl Op<R>) -> io::Result<Option<R>> {
        if let (0, Side::Read, nothing @ Some(_)) = (asked, side, R::NOTHING) {
            rare();
            self.is_ready(side)?;
            return Ok(nothing);
        }
        let Some(Go { cut }) = self.begin(side)? else { return Ok(None) };
        let begun = Begun { gate: self, side };
        loop {
            match op(self.as_fd()) {
                // Not the peer has ended the stream, but a `close` during the call.
                Ok(done) if done.bytes() == Some(0) && self.is_closed(side) => {
                    rare();
                    return Err(Shut::Closed.into());
                }
                Ok(done) => {
                    std::mem::forget(begun);
                    let drained = !cut && done.bytes().is_some_and(|bytes| is_short(bytes, asked));
                    self.finish(side, !drained);
                    return Ok(Some(done));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::mem::forget(begun);
                    return Ok(None);
                }
                Err(error) => {
                    rare();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(if self.is_closed(side) { Shut::Closed.into() } else { error });
                    }
                }
            }
        }
    }

    /// An operation as a future. Cancel-safe: what a system call moved is always returned by the poll that made it.
    pub(crate) fn io_op<R: Transfer>(
        &self,
        side: Side,
        asked: usize,
        mut op: impl Op<R>,
    ) -> impl Future<Output = io::Result<R>> {
        self.waiting(
            side,
            #[inline(always)]
            move |wait, cx| wait.gate.poll_io(wait.side, cx, Some(&mut wait.ticket), asked, &mut op),
        )
    }

    /// Waits until an operation is worth trying. Only observes.
    pub(crate) fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> {
        self.waiting(side, |Wait { gate, side, ticket, .. }, cx| {
            ready!(budget::poll_take(cx));
            let look = || gate.is_ready(*side).map(|is| is.then_some(())).transpose();
            gate.poll_at(*side, cx, Some(ticket), false, look)
        })
    }

    /// Sends all of `buf`, under the lock that keeps every other `write_all` of the socket from it until then. Both waits,
    /// for the lock and for room, are one future: half as large as one for each in an `async fn`.
    pub(crate) fn write_all(&self, mut buf: &[u8]) -> impl Future<Output = io::Result<()>> {
        let mut gave_way = false;
        self.waiting(
            Side::WriteLock,
            #[inline(always)]
            move |wait, cx| {
                let gate = wait.gate;
                if !wait.locked {
                    if buf.is_empty() {
                        rare();
                        // No call follows that would; nor does one an error, below.
                        ready!(budget::poll_take(cx));
                    }
                    if let Err(shut) = ready!(wait.poll_lock(cx, &mut gave_way)) {
                        rare();
                        ready!(budget::poll_take(cx));
                        return Poll::Ready(Err(shut.into()));
                    }
                }
                let mut result = Ok(());
                while result.is_ok() && !buf.is_empty() {
                    let send = |s: BorrowedFd<'_>| sys::send(s, buf);
                    match ready!(gate.poll_io(Side::Write, cx, Some(&mut wait.ticket), buf.len(), send)) {
                        Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                        Ok(n) => buf = &buf[n..],
                        Err(error) => result = Err(error),
                    }
                }
                wait.unlock();
                Poll::Ready(result)
            },
        )
    }

    /// Who has just let go of the lock, and comes again at once, lets the one that was chosen go first; but only once, since that
    /// one may be forgotten (trap P23).
    #[cold]
    fn gives_way(&self, cx: &Context<'_>, gave_way: &mut bool) -> bool {
        self.uncut();
        let gives = !std::mem::replace(gave_way, true);
        if gives {
            cx.waker().wake_by_ref();
        }
        gives
    }

    fn waiting<R, F>(&self, side: Side, poll: F) -> Waiting<'_, F>
    where
        F: for<'a> FnMut(&mut Wait<'a>, &mut Context<'_>) -> Poll<R>,
    {
        let wait = Wait { gate: self, side, ticket: 0, locked: false, over: false };
        Waiting { wait, poll, as_async_fn: PhantomPinned }
    }
}

pin_project! {
    /// An operation as a future: what `poll` needs of the place it gets, so as not to hold it twice. Whoever offers one returns
    /// it as it is: an `async fn` around it would keep its arguments beside it, and be one frame more.
    struct Waiting<'a, F> {
        wait: Wait<'a>,
        poll: F,
        // Nobody is to rely on `Unpin`, and have it taken away by an `async fn` some day.
        #[pin]
        as_async_fn: PhantomPinned,
    }
}

impl<R, F: FnMut(&mut Wait<'_>, &mut Context<'_>) -> Poll<R>> Future for Waiting<'_, F> {
    type Output = R;

    /// Inline, with all that is under it: each return to a frame from before a system call is mispredicted, since the kernel's
    /// own calls have taken the place of what the processor had remembered.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        let this = self.project();
        assert!(!this.wait.over, "an operation on a socket was polled again after it had ended");
        // In a panic it stays so.
        this.wait.over = true;
        let result = (this.poll)(this.wait, cx);
        this.wait.over = result.is_ready();
        result
    }
}

/// What has begun and leaves the next one its turn when this is dropped: an operation that ends in an error or a panic.
struct Begun<'a> {
    gate: &'a Gate,
    side: Side,
}

impl Drop for Begun<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.finish(self.side, true);
    }
}

/// A place among those that wait on one side. Dropping it leaves that: if it had the turn, that goes to the next.
struct Wait<'a> {
    gate: &'a Gate,
    side: Side,
    ticket: Ticket,
    /// It has the lock of `write_all`, and waits for room.
    locked: bool,
    over: bool,
}

impl Wait<'_> {
    /// Takes the lock of `write_all`; from then on it waits for room.
    #[inline(always)]
    fn poll_lock(&mut self, cx: &mut Context<'_>, gave_way: &mut bool) -> Poll<Result<(), Shut>> {
        *gave_way |= self.ticket != 0;
        let gate = self.gate;
        let take = || gate.begin(Side::WriteLock).transpose();
        let Go { cut: for_another } = ready!(gate.poll_at(Side::WriteLock, cx, Some(&mut self.ticket), true, take))?;
        (self.locked, self.side) = (true, Side::Write);
        if for_another && gate.gives_way(cx, gave_way) {
            self.unlock();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn unlock(&mut self) {
        if std::mem::take(&mut self.locked) {
            self.side = Side::WriteLock;
            self.gate.finish(Side::WriteLock, true);
        }
    }
}

impl Drop for Wait<'_> {
    #[inline]
    fn drop(&mut self) {
        // Not where it has come to its end.
        if self.ticket != 0 || self.locked {
            rare();
            self.gate.leave(self.side, &mut self.ticket, true);
            self.unlock();
        }
    }
}

#[cfg(test)]
mod tests;
