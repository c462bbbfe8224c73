//! What a task does on one thread, and with real threads where the interleaving does not matter; loom has the rest.
//! Runs under Miri.

mod panics;

use super::rig::{AngryHook, Rig};
use super::{G, GList, JoinError, JoinHandle, Schedule, from_waker};
use std::collections::HashSet;
use std::future::{pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};

/// Counts its drops.
#[derive(Clone, Debug, Default)]
struct Drops(Arc<AtomicUsize>);

#[derive(Debug)]
struct Guard(Drops);

impl Drops {
    fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, SeqCst);
    }
}

/// Does something when dropped; a panic, mostly.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn woken() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    (woken.clone(), woken.into())
}

/// A task that waits for ever and has been polled once, its waker, and the count of its polls.
fn waiting(rig: &Arc<Rig>, guard: impl Send + 'static) -> (JoinHandle<()>, Waker, Arc<AtomicUsize>) {
    let (tell, told) = mpsc::channel();
    let polls = Arc::new(AtomicUsize::new(0));
    let count = polls.clone();
    let join = rig.spawn(poll_fn(move |cx| {
        let _guard = &guard;
        if count.fetch_add(1, SeqCst) == 0 {
            tell.send(cx.waker().clone()).unwrap();
        }
        Poll::Pending
    }));
    assert_eq!(rig.run_all(), 1);
    (join, told.recv().unwrap(), polls)
}

fn poll_with<T>(join: &mut JoinHandle<T>, waker: &Waker) -> Poll<Result<T, JoinError>> {
    pin!(join).poll(&mut Context::from_waker(waker))
}

fn result<T>(mut join: JoinHandle<T>) -> Result<T, JoinError> {
    match poll_with(&mut join, Waker::noop()) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the task is not complete"),
    }
}

fn caught<R>(f: impl FnOnce() -> R) -> std::thread::Result<R> {
    catch_unwind(AssertUnwindSafe(f))
}

fn message(error: JoinError) -> &'static str {
    *error.into_panic().downcast().unwrap()
}

// Wakes

#[test]
fn wake_before_run() {
    let rig = Rig::new();
    let (join, waker, polls) = waiting(&rig, ());
    waker.wake_by_ref();
    waker.wake();
    assert_eq!((rig.run_all(), polls.load(SeqCst)), (1, 2));
    join.abort();
    rig.run_all();
    drop(join);
    rig.end();
}

#[test]
fn wake_during_run() {
    let rig = Rig::new();
    let mut polls = 0;
    let join = rig.spawn(poll_fn(move |cx| {
        polls += 1;
        cx.waker().wake_by_ref();
        let waker = cx.waker().clone();
        waker.wake();
        if polls == 3 { Poll::Ready(polls) } else { Poll::Pending }
    }));
    let g = rig.next().unwrap();
    let g = g.run().expect("the wake is lost");
    assert!(rig.next().is_none(), "two Gs");
    rig.schedule(g);
    assert_eq!(rig.run_all(), 2);
    assert_eq!(result(join).unwrap(), 3);
    rig.end();
}

/// S8: nothing that is left from one wake keeps the next from being one.
#[test]
fn wake_and_run_and_wake_and_run() {
    let rig = Rig::new();
    let (join, waker, polls) = waiting(&rig, ());
    for n in 2..10 {
        waker.wake_by_ref();
        assert_eq!((rig.run_all(), polls.load(SeqCst)), (1, n));
    }
    join.abort();
    rig.run_all();
    drop((join, waker));
    rig.end();
}

/// S9: from any thread.
#[test]
fn wake_from_threads_and_run() {
    const WAKES: usize = if cfg!(miri) { 20 } else { 5_000 };
    let rig = Rig::new();
    let (tell, told) = mpsc::channel();
    let wakes = Arc::new(AtomicUsize::new(0));
    let seen = wakes.clone();
    let mut tell = Some(tell);
    let join = rig.spawn(poll_fn(move |cx| {
        tell.take().into_iter().for_each(|tell| tell.send(cx.waker().clone()).unwrap());
        if seen.load(SeqCst) == 2 * WAKES { Poll::Ready(()) } else { Poll::Pending }
    }));
    rig.run_all();
    let waker = told.recv().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..WAKES {
                    wakes.fetch_add(1, SeqCst);
                    let waker = waker.clone();
                    waker.wake();
                }
            });
        }
        scope.spawn(|| {
            while !join.is_finished() {
                rig.run_all();
                std::thread::yield_now();
            }
        });
    });
    rig.run_all();
    drop((join, waker));
    rig.end();
}

#[test]
fn wake_after_complete() {
    let rig = Rig::new();
    let (join, waker, _) = waiting(&rig, ());
    join.abort();
    rig.run_all();
    waker.wake_by_ref();
    assert!(from_waker(&waker).unwrap().notify().is_none());
    join.abort();
    assert!(rig.next().is_none());
    assert!(result(join).unwrap_err().is_cancelled());
    waker.wake();
    rig.end();
}

#[test]
fn notify_by_task_ref() {
    let rig = Rig::new();
    let (join, waker, polls) = waiting(&rig, ());
    let task = from_waker(&waker).unwrap();
    let g = task.notify().unwrap();
    assert_eq!(g.info().id(), join.id());
    assert!(task.notify().is_none() && rig.next().is_none());
    assert!(g.run().is_none());
    assert_eq!(polls.load(SeqCst), 2);
    assert!(from_waker(&woken().1).is_none());

    let g = task.notify().unwrap();
    assert!(g.belongs_to(Arc::as_ptr(&rig).cast()));
    assert!(!g.belongs_to(Arc::as_ptr(&Rig::new()).cast()));
    g.submit();
    assert_eq!((rig.run_all(), polls.load(SeqCst)), (1, 3));
    join.abort();
    rig.run_all();
    drop((join, waker));
    rig.end();
}

// Aborts

#[test]
fn abort_before_run() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let guard = drops.guard();
    let join = rig.spawn(async move { drop(guard) });
    join.abort();
    join.abort();
    assert_eq!((drops.count(), join.is_finished()), (0, false));
    assert_eq!((rig.run_all(), drops.count()), (1, 1));
    assert!(result(join).unwrap_err().is_cancelled());
    rig.end();
}

/// S16: the future is dropped by a worker, not by whoever aborts.
#[test]
fn abort_while_idle() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let (join, waker, polls) = waiting(&rig, drops.guard());
    let abort = join.abort_handle();
    abort.clone().abort();
    waker.wake_by_ref();
    assert_eq!((drops.count(), abort.is_finished(), abort.id()), (0, false, join.id()));
    assert_eq!((rig.run_all(), drops.count(), polls.load(SeqCst)), (1, 1, 1));
    assert!(abort.is_finished());
    drop((join, waker));
    abort.abort();
    drop(abort);
    rig.end();
}

#[test]
fn wake_and_abort_during_run() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let abort = Arc::new(Mutex::new(None::<super::AbortHandle>));
    let (guard, own) = (drops.guard(), abort.clone());
    let join = rig.spawn(poll_fn(move |cx| {
        let _guard = &guard;
        cx.waker().wake_by_ref();
        own.lock().unwrap().as_ref().unwrap().abort();
        Poll::<()>::Pending
    }));
    *abort.lock().unwrap() = Some(join.abort_handle());
    rig.next().unwrap().finish();
    assert_eq!(drops.count(), 1);
    assert!(rig.next().is_none());
    assert!(result(join).unwrap_err().is_cancelled());
    drop(abort.lock().unwrap().take());
    rig.end();
}

#[test]
fn abort_during_run_and_ready() {
    let rig = Rig::new();
    let abort = Arc::new(Mutex::new(None::<super::AbortHandle>));
    let own = abort.clone();
    let join = rig.spawn(async move {
        own.lock().unwrap().take().unwrap().abort();
        1
    });
    *abort.lock().unwrap() = Some(join.abort_handle());
    assert_eq!(rig.run_all(), 1);
    assert_eq!(result(join).unwrap(), 1);
    rig.end();
}

// Joins

#[test]
fn join_and_complete() {
    let rig = Rig::new();
    let mut join = rig.spawn(ready(String::from("out")));
    let ((first, waker1), (second, waker2)) = (woken(), woken());
    assert!(poll_with(&mut join, &waker1).is_pending());
    assert!(poll_with(&mut join, &waker1).is_pending());
    assert!(poll_with(&mut join, &waker2).is_pending());
    drop(waker1);
    assert!(Arc::into_inner(first).is_some(), "the waker that was replaced is kept");
    rig.run_all();
    assert_eq!(second.0.load(SeqCst), 1);
    assert!(join.is_finished());
    assert_eq!(result(join).unwrap(), "out");
    drop(waker2);
    assert!(Arc::into_inner(second).is_some());
    rig.end();
}

#[test]
fn join_after_ready_panics() {
    let rig = Rig::new();
    let mut join = rig.spawn(ready(()));
    rig.run_all();
    assert!(poll_with(&mut join, Waker::noop()).is_ready());
    assert!(caught(|| poll_with(&mut join, Waker::noop())).is_err());
    drop(join);
    rig.end();
}

#[test]
fn detach_before_and_after_complete() {
    let (rig, drops) = (Rig::new(), Drops::default());
    for polled in [false, true] {
        let guard = drops.guard();
        let mut join = rig.spawn(async move { guard });
        let (woken, waker) = woken();
        if polled {
            assert!(poll_with(&mut join, &waker).is_pending());
        }
        drop((join, waker));
        assert_eq!(Arc::into_inner(woken).unwrap().0.into_inner(), 0);
        rig.run_all();
    }
    assert_eq!(drops.count(), 2);
    let guard = drops.guard();
    let join = rig.spawn(async move { guard });
    rig.run_all();
    assert_eq!(drops.count(), 2);
    drop(join);
    assert_eq!((drops.count(), rig.unjoined()), (3, 0));
    rig.end();
}

/// A waker frees the cell last; by then nothing of the task's is left in it (S16).
#[test]
fn waker_outlives_task_and_output() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let (join, waker, _) = waiting(&rig, drops.guard());
    join.abort();
    rig.run_all();
    drop(join);
    assert_eq!(drops.count(), 1);
    std::thread::spawn(move || drop(waker)).join().unwrap();
    rig.end();
}

#[test]
fn errors_say_what_happened() {
    let rig = Rig::new();
    let joins = [rig.spawn(async { panic!("oh {}", "no") }), rig.spawn(async { panic_any(3) }), rig.spawn(pending())];
    joins[2].abort();
    rig.run_all();
    let [oh, three, cancelled] = joins.map(|join: JoinHandle<()>| (join.id(), result(join).unwrap_err()));
    assert_eq!(oh.1.to_string(), format!("task {} panicked: oh no", oh.0));
    assert_eq!(three.1.to_string(), format!("task {} panicked", three.0));
    assert_eq!(cancelled.1.to_string(), format!("task {} was cancelled", cancelled.1.id()));
    assert!(format!("{:?}", oh.1).contains("oh no") && format!("{:?}", cancelled.1).contains("Cancelled"));
    assert!(oh.1.is_panic() && !oh.1.is_cancelled());
    assert_eq!(std::io::Error::from(three.1).kind(), std::io::ErrorKind::Other);
    let again = cancelled.1.try_into_panic().unwrap_err();
    assert!(again.is_cancelled() && caught(|| again.into_panic()).is_err());
    assert_eq!(rig.unjoined(), 0);
    rig.end();
}

// Shutdown: S17

#[test]
fn shutdown_and_spawn() {
    let (rig, drops) = (Rig::new(), Drops::default());
    rig.shutdown();
    let guard = drops.guard();
    let (g, join) = rig.make(async move { drop(guard) });
    assert!(g.is_none());
    assert_eq!(drops.count(), 1);
    assert!(result(join).unwrap_err().is_cancelled());
    let bomb = OnDrop(|| panic!("drop"));
    let (_, join) = rig.make(async move { drop(bomb) });
    assert!(result(join).unwrap_err().is_panic());
    rig.end();
}

#[test]
fn shutdown_of_queued_and_idle_tasks() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let (idle, waker, polls) = waiting(&rig, drops.guard());
    let guard = drops.guard();
    let queued = rig.spawn(async move { drop(guard) });
    assert_eq!(rig.owned().len(), 2);
    rig.shutdown();
    rig.shutdown();
    assert_eq!((drops.count(), polls.load(SeqCst), rig.owned().len()), (2, 1, 0));
    assert!(result(idle).unwrap_err().is_cancelled());
    assert!(result(queued).unwrap_err().is_cancelled());
    drop(waker);
    rig.end();
}

/// Each task's drop spawns, wakes and aborts the other, and drops its JoinHandle.
#[test]
fn shutdown_of_tasks_that_know_each_other() {
    let (rig, drops) = (Rig::new(), Drops::default());
    type Friend = Arc<Mutex<Option<(JoinHandle<()>, Waker)>>>;
    let friends = [Friend::default(), Friend::default()];
    let tasks = friends.clone().map(|friend| {
        let (own, guard, mut once) = (rig.clone(), drops.guard(), Some(()));
        let farewell = OnDrop(move || {
            let _guard = &guard;
            once.take().expect("dropped twice");
            let inner = guard.0.guard();
            let (g, refused) = own.make(async move { drop(inner) });
            assert!(g.is_none());
            let friend = friend.lock().unwrap().take();
            if let Some((join, waker)) = friend {
                waker.wake();
                join.abort();
            }
            drop(refused);
        });
        waiting(&rig, farewell)
    });
    for ((join, waker, _), friend) in tasks.into_iter().zip(friends.iter().rev()) {
        *friend.lock().unwrap() = Some((join, waker));
    }
    rig.shutdown();
    assert_eq!((drops.count(), rig.unjoined()), (4, 0));
    drop(friends);
    rig.end();
}

#[test]
fn close_during_run() {
    let rig = Rig::new();
    let (own, mut first) = (rig.clone(), true);
    let join = rig.spawn(poll_fn(move |_| {
        assert!(std::mem::take(&mut first), "polled after shutdown");
        assert_eq!(own.owned().cancel_all().map(G::cancel).count(), 0);
        Poll::<()>::Pending
    }));
    let g = rig.next().unwrap();
    g.finish();
    assert!(result(join).unwrap_err().is_cancelled());
    rig.end();
}

// Lists and numbers

#[test]
fn lists_are_fifo() {
    let rig = Rig::new();
    let (gs, joins): (Vec<_>, Vec<_>) = (0..5).map(|n| rig.make(ready(n))).unzip();
    let (mut front, mut back) = (GList::default(), GList::default());
    for (n, g) in gs.into_iter().enumerate() {
        if n < 2 { front.push_back(g.unwrap()) } else { back.push_back(g.unwrap()) }
    }
    front.append(&mut back);
    front.append(&mut back);
    assert_eq!((front.len(), back.is_empty()), (5, true));
    back.append(&mut front);
    for join in joins {
        let g = back.next().unwrap();
        assert_eq!(g.info().id(), join.id());
        // SAFETY: straight from `into_raw`.
        unsafe { G::from_raw(g.into_raw()) }.finish();
        assert!(result(join).is_ok());
    }
    assert!(back.next().is_none() && front.is_empty());
    rig.end();
}

/// S10, as far as a destructor can.
#[test]
#[cfg(debug_assertions)]
fn drop_of_a_g_is_loud() {
    let rig = Rig::new();
    let (join, waker, _) = waiting(&rig, ());
    let g = from_waker(&waker).unwrap().notify().unwrap();
    let raw = g.into_raw();
    // SAFETY: straight from `into_raw`; the first G is lost without having run, so the second is the only one.
    assert!(caught(|| drop(unsafe { G::from_raw(raw) })).is_err());
    // SAFETY: as above.
    unsafe { G::from_raw(raw) }.cancel();
    drop((join, waker));
    rig.end();
}

#[test]
fn ids_are_unique() {
    let ids = || (0..150).map(|_| super::g::TaskId::next()).collect::<Vec<_>>();
    let threads = [(); 3].map(|()| std::thread::spawn(ids));
    let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 450);
}
