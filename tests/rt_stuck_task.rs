//! `on_stuck_task`: who is told of, with what, and how often; and that the telling stalls nobody. The same hook counts
//! here how seldom a P changes hands, since it is told of a poll before that costs a thread its P.

mod support;

use futures::future::{join_all, pending};
use gopark::time::{Duration, sleep, timeout};
use gopark::{Builder, Runtime, StuckTask};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;
use support::{Gate, looks_of, thread_named, watchdog};

/// A runtime, and what its hook is told.
fn told(workers: usize) -> (Runtime, Receiver<StuckTask>) {
    let (tx, told) = channel();
    let hook = move |stuck: &StuckTask| drop(tx.send(stuck.clone()));
    (Builder::new().workers(workers).on_stuck_task(hook).build().unwrap(), told)
}

/// One more task blocks, and is the next that is told of: whoever blocked before it would have been.
fn another(rt: &Runtime, told: &Receiver<StuckTask>) {
    let gate = Arc::new(Gate::default());
    let there = gate.clone();
    let task = rt.spawn(async move { there.wait() });
    let id = told.recv().map(|stuck| stuck.task().id());
    // Opened first, so that a failure does not wait for the task.
    gate.open();
    assert_eq!(id.unwrap(), task.id());
    rt.block_on(task).unwrap();
}

/// A task that blocks is named, with its number and the line of its spawn, once for each poll; though nothing waits for its
/// worker, and none of the looks that follow is missed: each of the tasks after it is told of in its turn.
#[test]
fn blocked_task_is_told_of_once_per_poll() {
    let _watchdog = watchdog(60);
    let (rt, told) = told(8);
    let gates = [(); 2].map(|()| Arc::new(Gate::default()));
    let there = gates.clone();
    let first = async move {
        for gate in there {
            gate.wait();
            gopark::yield_now().await;
        }
    };
    let (task, line) = (rt.spawn(first), line!());
    for gate in &gates {
        let stuck = told.recv().unwrap();
        assert_eq!(stuck.task().id(), task.id());
        assert_eq!((stuck.task().spawned_at().file(), stuck.task().spawned_at().line()), (file!(), line));
        assert!(stuck.duration() > Duration::from_millis(1) && stuck.duration() < Duration::from_secs(60), "{stuck}");
        assert!(stuck.cpu_time() < stuck.duration(), "{stuck}");
        let text = stuck.to_string();
        assert!(text.starts_with(&format!("task {}, spawned at {}:{line}:", task.id(), file!())), "{text}");
        for _ in 0..5 {
            another(&rt, &told);
        }
        gate.open();
    }
    rt.block_on(task).unwrap();
    drop(rt);
    assert!(told.try_recv().is_err());
}

/// Another worker is well all the time, and vouches for whom it sees move: for this one no longer.
#[test]
fn blocked_task_is_told_of_beside_a_worker_that_is_well() {
    let _watchdog = watchdog(60);
    let (rt, told) = told(2);
    let ticks = rt.spawn(async {
        loop {
            sleep(Duration::from_micros(500)).await;
        }
    });
    for _ in 0..40 {
        another(&rt, &told);
    }
    ticks.abort();
}

/// While every worker moves on, one of them puts sysmon's looks off: no more than one in four comes about. (Where the machine
/// gives the worker no CPU for some milliseconds, more do; so this waits for a stretch in which it did.)
#[test]
fn nobody_is_looked_at_while_all_is_well() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(2).thread_name("well").build().unwrap();
    let well = rt.spawn(async {
        loop {
            let (looks, begin) = (looks_of("well-sysmon"), Instant::now());
            for _ in 0..200 {
                sleep(Duration::from_millis(1)).await;
            }
            let ticks = begin.elapsed().as_millis() / 5;
            if u128::from(looks_of("well-sysmon") - looks) * 4 <= ticks {
                break;
            }
        }
    });
    rt.block_on(well).unwrap();
}

/// A poll that gives its worker away and comes back is not told of for what lay between, though another worker has vouched
/// for all meanwhile.
#[test]
fn poll_that_steps_aside_beside_a_worker_that_is_well() {
    let _watchdog = watchdog(60);
    let (rt, told) = told(3);
    let ticks = rt.spawn(async {
        loop {
            use_cpu(Duration::from_micros(50));
            gopark::yield_now().await;
        }
    });
    for _ in 0..40 {
        let aside = rt.spawn(async {
            use_cpu(Duration::from_millis(4));
            gopark::block_in_place(|| use_cpu(Duration::from_millis(60)));
            use_cpu(Duration::from_millis(4));
        });
        rt.block_on(aside).unwrap();
    }
    ticks.abort();
    drop(rt);
    assert!(told.try_recv().is_err());
}

/// Waits until that sysmon does not look any more.
fn dozes(sysmon: &str) {
    let mut before = u64::MAX;
    while std::mem::replace(&mut before, looks_of(sysmon)) != before {
        thread::sleep(Duration::from_millis(100));
    }
}

/// An idle machine is not looked at: not after a signal either, nor after a closure for which no thread was to be had.
#[test]
fn nobody_looks_at_an_idle_machine() {
    extern "C" fn nothing(_: libc::c_int) {}
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).thread_name("idle").build().unwrap();
    rt.run(async {});
    dozes("idle-sysmon");

    // SAFETY: all zeros are a valid sigaction, and the handler does nothing. Without SA_RESTART, it ends a wait.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let before = looks_of("idle-sysmon");
    let thread: i32 = thread_named("idle-sysmon").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) }, 0);
    while looks_of("idle-sysmon") == before {
        thread::yield_now();
    }
    dozes("idle-sysmon");

    let (gate, begun) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let (there, begins) = (gate.clone(), begun.clone());
    let aside = rt.spawn(async move {
        gopark::block_in_place(|| {
            begins.open();
            there.wait();
        });
    });
    begun.wait();
    let closure = rt.spawn_blocking(|| ());
    // Sysmon has tried to start a thread for it more than once.
    let before = looks_of("idle-sysmon");
    while looks_of("idle-sysmon") < before + 5 {
        thread::yield_now();
    }
    gate.open();
    rt.block_on(async { (aside.await.unwrap(), closure.await.unwrap()) });
    dozes("idle-sysmon");
}

/// Also where no P is ever taken.
#[test]
fn blocked_task_is_told_of_without_retake() {
    let _watchdog = watchdog(60);
    let (tx, told) = channel();
    let hook = move |stuck: &StuckTask| drop(tx.send(stuck.clone()));
    let rt = Builder::new().workers(1).retake(false).on_stuck_task(hook).build().unwrap();
    another(&rt, &told);
    another(&rt, &told);
}

/// A task that computes is told of as well, with the CPU time that it has used.
#[test]
fn computing_task_is_told_of() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let (rt, told) = told(workers);
        let stop = Arc::new(AtomicBool::new(false));
        let there = stop.clone();
        let compute = async move {
            while !there.load(SeqCst) {
                std::hint::spin_loop();
            }
        };
        let (task, line) = (rt.spawn(compute), line!());
        let stuck = told.recv().unwrap();
        assert_eq!((stuck.task().id(), stuck.task().spawned_at().line()), (task.id(), line));
        assert!(stuck.cpu_time() > Duration::from_millis(2) && stuck.cpu_time() <= stuck.duration(), "{stuck}");
        assert!(stuck.duration() < Duration::from_secs(60), "{stuck}");
        // Its P may go to others now; that is no second poll.
        for _ in 0..20 {
            rt.block_on(rt.spawn(async { sleep(Duration::from_millis(1)).await })).unwrap();
        }
        stop.store(true, SeqCst);
        rt.block_on(task).unwrap();
        drop(rt);
        assert!(told.try_recv().is_err());
    }
}

/// A poll that was told of gives its P away for a while, gets one back, and blocks again: it is the same poll still.
#[test]
fn block_in_place_in_a_poll_that_was_told_of() {
    let _watchdog = watchdog(60);
    let (rt, told) = told(4);
    let gates = [(); 3].map(|()| Arc::new(Gate::default()));
    let [first, in_place, last] = gates.clone();
    let task = rt.spawn(async move {
        first.wait();
        gopark::block_in_place(|| in_place.wait());
        last.wait();
    });
    assert_eq!(told.recv().unwrap().task().id(), task.id());
    for gate in gates {
        gate.open();
        another(&rt, &told);
    }
    rt.block_on(task).unwrap();
    drop(rt);
    assert!(told.try_recv().is_err());
}

/// Closures and calls that say of themselves that they may block are nobody's news.
#[test]
fn calls_that_may_block_are_not_told_of() {
    let _watchdog = watchdog(60);
    let (rt, told) = told(2);
    let (gate, begun) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let waits = || {
        let (gate, begun) = (gate.clone(), begun.clone());
        move || {
            begun.fetch_add(1, SeqCst);
            gate.wait();
        }
    };
    let (in_place, in_block_on) = (waits(), waits());
    let allowed = [
        rt.spawn_blocking(waits()),
        rt.spawn(async move { gopark::block_in_place(in_place) }),
        rt.spawn(async move { gopark::block_on(async move { in_block_on() }) }),
    ];
    while begun.load(SeqCst) < 3 {
        std::thread::yield_now();
    }
    for _ in 0..3 {
        another(&rt, &told);
    }
    gate.open();
    rt.block_on(join_all(allowed)).into_iter().for_each(Result::unwrap);
    drop(rt);
    assert!(told.try_recv().is_err());
}

/// Trap S23: a panic in the hook is its own affair.
#[test]
fn panic_in_the_hook() {
    let _watchdog = watchdog(60);
    for max_threads in [512, 2] {
        let (tx, told) = channel();
        let builder = Builder::new().workers(1).max_threads(max_threads).on_stuck_task(move |_| {
            tx.send(()).unwrap();
            panic!("meant to");
        });
        let rt = builder.build().unwrap();
        for _ in 0..3 {
            let gate = Arc::new(Gate::default());
            let there = gate.clone();
            let task = rt.spawn(async move { there.wait() });
            told.recv().unwrap();
            gate.open();
            rt.block_on(task).unwrap();
        }
    }
}

/// The hook has a thread of its own: while it blocks, the tasks go on, and what more there is to tell is told afterwards.
#[test]
fn hook_that_blocks() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let (tx, told) = channel();
        let (hook_gate, gate) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let there = hook_gate.clone();
        let builder = Builder::new().workers(workers).on_stuck_task(move |stuck| {
            tx.send(stuck.task().id()).unwrap();
            there.wait();
        });
        let rt = builder.build().unwrap();
        let stuck: Vec<_> = (0..workers * 2)
            .map(|_| {
                let gate = gate.clone();
                rt.spawn(async move { gate.wait() })
            })
            .collect();
        let mut meant: Vec<_> = stuck.iter().map(|task| task.id().to_string()).collect();
        let mut ids = vec![told.recv().unwrap().to_string()];
        rt.run(async {
            sleep(Duration::from_millis(1)).await;
            timeout(Duration::from_millis(1), pending::<()>()).await.unwrap_err();
            let (here, there) = gopark::net::UnixStream::pair().unwrap();
            let write = gopark::spawn(async move { there.write_all(b"x").await });
            here.read(&mut [0]).await.unwrap();
            write.await.unwrap().unwrap();
        });
        hook_gate.open();
        ids.extend(meant[1..].iter().map(|_| told.recv().unwrap().to_string()));
        gate.open();
        rt.block_on(join_all(stuck)).into_iter().for_each(Result::unwrap);
        ids.sort();
        meant.sort();
        assert_eq!(ids, meant);
    }
}

/// The CPU time of the calling thread.
fn cpu_time() -> Duration {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` outlives the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut ts) }, 0);
    Duration::new(ts.tv_sec as u64, ts.tv_nsec as u32)
}

fn use_cpu(time: Duration) {
    let before = cpu_time();
    while cpu_time() - before < time {
        std::hint::spin_loop();
    }
}

fn compute(steps: u64) -> u64 {
    (0..steps).fold(1, |x, n| std::hint::black_box(x ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Trap S21: tasks that compute for one to five milliseconds, with many more waiting behind them, keep their Ps.
#[test]
fn tasks_of_a_few_milliseconds_and_no_churn() {
    const TASKS: u64 = 2_000;
    let _watchdog = watchdog(300);
    // Sized by work; the least of a few, as a machine at work makes it seem slower than it is.
    let sample = |_| {
        let before = cpu_time();
        compute(100_000);
        cpu_time() - before
    };
    let fastest = (0..20).map(sample).min().unwrap();
    let ms = (100_000.0 / (fastest.as_secs_f64() * 1e3)) as u64;
    let (told, long) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let there = told.clone();
    let builder = Builder::new().workers(2).on_stuck_task(move |_| drop(there.fetch_add(1, SeqCst).to_string()));
    let rt = builder.build().unwrap();
    let tasks = (0..TASKS).map(|n| {
        let long = long.clone();
        rt.spawn(async move {
            let before = cpu_time();
            compute(ms + n * 4 * ms / TASKS);
            if cpu_time() - before > Duration::from_millis(8) {
                // Then the machine has made it so long that it may be told of.
                long.fetch_add(1, SeqCst);
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    rt.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    drop(rt);
    let (told, long) = (told.load(SeqCst), long.load(SeqCst));
    println!("told of {told}, of {TASKS}; {long} took long indeed");
    assert!(told <= TASKS as usize / 1000 + long, "told of {told}, of {TASKS}; {long} took long indeed");
}
