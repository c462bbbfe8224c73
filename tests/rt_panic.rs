//! Panics: each ends what it happened in, and nothing else (trap S23).

mod support;

use gopark::time::{Duration, sleep};
use gopark::{Builder, Runtime};
use std::any::Any;
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use support::{child, is_child, watchdog};

/// Panics when dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a bomb");
    }
}

/// The runtime still runs tasks on its one worker, wakes them, and runs closures.
#[track_caller]
fn lives(rt: &Runtime) {
    let sum = rt.block_on(async {
        let a = gopark::spawn(async {
            gopark::yield_now().await;
            20
        });
        let b = gopark::spawn_blocking(|| 22);
        a.await.unwrap() + b.await.unwrap()
    });
    assert_eq!(sum, 42);
}

fn quiet() -> Builder {
    Builder::new().workers(1).on_task_panic(|_, _| {})
}

/// Trap S23: each place in a task's life where its code may panic.
#[test]
fn panic_in_poll_and_in_drops() {
    let _watchdog = watchdog(60);
    let rt = quiet().build().unwrap();
    let error = rt.block_on(rt.spawn(async { panic!("in the poll") })).unwrap_err();
    assert!(error.is_panic());
    lives(&rt);

    // In the drop of the future, after abort: that is the task's result.
    let (tx, polled) = channel();
    let task = rt.spawn(async move {
        let _bomb = Bomb;
        tx.send(()).unwrap();
        pending::<()>().await;
    });
    polled.recv().unwrap();
    task.abort();
    assert!(rt.block_on(task).unwrap_err().is_panic());
    lives(&rt);

    // In the poll and again in the drop.
    let task = rt.spawn(poll_fn({
        let mut bomb = Some(Bomb);
        move |_| -> Poll<()> {
            let _ = bomb.as_mut();
            panic!("first")
        }
    }));
    let payload = rt.block_on(task).unwrap_err().into_panic();
    assert_eq!(*payload.downcast::<&str>().unwrap(), "first");
    lives(&rt);

    // In the drop of an output that nobody takes, and of a payload that nobody takes.
    drop(rt.spawn(async { Bomb }));
    lives(&rt);
    drop(rt.spawn(async { panic_any(Bomb) }));
    lives(&rt);
    let task = rt.spawn(async { Bomb });
    while !task.is_finished() {
        std::thread::yield_now();
    }
    drop(task);
    lives(&rt);
}

/// Trap S23: a waker of another executor that panics when it is woken or dropped.
#[test]
fn panic_in_a_foreign_waker() {
    let _watchdog = watchdog(60);
    struct Loud(AtomicUsize);
    impl Wake for Loud {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
            panic!("in wake");
        }
    }
    impl Drop for Loud {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("in a waker's drop");
            }
        }
    }
    let rt = quiet().build().unwrap();
    // Of a JoinHandle.
    let loud = Arc::new(Loud(AtomicUsize::new(0)));
    let (go, wait) = channel::<()>();
    let mut task = rt.spawn(async move {
        let _ = wait.recv();
        3
    });
    let waker = Waker::from(loud.clone());
    assert!(pin!(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    go.send(()).unwrap();
    lives(&rt);
    assert_eq!(loud.0.load(SeqCst), 1);
    assert_eq!(rt.block_on(task).unwrap(), 3);

    // Of a sleep, which a worker wakes. The last reference goes there as well.
    let mut sleep = {
        let _entered = rt.enter();
        Box::pin(gopark::time::sleep(std::time::Duration::from_millis(1)))
    };
    let waker = Waker::from(loud);
    assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(waker))).is_ok(), "the sleep holds another");
    rt.block_on(async { gopark::time::sleep_until(sleep.deadline() + std::time::Duration::from_millis(1)).await });
    lives(&rt);
    rt.block_on(sleep);
    lives(&rt);
}

/// Trap S23: hooks that panic.
#[test]
fn panic_in_hooks() {
    let _watchdog = watchdog(60);
    let stopped = Arc::new(AtomicUsize::new(0));
    let there = stopped.clone();
    let rt = Builder::new()
        .workers(1)
        .on_thread_start(|| panic!("in on_thread_start"))
        .on_thread_stop(move || {
            there.fetch_add(1, SeqCst);
            panic!("in on_thread_stop")
        })
        .on_task_panic(|_, _| panic_any(Bomb))
        .build()
        .unwrap();
    lives(&rt);
    drop(rt.spawn(async { panic!("for the hook") }));
    lives(&rt);
    drop(rt);
    assert!(stopped.load(SeqCst) >= 1);
}

/// The hook gets what no handle will deliver, with the line that spawned the task; a joined panic is not its affair.
#[test]
fn unjoined_panic_and_the_hook() {
    let _watchdog = watchdog(60);
    let (tx, seen) = channel();
    let rt = Builder::new()
        .workers(1)
        .on_task_panic(move |info, payload: &(dyn Any + Send)| {
            let text = payload.downcast_ref::<&str>().map(|t| (*t).to_owned());
            tx.send((info.id(), info.spawned_at().line(), text)).unwrap();
        })
        .build()
        .unwrap();
    let joined = rt.spawn(async { panic!("joined") });
    assert!(rt.block_on(joined).unwrap_err().is_panic());
    let (line, task) = (line!(), rt.spawn(async { panic!("unjoined") }));
    let id = task.id();
    drop(task);
    assert_eq!(seen.recv().unwrap(), (id, line, Some("unjoined".into())));
    drop(rt);
    assert!(seen.recv().is_err(), "told once");
}

/// Without a hook: one line on stderr.
#[test]
fn unjoined_panic_and_stderr() {
    const TEST: &str = "unjoined_panic_and_stderr";
    let _watchdog = watchdog(60);
    if is_child(TEST) {
        std::panic::set_hook(Box::new(|_| {}));
        let rt = Builder::new().workers(1).build().unwrap();
        drop(rt.spawn(async { panic!("said {}", "once") }));
        let (tx, polled) = channel::<()>();
        drop(rt.spawn(async move {
            let _tx = tx;
            panic_any(5u8)
        }));
        let _ = polled.recv();
        return;
    }
    let output = child(TEST, &[]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = stderr.lines().filter(|line| line.starts_with("gopark: task ")).collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].contains("rt_panic.rs:") && lines[0].ends_with("panicked: said once"), "{stderr}");
    assert!(lines[1].ends_with("panicked: (no text)"), "{stderr}");
}

/// Trap S19: a closure that panics answers.
#[test]
fn panic_in_a_blocking_closure() {
    let _watchdog = watchdog(60);
    let rt = quiet().build().unwrap();
    for _ in 0..50 {
        let task = rt.spawn_blocking(|| panic!("in a closure"));
        assert!(rt.block_on(task).unwrap_err().is_panic());
        drop(rt.spawn_blocking(|| panic_any(Bomb)));
    }
    lives(&rt);
    let task = rt.spawn(async { gopark::block_in_place(|| panic!("in place")) });
    assert!(rt.block_on(task).unwrap_err().is_panic());
    lives(&rt);
}

/// `block_on` and `run` hand a panic to their caller.
#[test]
fn panic_through_block_on_and_run() {
    let _watchdog = watchdog(60);
    let rt = quiet().build().unwrap();
    let text = |result: Result<(), Box<dyn Any + Send>>| *result.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(text(catch_unwind(AssertUnwindSafe(|| rt.block_on(async { panic!("one") })))), "one");
    assert_eq!(text(catch_unwind(AssertUnwindSafe(|| rt.run(async { panic!("two") })))), "two");
    assert!(gopark::Handle::try_current().is_none(), "the thread has left the runtime");
    lives(&rt);
    // Inside a task the panic is the task's, and the worker has its P again.
    let task = rt.spawn(async { gopark::block_on(async { panic!("nested") }) });
    assert!(rt.block_on(task).unwrap_err().is_panic());
    lives(&rt);
}

/// A worker drops the last that holds another runtime, and with it what that one's hooks own. Here that is the waker of who
/// waits for a closure.
#[test]
fn panic_in_the_drop_of_a_hook_at_the_end_of_a_join() {
    let _watchdog = watchdog(60);
    let rt = quiet().build().unwrap();
    let bomb = Bomb;
    let other = Builder::new().workers(1).on_task_panic(move |_, _| _ = &bomb).build().unwrap();
    let (open, gate) = channel::<()>();
    let closure = Arc::new(Mutex::new(rt.spawn_blocking(move || _ = gate.recv())));
    let there = closure.clone();
    let (polled_tx, polled) = channel();
    drop(other.spawn(poll_fn(move |cx| {
        let joined = Pin::new(&mut *there.lock().unwrap()).poll(cx);
        polled_tx.send(()).unwrap();
        joined.map(drop)
    })));
    polled.recv().unwrap();
    drop(other);
    open.send(()).unwrap();
    lives(&rt);
    drop(rt);
}

/// The same with the waker of who waits for a timer.
#[test]
fn panic_in_the_drop_of_a_hook_after_a_sleep() {
    let _watchdog = watchdog(60);
    let rt = quiet().build().unwrap();
    let (bomb, dropped) = (Bomb, Arc::new(()));
    let owned = dropped.clone();
    let other = Builder::new().workers(1).on_task_panic(move |_, _| _ = (&owned, &bomb)).build().unwrap();
    let handle = rt.handle().clone();
    let (polled_tx, polled) = channel();
    drop(other.spawn(async move {
        let mut sleep = {
            let _entered = handle.enter();
            Box::pin(sleep(Duration::from_millis(300)))
        };
        assert!(poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx))).await.is_pending());
        std::mem::forget(sleep);
        polled_tx.send(()).unwrap();
        pending::<()>().await;
    }));
    polled.recv().unwrap();
    drop(other);
    while Arc::strong_count(&dropped) > 1 {
        std::thread::yield_now();
    }
    lives(&rt);
}
