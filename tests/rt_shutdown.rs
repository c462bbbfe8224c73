//! The end of a runtime: what is dropped, who waits for it, what still works afterwards.

mod support;

use futures::task::AtomicWaker;
use gopark::{Builder, Handle, JoinHandle, Runtime};
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::{child, is_child, stuck, watchdog};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Tasks that were never polled, that yield for ever, that are parked for ever, that sleep, and that wait for each
/// other: all are dropped once the runtime is gone (traps S10 and S17).
#[test]
fn drop_of_the_runtime_drops_every_task() {
    let _watchdog = watchdog(60);
    for workers in [1, 2, 8] {
        let rt = runtime(workers);
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = || Counted(drops.clone());
        let mut n = 0;
        let mut handles = Vec::new();
        for _ in 0..100 {
            let (a, b, c, d) = (counted(), counted(), counted(), counted());
            let parked = rt.spawn(async move {
                let _a = a;
                pending::<()>().await;
            });
            drop(rt.spawn(async move {
                let _b = b;
                let _ = parked.await;
            }));
            handles.push(rt.spawn(async move {
                let _c = c;
                loop {
                    gopark::yield_now().await;
                }
            }));
            drop(rt.spawn(async move {
                let _d = d;
                gopark::time::sleep(Duration::from_secs(3600)).await;
            }));
            n += 4;
        }
        drop(rt);
        assert_eq!(drops.load(SeqCst), n);
        for handle in handles {
            let error: gopark::JoinError = futures::executor::block_on(handle).unwrap_err();
            assert!(error.is_cancelled());
        }
    }
}

/// Trap S17: tasks whose drops spawn, wake, abort and join each other in rings; and spawns and wakes from threads
/// outside while the runtime ends.
#[test]
fn shutdown_while_work_arrives() {
    let _watchdog = watchdog(60);
    struct Meddler {
        handle: Handle,
        drops: Arc<AtomicUsize>,
        wakers: Arc<Vec<AtomicWaker>>,
        others: Arc<Mutex<Vec<JoinHandle<()>>>>,
    }
    impl Drop for Meddler {
        fn drop(&mut self) {
            self.drops.fetch_add(1, SeqCst);
            let drops = Counted(self.drops.clone());
            let late = self.handle.spawn(async move {
                let _drops = drops;
                gopark::yield_now().await;
                pending::<()>().await;
            });
            for waker in self.wakers.iter() {
                waker.wake();
            }
            let other = self.others.lock().unwrap().pop();
            if let Some(other) = other {
                other.abort();
            }
            drop(late);
        }
    }
    for round in 0..60 {
        let rt = runtime([1, 2, 4][round % 3]);
        let drops = Arc::new(AtomicUsize::new(0));
        let wakers: Arc<Vec<_>> = Arc::new((0..16).map(|_| AtomicWaker::new()).collect());
        let others = Arc::new(Mutex::new(Vec::new()));
        for n in 0..16 {
            let (handle, drops, wakers, others_there) =
                (rt.handle().clone(), drops.clone(), wakers.clone(), others.clone());
            let meddler = Meddler { handle, drops, wakers: wakers.clone(), others: others_there };
            let task = rt.spawn(async move {
                let _meddler = meddler;
                poll_fn::<(), _>(|cx| {
                    wakers[n].register(cx.waker());
                    Poll::Pending
                })
                .await;
            });
            others.lock().unwrap().push(task);
        }
        let (handle, from_outside) = (rt.handle().clone(), Arc::new(AtomicUsize::new(0)));
        let (outside, stop) = (from_outside.clone(), Arc::new(AtomicUsize::new(0)));
        let stopped = stop.clone();
        let wakers_outside = wakers.clone();
        let outsider = thread::spawn(move || {
            let mut spawned = 0;
            while stopped.load(SeqCst) == 0 {
                let counted = Counted(outside.clone());
                drop(handle.spawn(async move {
                    let _counted = counted;
                    pending::<()>().await;
                }));
                spawned += 1;
                wakers_outside[spawned % 16].wake();
            }
            spawned
        });
        if round % 2 == 0 {
            thread::yield_now();
        }
        drop(rt);
        stop.store(1, SeqCst);
        let spawned = outsider.join().unwrap();
        // Each meddler, and what it spawned when it went.
        assert_eq!(drops.load(SeqCst), 32);
        assert_eq!(from_outside.load(SeqCst), spawned, "a task that came in late is dropped as well");
    }
}

#[test]
fn spawn_after_shutdown_is_cancelled() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let handle = rt.handle().clone();
    drop(rt);
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = Counted(drops.clone());
    let task = handle.spawn(async move { drop(counted) });
    assert!(task.is_finished());
    assert!(futures::executor::block_on(task).unwrap_err().is_cancelled());
    assert_eq!(drops.load(SeqCst), 1);
    let closure = handle.spawn_blocking(|| {});
    assert!(futures::executor::block_on(closure).unwrap_err().is_cancelled());
    // A future still runs in `block_on`, which needs no worker.
    assert_eq!(handle.block_on(async { 3 }), 3);
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| handle.run(async { 3 })));
    let text = *run.unwrap_err().downcast::<&str>().unwrap();
    assert!(text.contains("shut down before the future given to `run` was ready"), "{text}");
}

/// Trap S9: wakers, handles and join handles outlive the runtime and do no harm, on any thread.
#[test]
fn wakers_and_handles_outlive_the_runtime() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let (tx, wakers) = channel::<Waker>();
    let task = rt.spawn(poll_fn(move |cx| -> Poll<()> {
        tx.send(cx.waker().clone()).unwrap();
        Poll::Pending
    }));
    let waker = wakers.recv().unwrap();
    let abort = task.abort_handle();
    let handle = rt.handle().clone();
    drop(rt);
    waker.wake_by_ref();
    abort.abort();
    assert!(task.is_finished());
    let _ = format!("{handle:?} {task:?} {abort:?}");
    thread::spawn(move || {
        waker.wake_by_ref();
        drop((waker, abort, handle));
    })
    .join()
    .unwrap();
    assert!(futures::executor::block_on(task).unwrap_err().is_cancelled());
}

#[test]
fn shutdown_timeout_when_nothing_is_stuck() {
    let _watchdog = watchdog(60);
    for timeout in [Duration::from_secs(30), Duration::MAX] {
        let rt = runtime(2);
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = Counted(drops.clone());
        drop(rt.spawn(async move {
            let _counted = counted;
            pending::<()>().await;
        }));
        assert_eq!(rt.shutdown_timeout(timeout), Ok(()));
        assert_eq!(drops.load(SeqCst), 1);
    }
}

/// With a closure and a poll that do not end: it says so in time, and the runtime ends when they do.
#[test]
fn shutdown_timeout_with_something_stuck() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = Counted(drops.clone());
    drop(rt.spawn(async move {
        let _counted = counted;
        pending::<()>().await;
    }));
    let (stopped_tx, stopped) = channel();
    let release_task = stuck(&rt);
    let (release, wait) = channel::<()>();
    let (begun_tx, begun) = channel();
    let closure = rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
        stopped_tx.send(()).unwrap();
        11
    });
    begun.recv().unwrap();
    let before = Instant::now();
    let still = rt.shutdown_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(before.elapsed() >= Duration::from_millis(50));
    assert_eq!(still.threads(), 2, "{still}");
    // The task and the closure, but not the task that only waits.
    assert_eq!(still.tasks().len(), 2, "{still}");
    assert!(still.tasks().iter().any(|task| task.id() == closure.id()), "{still}");
    assert!(still.tasks().iter().all(|task| task.spawned_at().file() == file!()), "{still}");
    let (text, task) = (still.to_string(), still.tasks()[0]);
    assert!(text.starts_with("the runtime has not ended; threads: 2; task "), "{text}");
    assert!(text.contains(&format!("; task {}, spawned at {}", task.id(), task.spawned_at())), "{text}");
    drop((release, release_task));
    stopped.recv().unwrap();
    assert_eq!(futures::executor::block_on(closure).unwrap(), 11, "a closure that has begun runs to its end");
    while drops.load(SeqCst) == 0 {
        thread::yield_now();
    }
}

/// A process whose runtime is stuck goes on, and ends with `main`.
#[test]
fn shutdown_timeout_and_the_end_of_the_process() {
    const TEST: &str = "shutdown_timeout_and_the_end_of_the_process";
    let _watchdog = watchdog(60);
    if is_child(TEST) {
        let rt = runtime(1);
        let (begun_tx, begun) = channel();
        drop(rt.spawn_blocking(move || {
            begun_tx.send(()).unwrap();
            loop {
                thread::park();
            }
        }));
        begun.recv().unwrap();
        assert!(rt.shutdown_timeout(Duration::from_millis(10)).is_err());
        assert_eq!(runtime(1).run(async { 5 }), 5);
        println!("went on");
        return;
    }
    let output = child(TEST, &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("went on"), "{output:?}");
}

#[test]
fn shutdown_background_does_not_wait() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = Counted(drops.clone());
    drop(rt.spawn(async move {
        let _counted = counted;
        pending::<()>().await;
    }));
    let release = stuck(&rt);
    rt.shutdown_background();
    assert_eq!(drops.load(SeqCst), 0, "the worker is still in its poll");
    drop(release);
    while drops.load(SeqCst) == 0 {
        thread::yield_now();
    }
}

/// Dropping waits for polls that are under way and closures that have begun; what has not begun is cancelled.
#[test]
fn drop_of_the_runtime_waits_for_polls_and_closures() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(1).build().unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    let release = stuck(&rt);
    let (release_closure, wait) = channel::<()>();
    let (begun_tx, begun) = channel();
    let there = ended.clone();
    let first = rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
        there.store(1, SeqCst);
    });
    begun.recv().unwrap();
    let second = rt.spawn_blocking(|| panic!("begun after the end"));
    let releaser = thread::spawn(move || {
        drop(release);
        thread::yield_now();
        drop(release_closure);
    });
    drop(rt);
    assert_eq!(ended.load(SeqCst), 1);
    assert!(first.is_finished());
    // It may have had its turn before the stop was seen only if a thread was free: there was none.
    match futures::executor::block_on(second) {
        Err(error) => assert!(error.is_cancelled() || error.is_panic()),
        Ok(()) => unreachable!(),
    }
    releaser.join().unwrap();
}

/// A runtime that is dropped by one of its own tasks, in a closure of its own, in `block_in_place`, in its own
/// `block_on`, and by another runtime's task: neither hangs nor aborts, and every task is dropped.
#[test]
fn drop_of_the_runtime_from_inside() {
    let _watchdog = watchdog(60);
    let other = runtime(1);
    for round in 0..200 {
        let rt = runtime([1, 2][round % 2]);
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = Counted(drops.clone());
        drop(rt.spawn(async move {
            let _counted = counted;
            pending::<()>().await;
        }));
        let handle = rt.handle().clone();
        let (tx, gone) = channel();
        let counted = Counted(drops.clone());
        match round / 2 % 6 {
            0 => drop(handle.spawn(async move {
                let _counted = counted;
                drop(rt);
                tx.send(()).unwrap();
                gopark::yield_now().await;
                pending::<()>().await;
            })),
            1 => drop(handle.spawn_blocking(move || {
                let _counted = counted;
                drop(rt);
                tx.send(()).unwrap();
            })),
            2 => drop(handle.spawn(async move {
                let _counted = counted;
                gopark::block_in_place(|| drop(rt));
                tx.send(()).unwrap();
                gopark::yield_now().await;
            })),
            3 => {
                handle.block_on(async move {
                    let _counted = counted;
                    drop(rt);
                    tx.send(()).unwrap();
                });
            }
            4 => drop(other.spawn(async move {
                let _counted = counted;
                drop(rt);
                tx.send(()).unwrap();
            })),
            _ => drop(handle.spawn(async move {
                let _counted = counted;
                let still = rt.shutdown_timeout(Duration::from_secs(3600));
                assert!(still.is_err(), "the task that waits is itself under way");
                tx.send(()).unwrap();
            })),
        }
        gone.recv().unwrap();
        while drops.load(SeqCst) < 2 {
            thread::yield_now();
        }
        // What is left is refused.
        let late = handle.spawn(async {});
        assert!(futures::executor::block_on(late).unwrap_err().is_cancelled());
    }
}

/// Dropped by the future of a task that is dropped because its own runtime shuts down.
#[test]
fn drop_of_the_runtime_by_the_drop_of_a_task() {
    let _watchdog = watchdog(60);
    for _ in 0..50 {
        let (inner, outer) = (runtime(1), runtime(1));
        let drops = Arc::new(AtomicUsize::new(0));
        let counted = Counted(drops.clone());
        drop(inner.spawn(async move {
            let _counted = counted;
            pending::<()>().await;
        }));
        let keep = outer.spawn(async move {
            let _inner = inner;
            pending::<()>().await;
        });
        drop(outer);
        assert!(futures::executor::block_on(keep).unwrap_err().is_cancelled());
        assert_eq!(drops.load(SeqCst), 1);
    }
}

/// Trap S17: many runtimes made and dropped at once leave no thread behind.
#[test]
fn runtimes_come_and_go() {
    const TEST: &str = "runtimes_come_and_go";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        let output = child(TEST, &[]);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let count = |dir| std::fs::read_dir(dir).unwrap().count();
    let (threads, fds) = (count("/proc/self/task"), count("/proc/self/fd"));
    // Joined one by one: a scope does not wait for the very end of its threads.
    let makers = [(); 4].map(|()| {
        thread::spawn(|| {
            for round in 0..50 {
                let rt = runtime(round % 3 + 1);
                let task = rt.spawn(async { gopark::spawn_blocking(|| 1).await.unwrap() });
                if round % 2 == 0 {
                    assert_eq!(rt.block_on(task).unwrap(), 1);
                }
            }
        })
    });
    makers.into_iter().for_each(|maker| maker.join().unwrap());
    assert_eq!((count("/proc/self/task"), count("/proc/self/fd")), (threads, fds));
}

/// `build` fails where no thread can be had, and leaves nothing behind.
#[test]
fn failed_build_leaves_nothing_behind() {
    const TEST: &str = "failed_build_leaves_nothing_behind";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        let output = child(TEST, &[]);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let count = |dir| std::fs::read_dir(dir).unwrap().count();
    let before = (count("/proc/self/task"), count("/proc/self/fd"));
    for _ in 0..20 {
        assert!(Builder::new().workers(1).thread_stack_size(1 << 60).build().is_err());
    }
    assert_eq!((count("/proc/self/task"), count("/proc/self/fd")), before);
}

/// Trap S17: a poll and a closure that are under way, and wait in `block_on` for a task, a timer or a socket of the
/// runtime that ends: they get their answer, so that the end comes.
#[test]
fn drop_of_the_runtime_while_block_on_waits_inside() {
    let _watchdog = watchdog(20);
    for workers in [1, 2] {
        let rt = runtime(workers);
        let (begun_tx, begun) = channel();
        let wait_for_a_task = |begun: Sender<()>| {
            move || {
                gopark::block_on(async {
                    let task = gopark::spawn(pending::<()>());
                    begun.send(()).unwrap();
                    assert!(task.await.unwrap_err().is_cancelled());
                })
            }
        };
        let closure = rt.spawn_blocking(wait_for_a_task(begun_tx.clone()));
        let in_a_poll = wait_for_a_task(begun_tx.clone());
        let poll = rt.spawn(async move { in_a_poll() });
        let socket = rt.spawn_blocking(move || {
            gopark::block_on(async {
                let listener = gopark::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                begun_tx.send(()).unwrap();
                let error = listener.accept().await.unwrap_err();
                assert!(error.get_ref().is_some_and(|inner| inner.is::<gopark::net::RuntimeGone>()));
            })
        });
        for _ in 0..3 {
            begun.recv().unwrap();
        }
        drop(rt);
        for task in [closure, poll, socket] {
            futures::executor::block_on(task).unwrap();
        }
    }
}

/// Trap S17: polls that block their thread, as nobody asked them not to, on what other tasks would release. Those are
/// dropped, with what they hold, so that the polls and the runtime end; whether or not the P was taken before the end.
#[test]
fn drop_of_the_runtime_while_polls_block_on_other_tasks() {
    let _watchdog = watchdog(20);
    for round in 0..40 {
        let workers = [1, 2][round % 2];
        let rt = runtime(workers);
        let (begun_tx, begun) = channel();
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let begun_tx = begun_tx.clone();
                rt.spawn(async move {
                    let (release, wait) = channel::<()>();
                    let parked = round % 4 < 2;
                    drop(gopark::spawn(async move {
                        if parked {
                            pending::<()>().await;
                        }
                        drop(release);
                    }));
                    begun_tx.send(()).unwrap();
                    assert!(wait.recv().is_err());
                })
            })
            .collect();
        for _ in 0..workers {
            begun.recv().unwrap();
        }
        if round >= 20 {
            // In every moment before and after the P is taken.
            thread::sleep(Duration::from_millis(round as u64 - 20));
        }
        drop(rt);
        tasks.into_iter().for_each(|task| futures::executor::block_on(task).unwrap());
    }
}
