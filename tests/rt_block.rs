//! `block_on`, `run`, `block_in_place`, `spawn_blocking`, and which runtime is the current one.

mod support;

use futures::task::{Spawn, SpawnExt};
use gopark::{Builder, Handle, Runtime};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::task::Poll;
use std::thread;
use support::{child, is_child, stuck, watchdog};

fn runtime(workers: usize) -> Runtime {
    // A worker that a test occupies stays so.
    Builder::new().workers(workers).retake(false).build().unwrap()
}

#[track_caller]
fn panics_with(part: &str, f: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it did not panic");
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap();
    assert!(text.starts_with("gopark: ") && text.contains(part) && !text.contains('\n'), "{text}");
}

#[test]
fn block_on_a_future_that_is_not_send() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let here = thread::current().id();
    let shared = Rc::new(5);
    let there = shared.clone();
    let sum = rt.block_on(async move {
        gopark::yield_now().await;
        let task = gopark::spawn(async { 2 });
        let n = task.await.unwrap();
        assert_eq!(thread::current().id(), here);
        *there + n
    });
    assert_eq!((sum, *shared), (7, 5));
}

#[test]
fn block_on_from_many_threads_at_once() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let together = Barrier::new(16);
    thread::scope(|scope| {
        for n in 0..16u32 {
            let (rt, together) = (&rt, &together);
            scope.spawn(move || {
                together.wait();
                for _ in 0..50 {
                    let local = Rc::new(n);
                    let out = rt.block_on(async {
                        let task = gopark::spawn(async move {
                            gopark::yield_now().await;
                            n
                        });
                        task.await.unwrap() + *local
                    });
                    assert_eq!(out, 2 * n);
                }
            });
        }
    });
}

/// Trap S15: the thread in `block_on` runs none of the runtime's tasks, so that one of them that never returns cannot
/// keep it; neither can tasks that occupy every worker.
#[test]
fn block_on_runs_nobody_elses_task() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let here = thread::current().id();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let release = stuck(&rt);
    for _ in 0..100 {
        let seen = seen.clone();
        drop(rt.spawn(async move { seen.lock().unwrap().push(thread::current().id()) }));
    }
    // Woken by a thread outside, many times, beside a hundred runnable tasks and a worker that is stuck.
    let mut polls = 0;
    rt.block_on(poll_fn(|cx| {
        polls += 1;
        if polls == 100 {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        thread::spawn(move || waker.wake());
        Poll::Pending
    }));
    assert!(seen.lock().unwrap().is_empty());
    drop(release);
    let last = rt.block_on(rt.spawn(async { thread::current().id() })).unwrap();
    assert_ne!(last, here);
    drop(rt);
    let seen = seen.lock().unwrap();
    assert!(!seen.contains(&here));
}

/// Trap S7: a `block_on` polls once per wake: the flag is reset after each poll, and what others do to the thread's
/// std token is no wake.
#[test]
fn block_on_polls_once_per_wake() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let mut polls = 0;
    let done = Arc::new(AtomicUsize::new(0));
    let mut helper = None;
    rt.block_on(poll_fn(|cx| {
        polls += 1;
        match polls {
            1 => {
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            2 => {
                let (waker, me, done) = (cx.waker().clone(), thread::current(), done.clone());
                helper = Some(thread::spawn(move || {
                    for _ in 0..20_000 {
                        me.unpark();
                        thread::yield_now();
                    }
                    done.store(1, SeqCst);
                    waker.wake();
                }));
                Poll::Pending
            }
            _ if done.load(SeqCst) == 1 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }));
    assert_eq!(polls, 3);
    helper.unwrap().join().unwrap();
}

/// Traps S7 and S13: no wake of a `block_on` is lost, whenever it comes.
#[test]
fn block_on_and_wakes_in_every_moment() {
    let _watchdog = watchdog(60);
    let (rt, (tx, rx)) = (runtime(1), channel::<std::task::Waker>());
    let flag = Arc::new(AtomicUsize::new(0));
    let there = flag.clone();
    let waker_thread = thread::spawn(move || {
        for waker in rx {
            there.fetch_add(1, SeqCst);
            waker.wake();
        }
    });
    for round in 1..=20_000 {
        let mut sent = false;
        rt.block_on(poll_fn(|cx| {
            if !std::mem::replace(&mut sent, true) {
                tx.send(cx.waker().clone()).unwrap();
            }
            if flag.load(SeqCst) == round { Poll::Ready(()) } else { Poll::Pending }
        }));
    }
    drop(tx);
    waker_thread.join().unwrap();
}

/// Traps S3, S11 and S20: a nested `block_on` gives the P away with all that is queued, and takes one back only if it
/// gave one.
#[test]
fn block_on_nested_in_tasks() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        for _ in 0..200 {
            let out = rt.run(async {
                let before = gopark::spawn(async { 1 });
                let inner = gopark::block_on(async {
                    let n = before.await.unwrap();
                    let deeper = gopark::spawn(async { gopark::block_on(async { gopark::spawn(async { 2 }).await }) });
                    n + deeper.await.unwrap().unwrap()
                });
                gopark::yield_now().await;
                inner + gopark::block_in_place(|| gopark::run(async { 4 }))
            });
            assert_eq!(out, 7);
        }
    }
}

/// Trap S20: the inner of two nested calls must not bring home a P that the outer one gave away: one worker, so that a
/// P taken wrongly is the only one.
#[test]
fn block_on_inside_block_in_place() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    for _ in 0..300 {
        let out = rt.run(async {
            gopark::block_in_place(|| {
                let first = gopark::block_on(async { gopark::spawn(async { 9 }).await.unwrap() });
                // The outer closure goes on: still nobody else may be kept waiting.
                let (tx, rx) = channel();
                drop(gopark::spawn(async move { tx.send(1).unwrap() }));
                let second = rx.recv().unwrap();
                let third = gopark::block_in_place(|| {
                    let (tx, rx) = channel();
                    drop(gopark::spawn(async move { tx.send(1).unwrap() }));
                    rx.recv().unwrap()
                });
                first + second + third
            })
        });
        assert_eq!(out, 11);
    }
}

/// Trap S3: the task in the run-next slot, and traps S10 and S11: what is in the local queue behind it, run elsewhere
/// while their thread blocks; and the task that blocked goes on afterwards, also when it yields without a P.
#[test]
fn block_in_place_hands_the_queue_over() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        for n in [1, 2, 100, 1000] {
            rt.run(async move {
                let (tx, rx) = channel();
                for i in 0..n {
                    let tx = tx.clone();
                    drop(gopark::spawn(async move { tx.send(i).unwrap() }));
                }
                gopark::block_in_place(|| {
                    for _ in 0..n {
                        rx.recv().unwrap();
                    }
                });
                gopark::yield_now().await;
                gopark::yield_now().await;
            });
        }
    }
}

/// Trap S10: tasks that come back without a P while all Ps are busy are queued again, not lost.
#[test]
fn block_in_place_and_yield_by_many_tasks_on_one_p() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            rt.spawn(async move {
                for round in 0..50 {
                    if (n + round) % 3 == 0 {
                        gopark::block_in_place(thread::yield_now);
                    }
                    gopark::yield_now().await;
                }
                n
            })
        })
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(rt.block_on(task).unwrap(), n);
    }
}

/// `block_in_place` outside a runtime, and in a thread of the blocking pool, only calls the closure.
#[test]
fn block_in_place_elsewhere() {
    let _watchdog = watchdog(60);
    assert_eq!(gopark::block_in_place(|| 3), 3);
    let rt = runtime(1);
    assert_eq!(rt.block_on(async { gopark::block_in_place(|| 4) }), 4);
    let nested = rt.spawn_blocking(|| gopark::block_in_place(|| gopark::block_on(async { 5 })));
    assert_eq!(rt.block_on(nested).unwrap(), 5);
}

/// A stuck task cannot delay a `block_on`, nor, where there is a second worker, anything else.
#[test]
fn block_on_beside_a_stuck_task() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let release = stuck(&rt);
    for _ in 0..200 {
        assert_eq!(rt.block_on(async { gopark::spawn(async { 6 }).await.unwrap() }), 6);
        rt.block_on(async { gopark::time::sleep(std::time::Duration::from_micros(50)).await });
    }
    drop(release);
}

#[test]
fn run_makes_it_a_task_on_a_worker() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).thread_name("the-workers").build().unwrap();
    let name = rt.run(async { thread::current().name().map(str::to_owned) });
    assert_eq!(name.as_deref(), Some("the-workers"));
    assert_eq!(rt.handle().run(async { 1 }), 1);
    // Inside a runtime the free functions use it.
    let same = rt.run(async {
        let name = || thread::current().name().map(str::to_owned);
        (gopark::run(async move { name() }), gopark::block_on(async move { name() }))
    });
    assert_eq!(same, (Some("the-workers".into()), Some("the-workers".into())));
}

#[test]
fn free_functions_make_a_runtime_of_their_own() {
    let _watchdog = watchdog(60);
    assert_eq!(gopark::run(async { gopark::spawn(async { 42 }).await.unwrap() }), 42);
    assert_eq!(gopark::block_on(async { gopark::spawn_blocking(|| 42).await.unwrap() }), 42);
    assert!(Handle::try_current().is_none());
}

/// Many blocking closures at once, each waiting for all of the others; beside a worker that is stuck.
#[test]
fn spawn_blocking_runs_side_by_side() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let release = stuck(&rt);
    let together = Arc::new(Barrier::new(50));
    let closures: Vec<_> = (0..50)
        .map(|n| {
            let together = together.clone();
            rt.spawn_blocking(move || {
                together.wait();
                n
            })
        })
        .collect();
    for (n, closure) in closures.into_iter().enumerate() {
        assert_eq!(rt.block_on(closure).unwrap(), n);
    }
    drop(release);
}

/// Trap S4: each of many closures submitted in a burst to threads that are about to rest is run.
#[test]
fn spawn_blocking_in_bursts() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(4).build().unwrap();
    for round in 0..500 {
        let closures: Vec<_> = (0..round % 7 + 1).map(|n| rt.spawn_blocking(move || n)).collect();
        for (n, closure) in closures.into_iter().enumerate() {
            assert_eq!(rt.block_on(closure).unwrap(), n);
        }
    }
}

/// Trap S5: with no thread left for them, closures and tasks wait for those there are, and none is lost.
#[test]
fn spawn_blocking_with_few_threads() {
    let _watchdog = watchdog(60);
    for (workers, max_threads) in [(1, 1), (1, 0), (2, 0), (2, 1)] {
        let rt = Builder::new().workers(workers).max_threads(max_threads).build().unwrap();
        for _ in 0..20 {
            let closures: Vec<_> = (0..50).map(|n| rt.spawn_blocking(move || n)).collect();
            let tasks: Vec<_> = (0..50).map(|n| rt.spawn(async move { n })).collect();
            for (n, closure) in closures.into_iter().chain(tasks).enumerate() {
                assert_eq!(rt.block_on(closure).unwrap(), n % 50);
            }
        }
    }
}

#[test]
fn abort_of_a_closure_before_and_after_it_has_begun() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(1).build().unwrap();
    let (begun_tx, begun) = channel();
    let (release, wait) = channel::<()>();
    let first = rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
        1
    });
    begun.recv().unwrap();
    // Both workers and threads are taken: one in the closure, one in a task.
    let release_worker = stuck(&rt);
    let second = rt.spawn_blocking(|| panic!("it was aborted"));
    first.abort();
    second.abort();
    drop((release, release_worker));
    assert_eq!(rt.block_on(first).unwrap(), 1);
    assert!(rt.block_on(second).unwrap_err().is_cancelled());
}

#[test]
fn calls_outside_a_runtime_panic_with_one_sentence() {
    let _watchdog = watchdog(60);
    panics_with("Handle::current needs a runtime", || drop(Handle::current()));
    panics_with("spawn needs a runtime", || drop(gopark::spawn(async {})));
    panics_with("spawn_blocking needs a runtime", || drop(gopark::spawn_blocking(|| {})));
    panics_with("sleep needs a runtime", || drop(gopark::time::sleep(std::time::Duration::ZERO)));
    panics_with("timeout needs a runtime", || drop(gopark::time::timeout(std::time::Duration::ZERO, async {})));
    panics_with("interval needs a runtime", || drop(gopark::time::interval(std::time::Duration::from_secs(1))));
    panics_with("a socket needs a runtime", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _ = gopark::net::TcpListener::from_std(listener);
    });
    assert!(Handle::try_current().is_none());
}

/// A branch that is always ready again does not keep another of the same `block_on` from its turn.
#[test]
fn timeout_in_block_on_beside_what_is_always_ready() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).build().unwrap();
    rt.block_on(async {
        let socket = gopark::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let sends = async {
            loop {
                let _ = socket.send_to(b"x", addr).await;
            }
        };
        gopark::time::timeout(std::time::Duration::from_millis(20), sends).await.map(|(): ()| ()).unwrap_err();
    });
}

#[test]
fn enter_guards_nest() {
    let _watchdog = watchdog(60);
    let named = |name: &str| Builder::new().workers(1).thread_name(name).build().unwrap();
    let (a, b) = (named("runtime-a"), named("runtime-b"));
    let name = || {
        let task = Handle::current().spawn(async { thread::current().name().map(str::to_owned) });
        futures::executor::block_on(task).unwrap().unwrap()
    };
    {
        let _in_a = a.enter();
        assert_eq!(name(), "runtime-a");
        {
            let _in_b = b.handle().enter();
            assert_eq!(name(), "runtime-b");
            // `block_on` enters its own, and leaves it.
            assert_eq!(
                a.block_on(async { futures::FutureExt::map(gopark::spawn(async {}), |_| name()).await }),
                "runtime-a"
            );
            assert_eq!(name(), "runtime-b");
        }
        assert_eq!(name(), "runtime-a");
    }
    assert!(Handle::try_current().is_none());
    // In whatever order they go.
    let [first, second, third] = [a.enter(), b.enter(), a.enter()];
    drop(second);
    assert_eq!(name(), "runtime-a");
    drop(third);
    assert_eq!(name(), "runtime-a");
    let last = b.enter();
    drop(first);
    assert_eq!(name(), "runtime-b");
    drop(last);
    assert!(Handle::try_current().is_none());
    // On a worker of one runtime, the other.
    let b_handle = b.handle().clone();
    let names = a.run(async move {
        let before = thread::current().name().map(str::to_owned).unwrap();
        let inside =
            b_handle.block_on(async { gopark::spawn(async { thread::current().name().map(str::to_owned) }).await });
        let after = gopark::spawn(async { thread::current().name().map(str::to_owned) }).await;
        (before, inside.unwrap().unwrap(), after.unwrap().unwrap())
    });
    assert_eq!(names, ("runtime-a".into(), "runtime-b".into(), "runtime-a".into()));
}

#[test]
fn handle_is_a_futures_spawner() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let handle = rt.handle().clone();
    assert!(handle.status().is_ok());
    let task = handle.spawn_with_handle(async { 8 }).unwrap();
    assert_eq!(rt.block_on(task), 8);
    drop(rt);
    assert!(handle.status().unwrap_err().is_shutdown());
    assert!(SpawnExt::spawn(&handle, async {}).unwrap_err().is_shutdown());
}

#[test]
fn thread_hooks_run_once_per_thread() {
    let _watchdog = watchdog(60);
    let started = Arc::new(Mutex::new(Vec::new()));
    let stopped = Arc::new(Mutex::new(Vec::new()));
    let note = |list: &Arc<Mutex<Vec<_>>>| {
        let list = list.clone();
        move || {
            assert_eq!(thread::current().name(), Some("hooked"));
            list.lock().unwrap().push(thread::current().id());
        }
    };
    let builder = Builder::new().workers(2).thread_name("hooked");
    let rt = builder.on_thread_start(note(&started)).on_thread_stop(note(&stopped)).build().unwrap();
    let together = Arc::new(Barrier::new(8));
    let closures: Vec<_> = (0..8)
        .map(|_| {
            let (together, started) = (together.clone(), started.clone());
            rt.spawn_blocking(move || {
                together.wait();
                assert!(started.lock().unwrap().contains(&thread::current().id()));
            })
        })
        .collect();
    for closure in closures {
        rt.block_on(closure).unwrap();
    }
    drop(rt);
    let (mut started, mut stopped) = (started.lock().unwrap().clone(), stopped.lock().unwrap().clone());
    let by_name = |id: &thread::ThreadId| format!("{id:?}");
    started.sort_by_key(by_name);
    stopped.sort_by_key(by_name);
    assert_eq!(started, stopped);
    assert!(started.len() >= 8);
    started.dedup();
    assert_eq!(started, stopped, "a thread was told twice");
}

#[test]
fn builder_errors_name_what_is_wrong() {
    let _watchdog = watchdog(60);
    for workers in [0, 4097, usize::MAX] {
        let error = Builder::new().workers(workers).build().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("workers({workers})")), "{error}");
    }
    let error = Builder::new().workers(1).thread_name("a\0b").build().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("NUL"), "{error}");
    // More than an address space has room for: the system refuses the thread.
    let error = Builder::new().workers(1).thread_stack_size(1 << 60).build().unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
}

/// `GOPARK_PROCS`: counted by how many tasks can be in a poll at once; what is no positive number is an error that
/// names it, also where a free function would make the runtime.
#[test]
fn gopark_procs() {
    const TEST: &str = "gopark_procs";
    let _watchdog = watchdog(60);
    if is_child(TEST) {
        if std::env::var("GOPARK_EXPECT").unwrap() == "error" {
            let value = std::env::var("GOPARK_PROCS").unwrap();
            let error = Runtime::new().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("GOPARK_PROCS={value}:")), "{error}");
            panics_with(&format!("GOPARK_PROCS={value}:"), || gopark::run(async {}));
            panics_with(&format!("GOPARK_PROCS={value}:"), || gopark::block_on(async {}));
            assert_eq!(Builder::new().workers(1).build().unwrap().run(async { 1 }), 1, "it says nothing then");
        } else {
            let n: usize = std::env::var("GOPARK_EXPECT").unwrap().parse().unwrap();
            let rt = Builder::new().retake(false).build().unwrap();
            let together = Arc::new(Barrier::new(n));
            let tasks: Vec<_> = (0..n)
                .map(|_| {
                    let together = together.clone();
                    rt.spawn(async move { together.wait().is_leader() })
                })
                .collect();
            let leaders: Vec<_> = tasks.into_iter().map(|task| rt.block_on(task).unwrap()).collect();
            assert_eq!(leaders.iter().filter(|&&leader| leader).count(), 1);
            // And not more: `n` tasks that stay leave no place for another.
            let releases: Vec<_> = (0..n).map(|_| stuck(&rt)).collect();
            let next = rt.spawn(async {});
            rt.block_on(rt.spawn_blocking(|| {})).unwrap();
            assert!(!next.is_finished());
            drop(releases);
            rt.block_on(next).unwrap();
        }
        return;
    }
    for (value, expect) in [
        ("1", "1"),
        ("3", "3"),
        (" 2 ", "2"),
        ("0", "error"),
        ("-1", "error"),
        ("x", "error"),
        ("", "error"),
        ("1.5", "error"),
    ] {
        let output = child(TEST, &[("GOPARK_PROCS", value), ("GOPARK_EXPECT", expect)]);
        assert!(output.status.success(), "{value:?}: {output:?}");
    }
}

/// A waker of `block_on` that is used after it has returned does nothing.
#[test]
fn block_on_waker_outlives_it() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let waker = rt.block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
    waker.wake_by_ref();
    drop(rt);
    waker.wake();
}
