//! Tasks and their handles: output, abort, detach, wakes from anywhere, and where a future is dropped.

mod support;

use futures::task::AtomicWaker;
use gopark::{Builder, JoinHandle, Runtime};
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use support::watchdog;

const NAME: &str = "joined";

fn runtime(workers: usize) -> Runtime {
    // A worker that a test occupies stays so.
    Builder::new().workers(workers).retake(false).thread_name(NAME).build().unwrap()
}

/// Says on which thread it was dropped.
struct Probe(Sender<Option<String>>);

fn probe() -> (Probe, Receiver<Option<String>>) {
    let (tx, rx) = channel();
    (Probe(tx), rx)
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().name().map(str::to_owned));
    }
}

/// Dropped once, and on a thread of the runtime.
#[track_caller]
fn dropped_inside(rx: &Receiver<Option<String>>) {
    assert_eq!(rx.recv().unwrap().as_deref(), Some(NAME));
    assert!(rx.recv().is_err(), "dropped twice");
}

/// Keeps a worker busy until the sender is dropped or used.
fn occupy(rt: &Runtime) -> (Sender<()>, JoinHandle<()>) {
    let (release, wait) = channel();
    let (begun_tx, begun) = channel();
    let task = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
    });
    begun.recv().unwrap();
    (release, task)
}

#[test]
fn spawn_and_await_gives_the_output() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let task = rt.spawn(async { String::from("out") });
    let (id, other) = (task.id(), task.abort_handle());
    assert_eq!(id, other.id());
    assert_eq!(rt.block_on(task).unwrap(), "out");
    assert!(other.is_finished());
    let ids: std::collections::HashSet<_> = (0..1000).map(|_| rt.spawn(async {}).id()).collect();
    assert_eq!(ids.len(), 1000);
}

/// A task of one runtime waits for those of another, and goes on where it belongs.
#[test]
fn await_of_another_runtimes_tasks() {
    let _watchdog = watchdog(60);
    let (rt, other) = (runtime(1), Builder::new().workers(1).thread_name("other").build().unwrap());
    let handle = other.handle().clone();
    rt.run(async move {
        for n in 0..1000 {
            let task = handle.spawn(async move {
                gopark::yield_now().await;
                n
            });
            assert_eq!(task.await.unwrap(), n);
            assert_eq!(thread::current().name(), Some(NAME));
        }
    });
}

/// Of many tasks that wait for each other's end in a chain, each is run twice: once to wait, once to go on.
#[test]
fn await_in_a_chain() {
    let _watchdog = watchdog(60);
    let polls = Arc::new(AtomicUsize::new(0));
    let count = polls.clone();
    runtime(2).run(async move {
        let mut last = gopark::spawn(async { gopark::yield_now().await });
        for _ in 0..1000 {
            let (mut before, count) = (last, count.clone());
            last = gopark::spawn(poll_fn(move |cx| {
                count.fetch_add(1, SeqCst);
                Pin::new(&mut before).poll(cx).map(Result::unwrap)
            }));
        }
        last.await.unwrap();
    });
    assert!(polls.load(SeqCst) <= 2000, "{polls:?} polls");
}

#[test]
fn panic_and_await_gives_the_payload() {
    let _watchdog = watchdog(60);
    #[derive(Debug, PartialEq)]
    struct Payload(u32);
    let rt = runtime(1);
    let task = rt.spawn(async { std::panic::panic_any(Payload(7)) });
    let id = task.id();
    let error = rt.block_on(task).unwrap_err();
    assert!(error.is_panic() && !error.is_cancelled() && error.id() == id);
    assert_eq!(*error.into_panic().downcast::<Payload>().unwrap(), Payload(7));
    let text = rt.block_on(rt.spawn(async { panic!("number {}", 5) })).unwrap_err();
    assert!(text.to_string().ends_with("panicked: number 5"), "{text}");
    assert_eq!(rt.block_on(rt.spawn(async { 1 })).unwrap(), 1, "the worker lives");
}

#[test]
fn abort_while_queued() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (release, busy) = occupy(&rt);
    let (probe, dropped) = probe();
    let task = rt.spawn(async move {
        drop(probe);
        panic!("polled after abort");
    });
    task.abort();
    assert!(!task.is_finished(), "it has a future still");
    assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Empty), "dropped inside abort");
    drop(release);
    let error: gopark::JoinError = rt.block_on(task).unwrap_err();
    assert!(error.is_cancelled() && !error.is_panic());
    assert!(error.try_into_panic().is_err());
    dropped_inside(&dropped);
    rt.block_on(busy).unwrap();
}

/// Trap S16: the future of a parked task is dropped by a worker, not inside `abort`.
#[test]
fn abort_while_parked() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    for _ in 0..100 {
        let (probe, dropped) = probe();
        let (tx, polled) = channel();
        let task = rt.spawn(async move {
            let _probe = probe;
            tx.send(()).unwrap();
            pending::<()>().await;
        });
        polled.recv().unwrap();
        task.abort();
        assert!(rt.block_on(task).unwrap_err().is_cancelled());
        dropped_inside(&dropped);
    }
}

#[test]
fn abort_while_running_and_pending() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (probe, dropped) = probe();
    let (begun_tx, begun) = channel();
    let (release, wait) = channel::<()>();
    let task = rt.spawn(async move {
        let _probe = probe;
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
        pending::<()>().await;
    });
    begun.recv().unwrap();
    task.abort();
    assert!(!task.is_finished());
    drop(release);
    assert!(rt.block_on(task).unwrap_err().is_cancelled());
    dropped_inside(&dropped);
}

#[test]
fn abort_while_running_and_ready_keeps_the_output() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (begun_tx, begun) = channel();
    let (release, wait) = channel::<()>();
    let task = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
        5
    });
    begun.recv().unwrap();
    task.abort();
    drop(release);
    assert_eq!(rt.block_on(task).unwrap(), 5);
}

#[test]
fn abort_after_done_changes_nothing() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let task = rt.spawn(async { 5 });
    while !task.is_finished() {
        thread::yield_now();
    }
    task.abort();
    task.abort_handle().abort();
    assert_eq!(rt.block_on(task).unwrap(), 5);
}

#[test]
fn abort_of_itself() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (tx, rx) = channel::<gopark::AbortHandle>();
    let task = rt.spawn(async move {
        rx.recv().unwrap().abort();
        gopark::yield_now().await;
        panic!("polled again");
    });
    tx.send(task.abort_handle()).unwrap();
    assert!(rt.block_on(task).unwrap_err().is_cancelled());
}

#[test]
fn drop_of_the_handle_detaches() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (tx, rx) = channel();
    let (release, busy) = occupy(&rt);
    // One that is queued when its handle goes, one that is parked.
    drop(rt.spawn({
        let tx = tx.clone();
        async move { tx.send("queued").unwrap() }
    }));
    drop(release);
    assert_eq!(rx.recv().unwrap(), "queued");
    let (polled_tx, polled) = channel();
    let task = rt.spawn(async move {
        let mut first = true;
        poll_fn(|cx| {
            if std::mem::take(&mut first) {
                polled_tx.send(cx.waker().clone()).unwrap();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        tx.send("parked").unwrap();
    });
    let waker = polled.recv().unwrap();
    drop(task);
    waker.wake();
    assert_eq!(rx.recv().unwrap(), "parked");
    rt.block_on(busy).unwrap();
}

/// An output that nobody takes is dropped, once, when the handle goes or the task is done, whichever is later.
#[test]
fn detached_output_is_dropped_once() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (probe, dropped) = probe();
    // It cannot be done before the handle goes.
    let (release, busy) = occupy(&rt);
    drop(rt.spawn(async { probe }));
    drop(release);
    dropped_inside(&dropped);
    rt.block_on(busy).unwrap();
    let (probe, dropped) = self::probe();
    let task = rt.spawn(async { probe });
    while !task.is_finished() {
        thread::yield_now();
    }
    drop(task);
    assert!(dropped.recv().is_ok() && dropped.recv().is_err());
}

/// Polled, hands its waker out, and is ready when told.
#[derive(Default)]
struct Puppet {
    polls: AtomicUsize,
    waker: AtomicWaker,
    done: AtomicUsize,
}

impl Puppet {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        self.polls.fetch_add(1, SeqCst);
        if self.done.load(SeqCst) == 1 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn until(&self, polls: usize) {
        while self.polls.load(SeqCst) < polls {
            thread::yield_now();
        }
    }
}

/// Traps S8 and S9: each wake from a foreign thread, after the poll before it, leads to a poll; none is taken for one
/// that came earlier.
#[test]
fn wake_after_each_poll_from_many_threads() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let puppet = Arc::new(Puppet::default());
                    let there = puppet.clone();
                    let task = rt.spawn(async move { poll_fn(|cx| there.poll(cx)).await });
                    for round in 1..=2000 {
                        puppet.until(round);
                        // The waker is the one that the poll before left, or one of a poll that still runs.
                        puppet.waker.wake();
                        if round % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                    puppet.until(2001);
                    puppet.done.store(1, SeqCst);
                    puppet.waker.wake();
                    rt.block_on(task).unwrap();
                });
            }
        });
    }
}

/// Trap S8: a wake during the poll, by another thread, runs the task again; wakes while it is queued are one wake.
#[test]
fn wake_during_the_poll_and_while_queued() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let polls = Arc::new(AtomicUsize::new(0));
    let (waker_tx, wakers) = channel::<Waker>();
    let (go, wait) = channel::<()>();
    let task = rt.spawn({
        let polls = polls.clone();
        poll_fn(move |cx| {
            let poll = polls.fetch_add(1, SeqCst) + 1;
            if poll == 3 {
                return Poll::Ready(());
            }
            waker_tx.send(cx.waker().clone()).unwrap();
            if poll == 1 {
                wait.recv().unwrap();
            }
            Poll::Pending
        })
    });
    let waker = wakers.recv().unwrap();
    waker.wake_by_ref();
    waker.wake_by_ref();
    go.send(()).unwrap();
    wakers.recv().unwrap();
    // Once the worker is at the next task, this one is parked after its second poll.
    let (release, busy) = occupy(&rt);
    assert_eq!(polls.load(SeqCst), 2);
    for _ in 0..10 {
        waker.wake_by_ref();
    }
    drop(release);
    rt.block_on(task).unwrap();
    rt.block_on(busy).unwrap();
    assert_eq!(polls.load(SeqCst), 3);
    // Too late for anything.
    waker.wake();
}

#[test]
fn wake_of_itself_runs_it_again() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let mut left = 10_000;
    rt.run(poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
}

/// Trap S16: when an aborted task is woken by a foreign thread that holds the last waker, that thread does not drop
/// the future.
#[test]
fn abort_and_wake_from_outside() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for _ in 0..500 {
        let (probe, dropped) = probe();
        let (waker_tx, wakers) = channel();
        let task = rt.spawn(async move {
            let _probe = probe;
            poll_fn::<(), _>(move |cx| {
                let _ = waker_tx.send(cx.waker().clone());
                Poll::Pending
            })
            .await;
        });
        let waker = wakers.recv().unwrap();
        let abort = task.abort_handle();
        drop(task);
        thread::scope(|scope| {
            scope.spawn(|| abort.abort());
            scope.spawn(|| waker.wake());
        });
        dropped_inside(&dropped);
    }
}

/// Traps S16 and S18: a future's drop runs under no lock of the runtime: it may spawn, wake, abort, sleep and drop
/// handles.
#[test]
fn drop_that_calls_the_runtime() {
    let _watchdog = watchdog(60);
    struct Busybody {
        other: Mutex<Option<JoinHandle<()>>>,
        waker: Arc<AtomicWaker>,
        count: Arc<AtomicUsize>,
    }
    impl Drop for Busybody {
        fn drop(&mut self) {
            self.waker.wake();
            let other = self.other.lock().unwrap().take().unwrap();
            other.abort();
            drop(other);
            let task = gopark::spawn(async {});
            task.abort();
            drop(gopark::spawn_blocking(|| {}));
            let mut sleep = gopark::time::sleep(std::time::Duration::from_secs(3600));
            let _ = Pin::new(&mut sleep).poll(&mut Context::from_waker(Waker::noop()));
            self.count.fetch_add(1, SeqCst);
        }
    }
    for shut_down in [false, true] {
        let rt = runtime(2);
        let count = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let waker = Arc::new(AtomicWaker::new());
                let there = waker.clone();
                let other = rt.spawn(async move {
                    poll_fn::<(), _>(|cx| {
                        there.register(cx.waker());
                        Poll::Pending
                    })
                    .await;
                });
                let busybody = Busybody { other: Mutex::new(Some(other)), waker, count: count.clone() };
                rt.spawn(async move {
                    let _busybody = busybody;
                    pending::<()>().await;
                })
            })
            .collect();
        if !shut_down {
            for task in tasks {
                task.abort();
                assert!(rt.block_on(task).unwrap_err().is_cancelled());
            }
        }
        drop(rt);
        assert_eq!(count.load(SeqCst), 100);
    }
}

/// A handle may be polled with one waker, then with another: only the last is woken, whenever the task ends.
#[test]
fn join_handle_polled_by_changing_wakers() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for _ in 0..1000 {
        let mut task = rt.spawn(gopark::yield_now());
        let first = Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop()));
        if first.is_pending() {
            rt.block_on(task).unwrap();
        }
    }
}
