//! What must not go wrong around a stuck task: what its hook does, what is said where no thread is to be had, and the end.

mod support;

use gopark::net::UnixStream;
use gopark::time::sleep;
use gopark::{Builder, Runtime};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::{Gate, child, is_child, looks_of, watchdog};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

/// The runtime ends while a task waits for the drop of another that lies in its own thread's queue.
#[test]
fn drop_with_a_task_in_the_queue_of_a_stuck_thread() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        let (tx, rx) = channel::<()>();
        let (told, waiting) = channel();
        drop(rt.spawn(async move {
            drop(gopark::spawn(async move { drop((std::future::pending::<()>().await, tx)) }));
            told.send(()).unwrap();
            rx.recv().unwrap_err();
        }));
        waiting.recv().unwrap();
        drop(rt);
    }
}

/// Where no thread can be had, what blocks takes a worker's place.
#[test]
fn closure_at_the_bound_beside_a_busy_worker() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    rt.run(async {
        let done = Arc::new(AtomicBool::new(false));
        let there = done.clone();
        drop(gopark::spawn_blocking(move || there.store(true, SeqCst)));
        while !done.load(SeqCst) {
            gopark::yield_now().await;
        }
    });
}

/// Sysmon says that no thread can be had while a stuck task holds stderr.
#[test]
fn refusal_while_a_stuck_task_holds_stderr() {
    const NAME: &str = "refusal_while_a_stuck_task_holds_stderr";
    let _watchdog = watchdog(60);
    if !is_child(NAME) {
        // Where the harness does not capture it.
        assert!(child(NAME, &[]).status.success());
        return;
    }
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let gate = Arc::new(Gate::default());
    let there = gate.clone();
    let task = rt.spawn(async move {
        let _held = std::io::stderr().lock();
        drop(gopark::spawn(async {}));
        there.wait();
    });
    sysmon_has_looked();
    // It alone sees to the timers now.
    rt.block_on(async { sleep(Duration::from_millis(1)).await });
    gate.open();
    rt.block_on(task).unwrap();
}

/// Waits until the process's sysmon has looked so often that a thread was refused to it, and it has said so: after each look it
/// waits, as the kernel counts. (It takes the P of a stuck thread within three looks, and says what it has seen twice.)
fn sysmon_has_looked() {
    const LOOKS: u64 = 20;
    let begin = looks_of("gopark-sysmon");
    while looks_of("gopark-sysmon") < begin + LOOKS {
        thread::yield_now();
    }
}

/// The hook takes a lock that the stuck task holds, as one that logs may. Three quarters of the threads run closures; the
/// others are there for tasks that block.
#[test]
fn hook_that_waits_for_the_stuck_task() {
    let _watchdog = watchdog(60);
    let lock = Arc::new(Mutex::new(()));
    let there = lock.clone();
    let rt =
        Builder::new().workers(1).max_threads(12).on_stuck_task(move |_| drop(there.lock().unwrap())).build().unwrap();
    let (end, gate) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let (began, begun) = channel();
    for _ in 0..9 {
        let (end, began) = (end.clone(), began.clone());
        drop(rt.spawn_blocking(move || {
            began.send(()).unwrap();
            end.wait();
        }));
    }
    for _ in 0..9 {
        begun.recv().unwrap();
    }
    let there = gate.clone();
    let first = rt.spawn(async move {
        let _held = lock.lock().unwrap();
        there.wait();
    });
    let second = rt.spawn(async move {
        sleep(Duration::from_millis(100)).await;
        let there = gate.clone();
        drop(gopark::spawn(async move { there.open() }));
        gate.wait();
    });
    rt.block_on(second).unwrap();
    rt.block_on(first).unwrap();
    end.open();
}

/// Nobody reads the process's stderr any more: what the runtime has to say there is lost, and no more than that.
#[test]
fn refusal_with_stderr_gone() {
    const NAME: &str = "refusal_with_stderr_gone";
    if !is_child(NAME) {
        use std::process::{Command, Stdio};
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture", "--test-threads=1"]).env("GOPARK_TEST_CHILD", NAME);
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(process.stderr.take());
        assert!(process.wait().unwrap().success());
        return;
    }
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(2).max_threads(0).build().unwrap();
    let gate = Arc::new(Gate::default());
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let gate = gate.clone();
            rt.spawn(async move {
                drop(gopark::spawn(async {}));
                gate.wait();
            })
        })
        .collect();
    sysmon_has_looked();
    // Sysmon alone sees to the timers now.
    rt.block_on(async { sleep(Duration::from_millis(1)).await });
    gate.open();
    for task in tasks {
        rt.block_on(task).unwrap();
    }
}

/// A task that waits for what another holds, with one worker: nobody comes to drop the other.
#[test]
fn drop_with_the_only_worker_stuck() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (tx, rx) = channel::<()>();
    let (told, waiting) = channel();
    let (pending, is_pending) = channel();
    drop(rt.spawn(async move {
        pending.send(()).unwrap();
        drop((std::future::pending::<()>().await, tx));
    }));
    is_pending.recv().unwrap();
    drop(rt.spawn(async move {
        told.send(()).unwrap();
        rx.recv().unwrap_err();
    }));
    waiting.recv().unwrap();
    drop(rt);
}

/// A hook that takes long has a thread of its own, for which `shutdown_timeout` does not wait beyond its time.
#[test]
fn shutdown_timeout_with_a_slow_hook() {
    let _watchdog = watchdog(60);
    let ((told, in_hook), gate) = (channel(), Arc::new(Gate::default()));
    let (told, slow) = (Mutex::new(told), gate.clone());
    let hook = move |_: &gopark::StuckTask| {
        told.lock().unwrap().send(()).unwrap();
        slow.wait();
    };
    let rt = Builder::new().workers(2).on_stuck_task(hook).build().unwrap();
    let stuck = Arc::new(Gate::default());
    let there = stuck.clone();
    drop(rt.spawn(async move { there.wait() }));
    in_hook.recv().unwrap();
    stuck.open();
    assert!(rt.shutdown_timeout(Duration::from_millis(500)).unwrap_err().threads() > 0);
    gate.open();
}

/// Whose P was taken comes back and waits in the network, since all others are busy. What it finds there, and the timers
/// that it finds due, do not go behind all that waits.
#[test]
fn timers_and_sockets_beside_a_long_queue() {
    const FILLERS: usize = 5000;
    const EACH: usize = 20;
    let _watchdog = watchdog(120);
    let rt = runtime(1);
    let (ran, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Gate::default()));
    let mut woken = Vec::new();
    let mut peers = Vec::new();
    for n in 0..EACH {
        let there = ran.clone();
        let ours = rt.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            peers.push(theirs.into_std().unwrap());
            ours
        });
        woken.push(rt.spawn(async move {
            ours.read(&mut [0]).await.unwrap();
            there.load(SeqCst)
        }));
        let there = ran.clone();
        woken.push(rt.spawn(async move {
            sleep(Duration::from_millis(50 + n as u64)).await;
            there.load(SeqCst)
        }));
    }
    let there = gate.clone();
    let stuck = rt.spawn(async move { there.wait() });
    let (told, some_ran) = channel();
    for n in 0..FILLERS {
        let (ran, gate, told) = (ran.clone(), gate.clone(), told.clone());
        drop(rt.spawn(async move {
            gate.open();
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(200) {}
            ran.fetch_add(1, SeqCst);
            if n == FILLERS / 10 {
                told.send(()).unwrap();
            }
        }));
    }
    some_ran.recv().unwrap();
    peers.into_iter().for_each(|mut peer| peer.write_all(b"x").unwrap());
    rt.block_on(async {
        stuck.await.unwrap();
        for task in woken {
            let before = task.await.unwrap();
            assert!(before < FILLERS * 3 / 4, "woken behind {before} of {FILLERS} others");
        }
    });
}
