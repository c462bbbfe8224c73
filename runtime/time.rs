//! Sleeps, timeouts, intervals: Go's `time.Sleep`, `context.WithTimeout`, `time.Ticker`, as futures.

use super::budget;
use super::netpoll::slot::Shut;
use super::proc::Timer;
use super::runtime::Handle;
use futures_core::Stream;
use pin_project_lite::pin_project;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Waits until `duration` from now. A duration too long for the clock waits for ever. On an idle runtime it is late by what the
/// kernel takes to wake a thread, and by up to 50 us more where another sleep has ended so shortly before: those are ended
/// together.
///
/// # Panics
/// Outside a runtime; and when it is awaited after its runtime has ended.
///
/// # Cancel safety
/// Dropping it cancels the timer.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
/// gopark::run(async {
///     let start = Instant::now();
///     gopark::time::sleep(Duration::from_millis(2)).await;
///     assert!(start.elapsed() >= Duration::from_millis(2));
/// });
/// ```
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    Sleep::new("sleep", after(Instant::now(), duration))
}

/// Waits until `deadline`. One in the past is over at once.
///
/// # Panics
/// As [`sleep`].
#[track_caller]
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new("sleep_until", deadline)
}

/// `duration` after `start`, or as late as an `Instant` can be (trap TM5).
fn after(start: Instant, duration: Duration) -> Instant {
    // Some thirty years, where the clock would overflow.
    start.checked_add(duration).unwrap_or_else(|| start + Duration::from_secs(1 << 30))
}

/// The future of [`sleep`] and [`sleep_until`].
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    deadline: Instant,
    timer: Timer,
}

impl Sleep {
    #[track_caller]
    fn new(who: &str, deadline: Instant) -> Sleep {
        Sleep { deadline, timer: Handle::timer(who) }
    }

    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it has ended. Exact, also while nobody awaits it.
    pub fn is_elapsed(&self) -> bool {
        self.deadline <= Instant::now()
    }

    /// Gives it a new deadline, whether it has ended or not. Who waits for it is woken at the new one.
    pub fn reset(&mut self, deadline: Instant) {
        self.timer.reset(Some(deadline));
        self.deadline = deadline;
    }

    /// For what has errors: `Gone`, where the future itself panics.
    pub(crate) async fn or_gone(mut self) -> Result<(), Shut> {
        poll_fn(|cx| self.poll_or_gone(cx)).await
    }

    #[inline]
    fn poll_or_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Shut>> {
        ready!(self.timer.poll(self.deadline, cx.waker()))?;
        ready!(budget::poll_take(cx));
        Poll::Ready(Ok(()))
    }
}

/// Where nobody can be told by an error that the runtime has ended.
fn expect_runtime<T>(result: Result<T, Shut>) -> T {
    result.unwrap_or_else(|_| {
        panic!(
            "gopark: a sleep outlived its runtime, which was shut down: await it where that cannot happen, or not there"
        )
    })
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_or_gone(cx).map(expect_runtime)
    }
}

pin_project! {
    /// The future of [`timeout`] and [`timeout_at`].
    #[derive(Debug)]
    #[must_use = "a timeout does nothing unless it is awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        sleep: Sleep,
    }
}

/// Waits for `future`, but not longer than `duration`.
///
/// # Errors
/// [`Elapsed`], if the time is over first. The future is polled once in any case.
///
/// # Panics
/// As [`sleep`].
///
/// # Cancel safety
/// As safe as `future`.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// gopark::run(async {
///     let late = gopark::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
///     assert_eq!(std::io::Error::from(late.unwrap_err()).kind(), std::io::ErrorKind::TimedOut);
/// });
/// ```
#[track_caller]
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    timeout_at(after(Instant::now(), duration), future)
}

/// Waits for `future`, but not beyond `deadline`. Otherwise as [`timeout`].
#[track_caller]
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), sleep: Sleep::new("timeout", deadline) }
}

impl<F: Future> Timeout<F> {
    /// For what has errors: as [`Sleep::or_gone`].
    pub(crate) async fn or_gone(self) -> Result<Result<F::Output, Elapsed>, Shut> {
        let mut timeout = pin!(self);
        poll_fn(|cx| timeout.as_mut().poll_or_gone(cx)).await
    }

    fn poll_or_gone(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Result<F::Output, Elapsed>, Shut>> {
        let this = self.project();
        let had = budget::is_left();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(Ok(output)));
        }
        // A future that has used up the budget must not keep the time from being looked at.
        let _budget = (had && !budget::is_left()).then(budget::without_budget);
        this.sleep.poll_or_gone(cx).map_ok(|()| Err(Elapsed(())))
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_or_gone(cx).map(expect_runtime)
    }
}

/// The time of a [`timeout`] was over before its future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed(());
plain_error!(Elapsed, "the deadline has passed");

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, elapsed)
    }
}

/// Ticks every `period`; the first tick comes at once.
///
/// # Panics
/// If `period` is zero; and as [`sleep`].
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
/// gopark::run(async {
///     let start = Instant::now();
///     let mut interval = gopark::time::interval(Duration::from_millis(1));
///     for _ in 0..3 {
///         interval.tick().await;
///     }
///     assert!(start.elapsed() >= Duration::from_millis(2));
/// });
/// ```
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    interval_at(Instant::now(), period)
}

/// Ticks every `period`, for the first time at `start`. Otherwise as [`interval`].
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "gopark: an interval's period must not be zero");
    Interval { sleep: Sleep::new("interval", start), period, missed: MissedTick::default() }
}

/// What an [`Interval`] does after a tick that was taken late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissedTick {
    /// Ticks without pause until it has caught up.
    #[default]
    Burst,
    /// Counts the period from when the late tick was taken.
    Delay,
    /// Leaves out the ticks that were missed; the rest keep their times.
    Skip,
}

/// Made by [`interval`] and [`interval_at`]. Also a stream that never ends.
#[derive(Debug)]
#[must_use = "an interval does nothing unless its ticks are awaited"]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
    missed: MissedTick,
}

impl Interval {
    /// Waits for the next tick; returns when it was due.
    ///
    /// # Cancel safety
    /// Safe: a tick that is not taken comes again.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// The same, to be polled.
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(Pin::new(&mut self.sleep).poll(cx));
        let due = self.sleep.deadline();
        let now = Instant::now();
        let next = after(due, self.period);
        self.sleep.reset(match self.missed {
            MissedTick::Delay if next <= now => after(now, self.period),
            MissedTick::Skip if next <= now => {
                let into = (now - due).as_nanos() % self.period.as_nanos();
                // Less than the period, which here is less than the time since `due`: it fits.
                after(now, self.period - Duration::from_nanos(into as u64))
            }
            _ => next,
        });
        Poll::Ready(due)
    }

    /// The time from tick to tick.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What happens after a late tick.
    pub fn missed_tick(&self) -> MissedTick {
        self.missed
    }

    /// Decides what happens after a late tick.
    pub fn set_missed_tick(&mut self, missed: MissedTick) {
        self.missed = missed;
    }

    /// The next tick comes one period from now.
    pub fn reset(&mut self) {
        self.sleep.reset(after(Instant::now(), self.period));
    }
}

impl Stream for Interval {
    type Item = Instant;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Instant>> {
        self.poll_tick(cx).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::runtime::Builder;
    use futures::executor::block_on;
    use futures::task::noop_waker_ref;
    use std::future::pending;

    /// On another's executor: waiting when the runtime ends, and begun after that.
    #[test]
    fn shutdown_and_or_gone() {
        let hour = Duration::from_secs(3600);
        let runtime = Builder::new().workers(1).build().unwrap();
        let handle = runtime.handle().clone();
        let _entered = handle.enter();
        let mut sleeping = pin!(sleep(hour).or_gone());
        let mut timing = pin!(timeout(hour, pending::<()>()).or_gone());
        let cx = &mut Context::from_waker(noop_waker_ref());
        assert!(sleeping.as_mut().poll(cx).is_pending());
        assert!(timing.as_mut().poll(cx).is_pending());
        drop(runtime);
        assert_eq!(block_on(sleeping), Err(Shut::Gone));
        assert_eq!(block_on(timing), Err(Shut::Gone));
        assert_eq!(block_on(sleep(hour).or_gone()), Err(Shut::Gone));
        assert_eq!(block_on(timeout(hour, pending::<()>()).or_gone()), Err(Shut::Gone));
        assert_eq!(block_on(timeout(hour, async { 1 }).or_gone()), Ok(Ok(1)));
        assert_eq!(block_on(timeout(Duration::ZERO, pending::<()>()).or_gone()), Ok(Err(Elapsed(()))));
    }
}
