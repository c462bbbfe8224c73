//! Loom models of the shipped types.
//!
//! Not covered: more than two threads at once; std's `Arc` of the scheduler; `TaskId`; `OwnedTasks` beyond its lock; and
//! the Release of a `JoinHandle` that detaches, which orders reads of constant fields, invisible to loom. Types and
//! provenance are Miri's part (`tests.rs`). Nothing here is SeqCst, which loom would weaken.
//!
//! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
//! |---|---|
//! | `task_wake_relaxed` | `what_came_before_a_wake_is_seen_by_the_next_poll`, `a_new_g_owns_the_queue_link` |
//! | `task_idle_no_recheck` | `a_wake_during_a_poll_is_not_lost` |

use super::super::sync::{AtomicUsize, Ordering::Relaxed};
use super::rig::Rig;
use super::{G, GList, from_waker};
use loom::sync::Arc as LoomArc;
use loom::thread;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

/// A word that orders nothing by itself, for all its uses are relaxed.
fn word() -> LoomArc<AtomicUsize> {
    LoomArc::new(AtomicUsize::new(0))
}

struct CountDrop(LoomArc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The waker of a task that has been polled once, waits, and is ready as soon as a poll sees `word` at 1.
fn waiting(rig: &Arc<Rig>, word: &LoomArc<AtomicUsize>, dropped: &LoomArc<AtomicUsize>) -> Waker {
    let (word, guard) = (word.clone(), CountDrop(dropped.clone()));
    let (tell, told) = mpsc::channel();
    let mut tell = Some(tell);
    drop(rig.spawn(poll_fn(move |cx| {
        let _guard = &guard;
        tell.take().into_iter().for_each(|tell| tell.send(cx.waker().clone()).unwrap());
        if word.load(Relaxed) == 1 { Poll::Ready(()) } else { Poll::Pending }
    })));
    assert_eq!(rig.run_all(), 1);
    told.recv().unwrap()
}

fn g_of(waker: &Waker) -> Option<G> {
    from_waker(waker).unwrap().notify()
}

fn run(rig: &Rig, g: G) {
    g.run().into_iter().for_each(|g| super::Schedule::schedule(rig, g));
}

#[test]
fn what_came_before_a_wake_is_seen_by_the_next_poll() {
    loom::model(|| {
        let (rig, word) = (Rig::new(), word());
        let waker = waiting(&rig, &word, &self::word());
        let spurious = waker.clone();
        let other = thread::spawn(move || {
            word.store(1, Relaxed);
            waker.wake();
        });
        spurious.wake();
        rig.run_all();
        other.join().unwrap();
        rig.run_all();
        rig.end();
    });
}

#[test]
fn a_wake_during_a_poll_is_not_lost() {
    loom::model(|| {
        let (rig, word) = (Rig::new(), word());
        let waker = waiting(&rig, &word, &self::word());
        let g = g_of(&waker).unwrap();
        let other = thread::spawn(move || {
            word.store(1, Relaxed);
            waker.wake_by_ref();
        });
        run(&rig, g);
        other.join().unwrap();
        rig.run_all();
        rig.end();
    });
}

#[test]
fn a_new_g_owns_the_queue_link() {
    loom::model(|| {
        let (rig, word) = (Rig::new(), word());
        let waker = waiting(&rig, &word, &self::word());
        // What comes through a list touches the link. No lock here, to hide what the state word does not order.
        let through_a_list = |g| {
            let mut list = GList::default();
            list.push_back(g);
            list.next().unwrap()
        };
        let g = g_of(&waker).unwrap();
        let other = thread::spawn(move || g_of(&waker).map(through_a_list));
        run(&rig, through_a_list(g));
        other.join().unwrap().into_iter().for_each(|g| run(&rig, g));
        word.store(1, Relaxed);
        rig.shutdown();
        rig.end();
    });
}

#[test]
fn an_abort_of_a_task_that_waits_again_drops_its_future_once() {
    loom::model(|| {
        let (rig, word, dropped) = (Rig::new(), word(), word());
        let guard = CountDrop(dropped.clone());
        let (g, join) = rig.make(async move {
            let _guard = guard;
            std::future::pending::<()>().await
        });
        let abort = join.abort_handle();
        let other = thread::spawn(move || abort.abort());
        run(&rig, g.unwrap());
        other.join().unwrap();
        rig.run_all();
        assert_eq!((dropped.load(Relaxed), word.load(Relaxed), join.is_finished()), (1, 0, true));
        drop(join);
        rig.end();
    });
}

#[test]
fn an_abort_of_a_task_that_completes_drops_its_future_once() {
    loom::model(|| {
        let (rig, dropped) = (Rig::new(), word());
        let guard = CountDrop(dropped.clone());
        let (g, join) = rig.make(async move { drop(guard) });
        let abort = join.abort_handle();
        let other = thread::spawn(move || abort.abort());
        run(&rig, g.unwrap());
        other.join().unwrap();
        rig.run_all();
        assert_eq!(dropped.load(Relaxed), 1);
        let result = pin!(join).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(&result, Poll::Ready(Ok(()))) || matches!(&result, Poll::Ready(Err(e)) if e.is_cancelled()));
        rig.end();
    });
}

#[test]
fn a_join_handle_is_woken_or_sees_the_output() {
    loom::model(|| {
        let (rig, dropped) = (Rig::new(), word());
        let output = CountDrop(dropped.clone());
        let (g, mut join) = rig.make(async move { output });
        let other = thread::spawn(move || g.unwrap().finish());
        let woken = [(); 2].map(|()| Arc::new(Woken(AtomicUsize::new(0))));
        // The second poll takes the first waker back.
        let result = woken.iter().find_map(|woken| {
            match pin!(&mut join).poll(&mut Context::from_waker(&woken.clone().into())) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            }
        });
        other.join().unwrap();
        let result = result.map(Poll::Ready).unwrap_or_else(|| {
            assert_eq!(woken[1].0.load(Relaxed), 1);
            pin!(&mut join).poll(&mut Context::from_waker(Waker::noop()))
        });
        assert!(matches!(result, Poll::Ready(Ok(_))));
        assert_eq!(dropped.load(Relaxed), 0);
        drop((join, result));
        assert_eq!(dropped.load(Relaxed), 1);
        rig.end();
    });
}

#[test]
fn an_output_is_dropped_once_when_its_join_handle_goes() {
    for polled in [false, true] {
        loom::model(move || {
            let (rig, dropped) = (Rig::new(), word());
            let output = CountDrop(dropped.clone());
            let (g, mut join) = rig.make(async move { output });
            let woken = Arc::new(Woken(AtomicUsize::new(0)));
            if polled {
                assert!(pin!(&mut join).poll(&mut Context::from_waker(&woken.clone().into())).is_pending());
            }
            let other = thread::spawn(move || g.unwrap().finish());
            drop(join);
            other.join().unwrap();
            assert_eq!(dropped.load(Relaxed), 1);
            assert!(Arc::into_inner(woken).is_some(), "the join waker was leaked");
            rig.end();
        });
    }
}

#[test]
fn the_last_holder_frees_the_task() {
    loom::model(|| {
        let (rig, word) = (Rig::new(), word());
        let waker = waiting(&rig, &word, &self::word());
        word.store(1, Relaxed);
        let g = g_of(&waker).unwrap();
        let other = thread::spawn(move || waker.wake());
        run(&rig, g);
        other.join().unwrap();
        assert!(rig.next().is_none());
        rig.end();
    });
}

#[test]
fn shutdown_meets_a_spawn() {
    loom::model(|| {
        let (rig, dropped) = (Rig::new(), word());
        let (spawner, guard) = (rig.clone(), CountDrop(dropped.clone()));
        let other = thread::spawn(move || drop(spawner.spawn(async move { drop(guard) })));
        rig.shutdown();
        other.join().unwrap();
        rig.run_all();
        assert_eq!(dropped.load(Relaxed), 1);
        rig.end();
    });
}

#[test]
fn shutdown_meets_a_wake_and_a_run() {
    loom::model(|| {
        let (rig, word, dropped) = (Rig::new(), word(), word());
        let waker = waiting(&rig, &word, &dropped);
        let worker = rig.clone();
        let other = thread::spawn(move || {
            waker.wake();
            if let Some(g) = worker.next() {
                run(&worker, g);
            }
        });
        rig.shutdown();
        other.join().unwrap();
        rig.run_all();
        assert_eq!(dropped.load(Relaxed), 1);
        rig.end();
    });
}
