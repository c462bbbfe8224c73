//! Sleeps, timeouts and intervals. A sleep is never early; how late it is, is bounded only where a bound shows a bug
//! and no load can break it.

mod support;

use gopark::time::{MissedTick, Sleep, interval, interval_at, sleep, sleep_until, timeout, timeout_at};
use gopark::{Builder, Runtime};
use std::future::{pending, poll_fn, ready};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::watchdog;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

fn poll_once(sleep: &mut Sleep) -> Poll<()> {
    Pin::new(sleep).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn sleep_is_never_early() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    for micros in [0, 1, 10, 100, 999, 1000, 1001, 5000] {
        let wanted = Duration::from_micros(micros);
        let (by_task, by_block_on) = (
            rt.run(async move {
                let start = Instant::now();
                sleep(wanted).await;
                start.elapsed()
            }),
            rt.block_on(async {
                let start = Instant::now();
                sleep(wanted).await;
                start.elapsed()
            }),
        );
        assert!(by_task >= wanted && by_block_on >= wanted, "{wanted:?}: {by_task:?} {by_block_on:?}");
    }
}

/// Trap TM4: of many sleeps of 100 us the shortest is far below the millisecond that a rounded epoll timeout takes.
#[test]
fn short_sleep_is_not_rounded_to_milliseconds() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let best = rt.run(async {
        let mut best = HOUR;
        for _ in 0..100 {
            let start = Instant::now();
            sleep(Duration::from_micros(100)).await;
            best = best.min(start.elapsed());
        }
        best
    });
    assert!(best < Duration::from_micros(900), "{best:?}");
}

/// Sleeps that one worker looks at in one go end in the order of their deadlines.
#[test]
fn sleeps_end_in_order() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    // It shows something only if all are armed before the first is due.
    let shown = (0..14).any(|power| {
        let start = Instant::now() + MS * (1 << power);
        let ended = Arc::new(Mutex::new(Vec::new()));
        let there = ended.clone();
        let in_time = rt.run(async move {
            let tasks = [7, 3, 9, 1, 5, 0, 8, 2, 6, 4].map(|n| {
                let ended = there.clone();
                gopark::spawn(async move {
                    let mut sleep = pin!(sleep_until(start + n * MS));
                    let is_over = poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx).is_ready())).await;
                    if is_over || start <= Instant::now() {
                        return false;
                    }
                    sleep.await;
                    ended.lock().unwrap().push(n);
                    true
                })
            });
            let mut in_time = true;
            for task in tasks {
                in_time &= task.await.unwrap();
            }
            in_time
        });
        if in_time {
            assert_eq!(*ended.lock().unwrap(), (0..10).collect::<Vec<_>>());
        }
        in_time
    });
    assert!(shown, "a sleep was never armed in time");
}

/// Trap TM5: zero, the past, and durations that no clock can hold.
#[test]
fn sleep_at_the_ends_of_the_range() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        assert_eq!(poll_once(&mut sleep(Duration::ZERO)), Poll::Ready(()));
        let now = Instant::now();
        assert_eq!(poll_once(&mut sleep_until(now)), Poll::Ready(()));
        assert_eq!(
            poll_once(&mut sleep_until(now.checked_sub(Duration::from_secs(1)).unwrap_or(now))),
            Poll::Ready(())
        );
        for huge in [
            Duration::MAX,
            Duration::from_secs(u64::MAX),
            Duration::from_nanos(u64::MAX),
            Duration::from_millis(u64::MAX),
        ] {
            let mut long = sleep(huge);
            assert!(poll_once(&mut long).is_pending() && !long.is_elapsed());
            assert!(timeout(huge, ready(3)).await == Ok(3));
            let mut beside = Box::pin(timeout(huge, pending::<()>()));
            assert!(beside.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            // One that is armed beside it still ends.
            sleep(MS).await;
            let mut ticks = interval(huge);
            ticks.tick().await;
            assert!(Pin::new(&mut ticks).poll_tick(&mut Context::from_waker(Waker::noop())).is_pending());
            let mut ticks = interval_at(Instant::now(), huge);
            for missed in [MissedTick::Delay, MissedTick::Skip] {
                ticks.set_missed_tick(missed);
                ticks.reset();
            }
        }
    });
}

#[test]
fn reset_and_is_elapsed() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let start = Instant::now();
        let mut timer = sleep(HOUR);
        assert!(poll_once(&mut timer).is_pending() && !timer.is_elapsed());
        // To an earlier time.
        timer.reset(start + MS);
        assert_eq!(timer.deadline(), start + MS);
        (&mut timer).await;
        assert!(timer.is_elapsed() && start.elapsed() >= MS);
        // One that has ended, to a later time; polled again it stays ended.
        assert_eq!(poll_once(&mut timer), Poll::Ready(()));
        let later = Instant::now() + 2 * MS;
        timer.reset(later);
        (&mut timer).await;
        assert!(Instant::now() >= later);
        // One that waits, to a later time: the old one does not end it.
        timer.reset(Instant::now() + MS);
        assert!(poll_once(&mut timer).is_pending());
        timer.reset(Instant::now() + HOUR);
        sleep(3 * MS).await;
        assert!(poll_once(&mut timer).is_pending() && !timer.is_elapsed());
        // To the past.
        timer.reset(start);
        assert!(timer.is_elapsed());
        assert_eq!(poll_once(&mut timer), Poll::Ready(()));
        // Elapsed, and nobody has asked.
        let timer = sleep(MS);
        sleep(2 * MS).await;
        assert!(timer.is_elapsed());
    });
}

/// Its one worker is busy, and has not come to fire it.
#[test]
fn due_sleep_is_ready_though_nobody_has_fired_it() {
    let _watchdog = watchdog(60);
    runtime(1).run(async {
        let mut timer = sleep(MS);
        let _armed = poll_once(&mut timer);
        while !timer.is_elapsed() {
            std::hint::spin_loop();
        }
        assert_eq!(poll_once(&mut timer), Poll::Ready(()));
    });
}

#[test]
fn timeout_of_futures_that_are_ready_pending_and_late() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        assert_eq!(timeout(Duration::ZERO, ready(1)).await, Ok(1), "the future is polled once in any case");
        assert_eq!(timeout_at(Instant::now(), ready(2)).await, Ok(2));
        let elapsed = timeout(MS, pending::<()>()).await.unwrap_err();
        assert_eq!(elapsed.to_string(), "the deadline has passed");
        let error = io::Error::from(elapsed);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.get_ref().is_some_and(|inner| inner.is::<gopark::time::Elapsed>()));
        assert!(timeout(MS, sleep(HOUR)).await.is_err());
        assert_eq!(timeout(HOUR, sleep(MS)).await, Ok(()));
        // What is timed out is the wait for a task, not the task.
        let mut task = gopark::spawn(async {
            sleep(3 * MS).await;
            5
        });
        assert!(timeout(Duration::ZERO, &mut task).await.is_err());
        assert_eq!(task.await.unwrap(), 5);
    });
}

/// A future that is always ready again, and one that uses up its budget, cannot keep a timeout from its end.
#[test]
fn timeout_of_a_future_that_never_rests() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let mut polls = 0;
        let spinning = poll_fn(|cx| -> Poll<()> {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(timeout(MS, spinning).await.is_err());
        assert!(polls > 0);
        let listener = gopark::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.close();
        let failing = async {
            loop {
                assert!(listener.accept().await.is_err());
            }
        };
        assert!(timeout(5 * MS, failing).await.map(|(): ()| ()).is_err());
    });
}

/// Nor does a loop around timeouts that are over at once keep its worker from others, no more than one around sleeps.
#[test]
fn timeouts_in_a_row_that_are_over_at_once() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).retake(false).build().unwrap();
    rt.run(async {
        let other = gopark::spawn(async {});
        while !other.is_finished() {
            timeout(Duration::ZERO, pending::<()>()).await.unwrap_err();
        }
    });
}

/// Stalls the task, so that its next tick is late.
fn stall_until(at: Instant) {
    while Instant::now() <= at {
        thread::yield_now();
    }
}

/// The instants that `tick` returns are when the ticks were due, to the nanosecond.
#[test]
fn interval_and_ticks_in_time() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let start = Instant::now() + MS;
        let mut ticks = interval_at(start, MS);
        assert_eq!((ticks.period(), ticks.missed_tick()), (MS, MissedTick::Burst));
        for n in 0..20 {
            assert_eq!(ticks.tick().await, start + n * MS);
            assert!(Instant::now() >= start + n * MS);
        }
        // The first comes at once.
        let before = Instant::now();
        let first = interval(HOUR).tick().await;
        assert!(first >= before && first <= Instant::now());
        // A tick that was not waited for to its end comes again.
        let mut ticks = interval_at(start + 100 * MS, MS);
        assert!(timeout(Duration::ZERO, ticks.tick()).await.is_err());
        assert_eq!(ticks.tick().await, start + 100 * MS);
        // As a stream.
        let mut ticks = interval_at(start, MS);
        let next = futures::StreamExt::next(&mut ticks).await;
        assert_eq!(next, Some(start));
        // Reset: one period from now.
        let before = Instant::now();
        ticks.reset();
        let due = ticks.tick().await;
        assert!(due >= before + MS && due <= Instant::now());
    });
}

#[test]
fn interval_and_missed_ticks_in_a_burst() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let period = 10 * MS;
        let start = Instant::now();
        let mut ticks = interval_at(start, period);
        ticks.set_missed_tick(MissedTick::Burst);
        assert_eq!(ticks.tick().await, start);
        stall_until(start + 5 * period);
        for n in 1..=8 {
            assert_eq!(ticks.tick().await, start + n * period);
            assert!(Instant::now() >= start + n * period);
        }
    });
}

#[test]
fn interval_and_missed_ticks_delayed() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let period = 10 * MS;
        let start = Instant::now();
        let mut ticks = interval_at(start, period);
        ticks.set_missed_tick(MissedTick::Delay);
        assert_eq!(ticks.tick().await, start);
        stall_until(start + 3 * period + 3 * MS);
        let before = Instant::now();
        assert_eq!(ticks.tick().await, start + period, "the late one says when it was due");
        let after = Instant::now();
        let next = ticks.tick().await;
        assert!((before + period..=after + period).contains(&next), "a period from when the late one was taken");
    });
}

#[test]
fn interval_and_missed_ticks_skipped() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let period = 10 * MS;
        let start = Instant::now();
        let mut ticks = interval_at(start, period);
        ticks.set_missed_tick(MissedTick::Skip);
        assert_eq!(ticks.tick().await, start);
        stall_until(start + 3 * period + 3 * MS);
        let before = Instant::now();
        assert_eq!(ticks.tick().await, start + period);
        let after = Instant::now();
        let next = ticks.tick().await;
        let into = (next - start).as_nanos() % period.as_nanos();
        // Where it lies on the grid depends on two looks at the clock, a few nanoseconds apart.
        assert_eq!(into, 0, "off the grid by {into} ns");
        assert!(next > before && next <= after + period);
    });
}

#[test]
fn interval_of_zero_panics() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let error = rt.block_on(rt.spawn(async { drop(interval(Duration::ZERO)) })).unwrap_err();
    assert_eq!(*error.into_panic().downcast::<&str>().unwrap(), "gopark: an interval's period must not be zero");
}

/// Trap TM2: sleeps that are dropped, or reset, in the instant in which they fire: no other timer suffers.
#[test]
fn drop_and_fire_at_the_same_instant() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let tasks: Vec<_> = (0..4u32)
        .map(|n| {
            rt.spawn(async move {
                let mut random = n * 2 + 1;
                for round in 0..2000 {
                    random = random.wrapping_mul(1664525).wrapping_add(1013904223);
                    let tiny = Duration::from_nanos(u64::from(random >> 15));
                    // It loses, or wins, by next to nothing.
                    let mut loser = sleep(tiny);
                    let _ = timeout(tiny, &mut loser).await;
                    if round % 3 == 0 {
                        loser.reset(Instant::now() + tiny);
                        let _ = poll_once(&mut loser);
                    }
                    drop(loser);
                    // This one must not have been cancelled in its place.
                    sleep(tiny / 2).await;
                }
            })
        })
        .collect();
    for task in tasks {
        rt.block_on(task).unwrap();
    }
}

/// Trap TM3: whoever polls last is woken, also when the sleep fires between two polls with different wakers.
#[test]
fn fire_while_the_waker_changes() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let _entered = rt.enter();
    for round in 0..3000u32 {
        let mut timer = sleep(Duration::from_nanos(u64::from(round % 300) * 500));
        if poll_once(&mut timer).is_ready() {
            continue;
        }
        for _ in 0..round % 50 {
            if poll_once(&mut timer).is_ready() {
                break;
            }
        }
        futures::executor::block_on(timer);
    }
}

/// Trap S23: a waker that panics when it is cloned takes the place of none, and the sleep can still be dropped.
#[test]
fn waker_that_panics_when_cloned() {
    struct Kept;
    impl Wake for Kept {
        fn wake(self: Arc<Self>) {}
    }
    static ANGRY: RawWakerVTable = RawWakerVTable::new(
        |_| panic!("this waker panics when it is cloned, as the test wants"),
        |_| {},
        |_| {},
        |_| {},
    );
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let _entered = rt.enter();
    let kept = Arc::new(Kept);
    let mut timer = sleep(HOUR);
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&Waker::from(kept.clone()))).is_pending());
    // SAFETY: none of its functions uses its data.
    let angry = unsafe { Waker::new(std::ptr::null(), &ANGRY) };
    let mut poll = || Pin::new(&mut timer).poll(&mut Context::from_waker(&angry)).is_pending();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut poll)).is_err());
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(timer);
    assert_eq!(Arc::strong_count(&kept), 1);
}

/// Trap TM1: a timer that is due before all others, armed from outside while the poller goes to sleep, is not slept
/// past.
#[test]
fn arm_while_the_poller_goes_to_sleep() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        // Somebody who sleeps long, so that the poller has a time of its own.
        let _long = rt.spawn(sleep_forever());
        thread::scope(|scope| {
            for n in 0..3u64 {
                let rt = &rt;
                scope.spawn(move || {
                    let _entered = rt.enter();
                    for round in 0..1500 {
                        futures::executor::block_on(sleep(Duration::from_nanos((round * 7 + n) % 50 * 1000)));
                        // The worker was just awake for a task, too.
                        if round % 4 == n {
                            rt.block_on(rt.spawn(async { sleep(Duration::from_micros(20)).await })).unwrap();
                        }
                    }
                });
            }
        });
    }
}

async fn sleep_forever() {
    sleep(Duration::MAX).await;
}

/// Trap P6: the timers of a worker that computes are taken by the other. The sleep is armed by the very task that then
/// keeps its worker, and the task waits for it there.
#[test]
fn timer_of_a_busy_worker_fires_on_another() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for _ in 0..10 {
        rt.run(async {
            let (tx, fired) = channel();
            let there = thread::current().id();
            struct Told(Mutex<std::sync::mpsc::Sender<thread::ThreadId>>);
            impl Wake for Told {
                fn wake(self: Arc<Self>) {
                    self.0.lock().unwrap().send(thread::current().id()).unwrap();
                }
            }
            let mut timer = sleep(5 * MS);
            let waker = Waker::from(Arc::new(Told(Mutex::new(tx))));
            assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&waker)).is_pending());
            // It neither yields nor lets go of its P; only another worker can send.
            assert_ne!(fired.recv().unwrap(), there);
            assert!(timer.is_elapsed());
        });
    }
}

/// Sleeps work for any executor while their runtime lives, whichever thread polls them.
#[test]
fn sleep_polled_by_a_foreign_executor() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let timer = {
        let _entered = rt.enter();
        sleep(2 * MS)
    };
    let deadline = timer.deadline();
    thread::spawn(move || futures::executor::block_on(timer)).join().unwrap();
    assert!(Instant::now() >= deadline);
    let _entered = rt.enter();
    let mut pool = futures::executor::LocalPool::new();
    pool.run_until(async {
        futures::join!(sleep(MS), sleep(2 * MS), async {
            assert!(timeout(MS, pending::<()>()).await.is_err());
        });
    });
    // In another runtime's task.
    let other = runtime(1);
    other.block_on(other.spawn(sleep(2 * MS))).unwrap();
    let mine = rt.handle().clone();
    other.run(async move {
        let timer = {
            let _entered = mine.enter();
            sleep(2 * MS)
        };
        timer.await;
    });
}

/// Sleeps that leave the poll in which they were armed before it ends: another thread drops one, and waits for one, while
/// the poll goes on; the rest end in time.
#[test]
fn sleep_polled_elsewhere_during_the_poll_that_armed_it() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let start = Instant::now();
        let mut near: Vec<_> = (1..5).map(|n| sleep_until(start + n * 3 * MS)).collect();
        let [mut dropped, mut back] = [sleep_until(start + HOUR), sleep_until(start + HOUR)];
        poll_fn(|cx| {
            // Near ones may be ready by now, where the machine is busy.
            for sleep in &mut near {
                let _ = Pin::new(sleep).poll(cx);
            }
            assert!(Pin::new(&mut dropped).poll(cx).is_pending() && Pin::new(&mut back).poll(cx).is_pending());
            let (dropped, waited) = (mem::replace(&mut dropped, sleep_until(start)), near.pop().unwrap());
            thread::spawn(move || {
                drop(dropped);
                let deadline = waited.deadline();
                futures::executor::block_on(waited);
                assert!(Instant::now() >= deadline);
            })
            .join()
            .unwrap();
            // Back, and armed once more.
            thread::scope(|scope| {
                scope.spawn(|| assert!(poll_once(&mut back).is_pending()));
            });
            assert!(Pin::new(&mut back).poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        for sleep in near {
            sleep.await;
        }
    });
}

/// A sleep that is polled again and again in the poll that armed it ends in that poll, near or far: nothing else would end
/// it there (`take_until` over a stream that is always ready).
#[test]
fn sleep_polled_again_in_the_poll_that_armed_it() {
    let _watchdog = watchdog(60);
    for (workers, times) in [(1, vec![MS, 2200 * MS]), (2, vec![MS])] {
        let rt = runtime(workers);
        rt.run(async move {
            use futures::StreamExt;
            for time in times {
                let start = Instant::now();
                let taken = futures::stream::repeat(()).take_until(sleep(time)).count().await;
                assert!(taken > 0 && start.elapsed() >= time);
            }
            // Its time is over while the thread is busy, with others noted before and after it.
            let mut sleeps = [HOUR, 3 * MS, HOUR].map(sleep);
            let ready = poll_fn(|cx| {
                let mut ready = || sleeps.iter_mut().map(|s| Pin::new(s).poll(cx).is_ready()).collect::<Vec<_>>();
                ready();
                thread::sleep(4 * MS);
                Poll::Ready(ready())
            });
            assert_eq!(ready.await, [false, true, false]);
        });
    }
}

/// An armed sleep that leaves its task as the output waits for whoever gets it.
#[test]
fn sleep_that_is_the_output_of_its_task() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    rt.run(async {
        for _ in 0..100 {
            let task = gopark::spawn(async {
                let mut sleep = sleep(MS);
                poll_fn(|cx| Poll::Ready(Pin::new(&mut sleep).poll(cx).is_pending())).await;
                [sleep]
            });
            let [sleep] = task.await.unwrap();
            let deadline = sleep.deadline();
            sleep.await;
            assert!(Instant::now() >= deadline);
        }
    });
}

/// A task that is dropped arms a sleep for itself, with the waker that it kept: no business of the task polled next.
#[test]
fn sleep_armed_by_a_task_that_is_dropped() {
    struct Armed(Option<Waker>, std::sync::mpsc::Sender<Sleep>);
    impl Future for Armed {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.0 = Some(cx.waker().clone());
            Poll::Pending
        }
    }
    impl Drop for Armed {
        fn drop(&mut self) {
            let mut sleep = sleep(2 * MS);
            assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&self.0.take().unwrap())).is_pending());
            self.1.send(sleep).unwrap();
        }
    }
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (sender, kept) = channel();
    rt.run(async move {
        let armed = gopark::spawn(Armed(None, sender));
        gopark::yield_now().await;
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let next = gopark::spawn(poll_fn(move |_| {
            counted.fetch_add(1, SeqCst);
            Poll::<()>::Pending
        }));
        // Takes the place of the one that was spawned, which comes right behind it.
        armed.abort();
        while polls.load(SeqCst) == 0 {
            gopark::yield_now().await;
        }
        let kept = kept.recv().unwrap();
        sleep_until(kept.deadline() + 5 * MS).await;
        assert_eq!(polls.load(SeqCst), 1);
        drop(next);
    });
}

/// A sleep that somebody waits for is given another time, by another thread or in the poll in which it was begun: who waits is
/// woken then.
#[test]
fn reset_while_somebody_waits() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let new: [fn() -> Instant; 3] = [|| Instant::now() - MS, || Instant::now() + MS, || Instant::now() + 5 * MS];
    for (n, new) in new.into_iter().cycle().take(60).enumerate() {
        let old = if n % 2 == 0 { HOUR } else { 3 * MS };
        let entered = rt.enter();
        let shared = Arc::new(Mutex::new(sleep(old)));
        drop(entered);
        let (there, (tell, told)) = (shared.clone(), channel());
        let wait = poll_fn(move |cx| {
            let polled = Pin::new(&mut *there.lock().unwrap()).poll(cx);
            // Nobody listens after the first.
            let _ = tell.send(());
            polled
        });
        // On a worker, which may be in that poll still, or somebody else's.
        let wait = async move { (wait.await, Instant::now()).1 };
        let waiter = if n % 4 < 2 { rt.spawn(wait) } else { rt.spawn_blocking(|| futures::executor::block_on(wait)) };
        told.recv().unwrap();
        let deadline = new();
        shared.lock().unwrap().reset(deadline);
        let woken = rt.block_on(waiter).unwrap();
        // It may have ended before the reset.
        assert!(woken >= deadline || n % 2 == 1);
    }
    rt.run(async {
        // Nobody polls it again before it ends.
        let mut timer = sleep(HOUR);
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            if polls == 2 {
                return Poll::Ready(());
            }
            assert!(Pin::new(&mut timer).poll(cx).is_pending());
            timer.reset(Instant::now() + MS);
            Poll::Pending
        })
        .await;
        let mut ticks = interval_at(Instant::now() + HOUR, MS);
        polls = 0;
        poll_fn(|cx| {
            polls += 1;
            let tick = ticks.poll_tick(cx);
            if polls == 1 {
                ticks.reset();
            }
            tick.map(drop)
        })
        .await;
    });
}

/// A sleep that was noted in a poll is given another time by another thread before that poll ends; what the poll does with it
/// after that counts, and the other's time is no other sleep's.
#[test]
fn reset_by_another_thread_in_the_poll_that_noted_it() {
    fn poll(shared: &Mutex<Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *shared.lock().unwrap()).poll(cx)
    }
    fn reset_elsewhere(shared: &Arc<Mutex<Sleep>>) {
        let shared = shared.clone();
        thread::spawn(move || shared.lock().unwrap().reset(Instant::now() + HOUR)).join().unwrap();
    }
    let _watchdog = watchdog(60);
    runtime(1).run(async {
        // It is reset.
        let shared = Arc::new(Mutex::new(sleep(HOUR)));
        let mut begun = false;
        poll_fn(|cx| {
            let polled = poll(&shared, cx);
            if !mem::replace(&mut begun, true) {
                reset_elsewhere(&shared);
                shared.lock().unwrap().reset(Instant::now() + MS);
            }
            polled
        })
        .await;
        // It is dropped.
        let mut shared = Some(Arc::new(Mutex::new(sleep(HOUR))));
        poll_fn(|cx| {
            let shared = shared.take().unwrap();
            assert!(poll(&shared, cx).is_pending());
            reset_elsewhere(&shared);
            Poll::Ready(())
        })
        .await;
        sleep(MS).await;
        // It is polled, and so noted once more, behind another, and reset.
        let shared = Arc::new(Mutex::new(sleep(HOUR)));
        let (mut other, mut begun) = (sleep(MS), false);
        poll_fn(|cx| {
            assert!(poll(&shared, cx).is_pending());
            let polled = Pin::new(&mut other).poll(cx);
            if !mem::replace(&mut begun, true) {
                reset_elsewhere(&shared);
                assert!(poll(&shared, cx).is_pending());
                shared.lock().unwrap().reset(Instant::now() + HOUR);
            }
            polled
        })
        .await;
        drop(shared);
        for _ in 0..3 {
            sleep(MS).await;
        }
    });
}

/// More sleeps in one poll than an M takes notes of, of which some are dropped there, and others later.
#[test]
fn many_sleeps_in_one_poll() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    rt.run(async {
        let start = Instant::now();
        let mut sleeps: Vec<_> = (0..1000).map(|n| sleep_until(start + Duration::from_micros(n * 7 % 5000))).collect();
        for every in [5, 3] {
            poll_fn(|cx| {
                for sleep in &mut sleeps {
                    let _ = Pin::new(sleep).poll(cx);
                }
                let mut n = 0;
                sleeps.retain_mut(|sleep| {
                    n += 1;
                    if n % every == 1 {
                        sleep.reset(start + MS);
                        let _ = Pin::new(sleep).poll(cx);
                    }
                    n % every != 0
                });
                Poll::Ready(())
            })
            .await;
        }
        poll_fn(|cx| {
            sleeps.retain_mut(|sleep| Pin::new(sleep).poll(cx).is_pending());
            if sleeps.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
}

/// A sleep whose runtime is gone says so, whether it waited before or not; one whose time has come is ready.
#[test]
fn sleep_after_the_runtime() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let entered = rt.enter();
    let (fresh, mut waiting, past) = (sleep(HOUR), sleep(HOUR), sleep(Duration::ZERO));
    struct Told(std::sync::mpsc::SyncSender<()>);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
    let (woken_tx, woken) = std::sync::mpsc::sync_channel(1);
    let waker = Waker::from(Arc::new(Told(woken_tx)));
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    drop(entered);
    drop(rt);
    assert_eq!(woken.recv(), Ok(()), "whoever waits hears of it");
    for mut timer in [fresh, waiting] {
        assert!(!timer.is_elapsed());
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll_once(&mut timer)));
        let text = *polled.unwrap_err().downcast::<&str>().unwrap();
        assert!(text.starts_with("gopark: a sleep outlived its runtime"), "{text}");
    }
    futures::executor::block_on(past);
}

/// A waker each of whose functions, and whose drop, uses the timers that it waits for.
mod hooked {
    use super::*;

    struct Hooked {
        handle: gopark::Handle,
        wakes: Arc<AtomicUsize>,
    }

    impl Hooked {
        fn meddle(&self) {
            let _entered = self.handle.enter();
            let mut timer = sleep(HOUR);
            assert!(poll_once(&mut timer).is_pending());
            drop(gopark::spawn(async {}));
        }
    }

    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

    fn data(hooked: Arc<Hooked>) -> RawWaker {
        RawWaker::new(Arc::into_raw(hooked).cast(), &VTABLE)
    }

    pub(super) fn waker(handle: gopark::Handle, wakes: Arc<AtomicUsize>) -> Waker {
        // SAFETY: the functions below keep the contract: the data is an `Arc<Hooked>`, one for each waker.
        unsafe { Waker::from_raw(data(Arc::new(Hooked { handle, wakes }))) }
    }

    unsafe fn clone(raw: *const ()) -> RawWaker {
        // SAFETY: the waker that is cloned holds the Arc; the count is raised for the new one.
        let hooked = unsafe {
            Arc::increment_strong_count(raw.cast::<Hooked>());
            Arc::from_raw(raw.cast::<Hooked>())
        };
        hooked.meddle();
        data(hooked)
    }

    unsafe fn wake(raw: *const ()) {
        // SAFETY: the waker's own Arc, given up.
        unsafe {
            wake_by_ref(raw);
            drop_waker(raw);
        }
    }

    unsafe fn wake_by_ref(raw: *const ()) {
        // SAFETY: the waker holds the Arc during the call.
        let hooked = unsafe { &*raw.cast::<Hooked>() };
        hooked.meddle();
        hooked.wakes.fetch_add(1, SeqCst);
    }

    unsafe fn drop_waker(raw: *const ()) {
        // SAFETY: the waker's own Arc, given up.
        let hooked = unsafe { Arc::from_raw(raw.cast::<Hooked>()) };
        hooked.meddle();
    }
}

/// Trap S18: wakers are cloned, woken and dropped under no lock: their code may use the same timers.
#[test]
fn waker_that_uses_the_timers_it_waits_for() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let wakes = Arc::new(AtomicUsize::new(0));
    let new = || hooked::waker(rt.handle().clone(), wakes.clone());
    let _entered = rt.enter();
    let (first, second) = (new(), new());
    // Armed, refreshed with another, cancelled.
    let mut timer = sleep(HOUR);
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&first)).is_pending());
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&second)).is_pending());
    timer.reset(Instant::now() + HOUR);
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&first)).is_pending());
    drop(timer);
    // Fired.
    let mut timer = sleep(MS);
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&second)).is_pending());
    while wakes.load(SeqCst) == 0 {
        thread::yield_now();
    }
    rt.block_on(timer);
    // By a JoinHandle: polled with one, then the other; woken; dropped.
    let (go, wait) = channel::<()>();
    let mut task = rt.spawn(async move {
        let _ = wait.recv();
    });
    for waker in [&first, &second] {
        assert!(pin!(&mut task).poll(&mut Context::from_waker(waker)).is_pending());
    }
    drop(go);
    while wakes.load(SeqCst) == 1 {
        thread::yield_now();
    }
    rt.block_on(task).unwrap();
    // By the shutdown.
    let mut timer = sleep(HOUR);
    assert!(Pin::new(&mut timer).poll(&mut Context::from_waker(&first)).is_pending());
    let mut parked = rt.spawn(pending::<()>());
    assert!(pin!(&mut parked).poll(&mut Context::from_waker(&second)).is_pending());
    drop(_entered);
    let handle = rt.handle().clone();
    // The hook of `meddle` cannot arm a timer any more, and panics: that is caught, too.
    drop(rt);
    assert!(wakes.load(SeqCst) >= 2 && parked.is_finished());
    std::mem::forget((first, second, timer, parked, handle));
}

/// Every one of 100,000 sleepers wakes.
#[test]
fn hundred_thousand_sleepers() {
    let _watchdog = watchdog(120);
    let rt = runtime(2);
    let woken = Arc::new(AtomicUsize::new(0));
    let there = woken.clone();
    rt.run(async move {
        let mut random = 1u32;
        let tasks: Vec<_> = (0..100_000)
            .map(|_| {
                random = random.wrapping_mul(1664525).wrapping_add(1013904223);
                let time = Duration::from_micros(u64::from(random >> 8) % 100_000);
                let woken = there.clone();
                gopark::spawn(async move {
                    let deadline = Instant::now() + time;
                    sleep_until(deadline).await;
                    assert!(Instant::now() >= deadline);
                    woken.fetch_add(1, SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(woken.load(SeqCst), 100_000);
}
