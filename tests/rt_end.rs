//! Ends of a runtime whose threads are in the middle of something: aside, stuck, in a hook, in a drop, at their bound.

mod support;

use futures::task::Spawn;
use gopark::{Builder, Handle, Runtime};
use std::cell::RefCell;
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;
use support::{Gate, child, is_child, watchdog};

struct OnDrop<F: FnMut()>(F);
type BoxedOnDrop = OnDrop<Box<dyn FnMut()>>;

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Starts tasks that wait for ever, and do this when they are dropped.
fn waiting_tasks(rt: &Runtime, count: usize, on_drop: impl Fn() + Clone + Send + 'static) {
    let (begun_tx, begun) = channel();
    for _ in 0..count {
        let (on_drop, begun) = (OnDrop(on_drop.clone()), begun_tx.clone());
        drop(rt.spawn(async move {
            let _on_drop = on_drop;
            begun.send(()).unwrap();
            pending::<()>().await;
        }));
    }
    begun.iter().take(count).for_each(drop);
}

/// Waits in the network for what never comes, until the runtime says that it is gone.
fn wait_in_network(begun: &Sender<()>) {
    gopark::block_on(async {
        let listener = gopark::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        begun.send(()).unwrap();
        listener.accept().await.unwrap_err();
    });
}

/// A task holds a lock while it blocks in place; the drop of another takes the same lock; also where no thread more
/// is to be had.
#[test]
fn block_in_place_under_a_lock_that_a_drop_takes() {
    let _watchdog = watchdog(20);
    for max_threads in [0, 512] {
        let rt = Builder::new().workers(1).max_threads(max_threads).build().unwrap();
        let lock = Arc::new(Mutex::new(()));
        let (locks, handle) = (lock.clone(), rt.handle().clone());
        waiting_tasks(&rt, 1, move || drop(locks.lock().unwrap()));
        let (begun_tx, begun) = channel();
        drop(rt.spawn(async move {
            let _held = lock.lock().unwrap();
            begun_tx.send(()).unwrap();
            while handle.status().is_ok() {
                thread::yield_now();
            }
            gopark::block_in_place(|| ());
        }));
        begun.recv().unwrap();
        drop(rt);
    }
}

/// Two drops of which each waits for the other: while one of them blocks, another thread comes to the other, whether the tasks
/// wait for something or are in a queue.
#[test]
fn drops_that_wait_for_each_other() {
    let _watchdog = watchdog(60);
    for (workers, queued) in [(1, false), (1, true), (2, false), (2, true)] {
        let rt = Builder::new().workers(workers).build().unwrap();
        let (both, begun) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..2 {
            let (both, begun) = (both.clone(), begun.clone());
            drop(rt.spawn(async move {
                let _meets = OnDrop(move || _ = both.wait());
                begun.fetch_add(1, SeqCst);
                loop {
                    if queued { gopark::yield_now().await } else { pending().await }
                }
            }));
        }
        while begun.load(SeqCst) < 2 {
            thread::yield_now();
        }
        drop(rt);
    }
}

/// Where no thread is to be had, sysmon runs what must not wait: it is a thread of the runtime like others.
#[test]
fn drop_on_sysmon_and_the_current_runtime() {
    let _watchdog = watchdog(20);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let (told, dropped) = channel();
    waiting_tasks(&rt, 1, move || {
        told.send((thread::current().name().map(str::to_owned), Handle::try_current())).unwrap()
    });
    let (begun_tx, begun) = channel();
    let gate = Arc::new(Gate::default());
    let there = gate.clone();
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        there.wait();
    }));
    begun.recv().unwrap();
    let end = thread::spawn(move || drop(rt));
    let (name, current) = dropped.recv().unwrap();
    assert_eq!(name.as_deref(), Some("gopark-sysmon"));
    assert!(current.is_some());
    drop(current);
    gate.open();
    end.join().unwrap();
}

/// A waker that sysmon calls drops the runtime, which does not wait for that call.
#[test]
fn drop_of_the_runtime_on_sysmon() {
    struct Ends(Mutex<Option<Runtime>>, Sender<Option<String>>);
    impl Wake for Ends {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.send(thread::current().name().map(str::to_owned)).unwrap();
        }
    }
    let _watchdog = watchdog(20);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let (begun_tx, begun) = channel();
    let gate = Arc::new(Gate::default());
    let (there, handle) = (gate.clone(), rt.handle().clone());
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        there.wait();
    }));
    begun.recv().unwrap();
    let _entered = handle.enter();
    let mut slept = pin!(gopark::time::sleep(Duration::from_millis(1)));
    let (told, ended) = channel();
    let waker = Waker::from(Arc::new(Ends(Mutex::new(Some(rt)), told)));
    assert!(slept.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(ended.recv().unwrap().as_deref(), Some("gopark-sysmon"));
    gate.open();
}

/// Drops that block in place, one after the other: they are not nested, and do not start a thread each.
#[test]
fn many_drops_that_block_in_place() {
    let _watchdog = watchdog(60);
    for (max_threads, tasks) in [(0, 20_000), (512, 2000)] {
        let threads = Arc::new(AtomicUsize::new(0));
        let count = threads.clone();
        let hook = move || _ = count.fetch_add(1, SeqCst);
        let rt = Builder::new().workers(1).max_threads(max_threads).on_thread_start(hook).build().unwrap();
        waiting_tasks(&rt, tasks, || gopark::block_in_place(|| ()));
        drop(rt);
        assert!(threads.load(SeqCst) <= 100, "{} threads", threads.load(SeqCst));
    }
}

/// A drop that blocks holds up whoever drops the runtime, but not beyond the time he has set. At the bound, with the one
/// thread in a closure, nobody has a thread for the drop.
#[test]
fn shutdown_timeout_and_a_drop_that_blocks() {
    let _watchdog = watchdog(30);
    for max_threads in [0, 512] {
        let rt = Builder::new().workers(1).max_threads(max_threads).build().unwrap();
        let gate = Arc::new(Gate::default());
        let (in_drop, in_closure) = (gate.clone(), gate.clone());
        waiting_tasks(&rt, 1, move || in_drop.wait());
        let (begun_tx, begun) = channel();
        let closure = rt.spawn_blocking(move || {
            begun_tx.send(()).unwrap();
            in_closure.wait();
        });
        begun.recv().unwrap();
        // With the drop in the way it would not come back before the gate is open.
        assert!(rt.shutdown_timeout(Duration::from_millis(100)).unwrap_err().threads() > 0);
        gate.open();
        futures::executor::block_on(closure).unwrap();
    }
}

/// The last thread waits for a drop in another's hands: at the bound, with the one thread in a closure, that is sysmon.
#[test]
fn last_thread_ends_before_a_drop_is_done() {
    let _watchdog = watchdog(30);
    let (gate, in_closure, last) = (Arc::new(Gate::default()), Arc::new(Gate::default()), Arc::new(Gate::default()));
    let (held, stops) = (gate.clone(), last.clone());
    let rt = Builder::new().workers(1).max_threads(0).on_thread_stop(move || stops.open()).build().unwrap();
    let (dropping_tx, dropping) = channel();
    waiting_tasks(&rt, 1, move || {
        dropping_tx.send(()).unwrap();
        held.wait();
    });
    let (begun_tx, begun) = channel();
    let closure_gate = in_closure.clone();
    drop(rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        closure_gate.wait();
    }));
    begun.recv().unwrap();
    let end = thread::spawn(move || drop(rt));
    dropping.recv().unwrap();
    in_closure.open();
    last.wait();
    assert!(!end.is_finished());
    gate.open();
    end.join().unwrap();
}

/// The destructors of a thread's own variables are not the runtime's: who waits for its end only so long does not wait
/// longer for them.
#[test]
fn shutdown_timeout_and_a_thread_local_that_is_slow_to_drop() {
    thread_local!(static SLOW: RefCell<Option<BoxedOnDrop>> = const { RefCell::new(None) });
    let _watchdog = watchdog(30);
    let gate = Arc::new(Gate::default());
    let slow = gate.clone();
    let hook = move || {
        let gate = slow.clone();
        SLOW.set(Some(OnDrop(Box::new(move || gate.wait()))));
    };
    let rt = Builder::new().workers(1).on_thread_start(hook).build().unwrap();
    rt.run(async {});
    rt.shutdown_timeout(Duration::from_secs(20)).unwrap();
    gate.open();
}

/// The same where it waits as long as a Duration can say.
#[test]
fn shutdown_timeout_without_end_and_a_thread_local() {
    thread_local!(static SLOW: RefCell<Option<BoxedOnDrop>> = const { RefCell::new(None) });
    let _watchdog = watchdog(30);
    let gate = Arc::new(Gate::default());
    let slow = gate.clone();
    let rt = Builder::new().workers(1).build().unwrap();
    rt.run(async move { SLOW.set(Some(OnDrop(Box::new(move || slow.wait())))) });
    rt.shutdown_timeout(Duration::MAX).unwrap();
    gate.open();
}

/// A thread that has had nothing to do for long drops the runtime that it belongs to, by a variable of its own: it does not
/// wait for itself.
#[test]
fn runtime_in_a_thread_local_of_its_own() {
    const TEST: &str = "runtime_in_a_thread_local_of_its_own";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        let output = child(TEST, &[]);
        assert!(output.status.success(), "{output:?}");
        return;
    }
    thread_local!(static OWNER: RefCell<Option<BoxedOnDrop>> = const { RefCell::new(None) });
    let rt = Builder::new().workers(1).build().unwrap();
    let (owned, all) = (Arc::new(Mutex::new(None::<Runtime>)), Arc::new(Barrier::new(3)));
    let (gone_tx, gone) = channel();
    let closures = [(); 3].map(|()| {
        let (owned, all, gone) = (owned.clone(), all.clone(), gone_tx.clone());
        rt.spawn_blocking(move || {
            OWNER.set(Some(OnDrop(Box::new(move || {
                let rt = owned.lock().unwrap().take();
                if rt.is_some() {
                    drop(rt);
                    gone.send(()).unwrap();
                }
            }))));
            all.wait();
        })
    });
    closures.into_iter().for_each(|closure| rt.block_on(closure).unwrap());
    *owned.lock().unwrap() = Some(rt);
    gone.recv().unwrap();
}

/// A stop hook that blocks in place waits for a task that waits for the network.
#[test]
fn stop_hook_that_waits_for_a_task_in_the_network() {
    let _watchdog = watchdog(20);
    for workers in [1, 2] {
        let (tx, rx): (_, Receiver<()>) = channel();
        let rx = Mutex::new(rx);
        let hook = move || gopark::block_in_place(|| _ = rx.lock().unwrap().recv());
        let rt = Builder::new().workers(workers).on_thread_stop(hook).build().unwrap();
        let (begun_tx, begun) = channel();
        drop(rt.spawn(async move {
            let _tx = tx;
            wait_in_network(&begun_tx);
        }));
        begun.recv().unwrap();
        drop(rt);
    }
}

/// A poll that blocks, as nobody asked it not to, waits for another that waits for the network.
#[test]
fn stuck_poll_that_waits_for_a_task_in_the_network() {
    let _watchdog = watchdog(30);
    for workers in [1, 2, 3] {
        let rt = Builder::new().workers(workers).build().unwrap();
        let (tx, rx) = channel::<()>();
        let (begun_tx, begun) = channel();
        let begun_there = begun_tx.clone();
        drop(rt.spawn(async move {
            let _tx = tx;
            wait_in_network(&begun_there);
        }));
        drop(rt.spawn(async move {
            begun_tx.send(()).unwrap();
            rx.recv().unwrap_err();
        }));
        begun.iter().take(2).for_each(drop);
        drop(rt);
    }
}

/// A task's drop that runs on sysmon, since no thread was to be had, is not over when the last thread is.
#[test]
fn shutdown_timeout_and_a_drop_on_sysmon() {
    let _watchdog = watchdog(60);
    let [in_drop, in_closure, stopped] = [(); 3].map(|()| Arc::new(Gate::default()));
    let stops = stopped.clone();
    let rt = Builder::new().workers(1).max_threads(0).on_thread_stop(move || stops.open()).build().unwrap();
    let (held, (dropping_tx, dropping)) = (in_drop.clone(), channel());
    waiting_tasks(&rt, 1, move || {
        dropping_tx.send(()).unwrap();
        held.wait();
    });
    let (held, (begun_tx, begun)) = (in_closure.clone(), channel());
    drop(rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        held.wait();
    }));
    begun.recv().unwrap();
    let end = thread::spawn(move || rt.shutdown_timeout(Duration::from_secs(2)));
    dropping.recv().unwrap();
    in_closure.open();
    stopped.wait();
    let end = end.join().unwrap();
    in_drop.open();
    end.unwrap_err();
}

/// A poll waits for a socket's waiter to hear of the end, which a poll that steps aside and back all the time cannot put off.
#[test]
fn end_beside_a_poll_that_blocks_in_place_again_and_again() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(2).build().unwrap();
    let ((told_tx, told), (begun_tx, begun)) = (channel::<()>(), channel());
    let done = Arc::new(AtomicBool::new(false));
    let (over, there) = (done.clone(), begun_tx.clone());
    drop(rt.spawn(async move {
        there.send(()).unwrap();
        while !over.load(SeqCst) {
            gopark::block_in_place(|| thread::sleep(Duration::from_millis(3)));
            thread::sleep(Duration::from_millis(3));
        }
    }));
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        told.recv().unwrap_err();
    }));
    begun.iter().take(2).for_each(drop);
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = {
        let _entered = rt.enter();
        gopark::net::UnixStream::from_std(socket).unwrap()
    };
    let waiter = thread::spawn(move || {
        futures::executor::block_on(socket.readable()).unwrap_err();
        drop(told_tx);
        done.store(true, SeqCst);
    });
    drop(rt);
    waiter.join().unwrap();
}
