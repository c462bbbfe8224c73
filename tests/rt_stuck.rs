//! A task that blocks or computes stalls nobody: sysmon takes its P and hands it on, with nothing to configure. What a
//! stuck task waits for here comes only if the others run: a P that is not taken hangs the test.

mod support;

use futures::future::join_all;
use gopark::net::{TcpListener, TcpStream};
use gopark::time::{Duration, Instant, sleep, sleep_until};
use gopark::{Builder, Runtime};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use support::{Gate, no_more_than, watchdog};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

/// Tasks, as many as there are workers, that block until told.
fn block_all(rt: &Runtime, workers: usize) -> (Arc<Gate>, Vec<gopark::JoinHandle<()>>) {
    let (gate, blocked) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let tasks = (0..workers).map(|_| {
        let (gate, blocked) = (gate.clone(), blocked.clone());
        rt.spawn(async move {
            blocked.fetch_add(1, SeqCst);
            gate.wait();
        })
    });
    let tasks = tasks.collect();
    while blocked.load(SeqCst) < workers {
        thread::yield_now();
    }
    (gate, tasks)
}

/// Two handlers that block, on every worker, and connections that go on.
#[test]
fn every_worker_blocks_and_sockets_timers_and_spawns() {
    let _watchdog = watchdog(60);
    for workers in [1, 2, 8] {
        let rt = runtime(workers);
        let (gate, tasks) = block_all(&rt, workers);
        rt.block_on(async {
            // All of it in tasks: block_on's own thread has no P to lose.
            let echo = gopark::spawn(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (server, _) = listener.accept().await.unwrap();
                for n in 0..100 {
                    client.write_all(&[n; 64]).await.unwrap();
                    let mut buf = [0; 64];
                    server.read_exact(&mut buf).await.unwrap();
                    server.write_all(&buf).await.unwrap();
                    client.read_exact(&mut buf).await.unwrap();
                    assert_eq!(buf, [n; 64]);
                }
            });
            let sleeper = gopark::spawn(sleep(Duration::from_millis(20)));
            let spawned = join_all((0..1000).map(|n| gopark::spawn(async move { n })));
            echo.await.unwrap();
            sleeper.await.unwrap();
            let sum: usize = spawned.await.into_iter().map(Result::unwrap).sum();
            assert_eq!(sum, 999 * 500);
        });
        gate.open();
        rt.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    }
}

/// Trap S1, tokio's issue 8010: the worker that polls the network takes up a task that blocks on what another task, parked
/// on the network, would release.
#[test]
fn poller_blocks_on_what_a_socket_releases() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let first = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let blocks = listener.accept().await.unwrap().0;
            let second = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let releases = listener.accept().await.unwrap().0;
            let gate = Arc::new(Gate::default());
            let (waiting, here) = (Arc::new(AtomicBool::new(false)), gate.clone());
            let told = waiting.clone();
            let blocks = gopark::spawn(async move {
                blocks.read(&mut [0]).await.unwrap();
                told.store(true, SeqCst);
                here.wait();
            });
            let releases = gopark::spawn(async move {
                releases.read(&mut [0]).await.unwrap();
                gate.open();
            });
            let client = thread::spawn(move || {
                (&first).write_all(b"x").unwrap();
                while !waiting.load(SeqCst) {
                    thread::yield_now();
                }
                (&second).write_all(b"x").unwrap();
                (first, second)
            });
            blocks.await.unwrap();
            releases.await.unwrap();
            client.join().unwrap();
        });
    }
}

/// Trap S3: what the stuck task has woken last lies in its thread's run-next slot.
#[test]
fn run_next_slot_of_a_stuck_thread() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        runtime(workers).run(async {
            for _ in 0..3 {
                let gate = Arc::new(Gate::default());
                let there = gate.clone();
                gopark::spawn(async move {
                    let other = gopark::spawn(async move { there.open() });
                    gate.wait();
                    other.await.unwrap();
                })
                .await
                .unwrap();
            }
        });
    }
}

/// A task that computes without end keeps its P for a while, not for ever.
#[test]
fn endless_computation_on_every_worker() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let stop = stop.clone();
                rt.spawn(async move {
                    while !stop.load(SeqCst) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        let there = stop.clone();
        rt.block_on(rt.spawn(async move {
            for _ in 0..10 {
                gopark::yield_now().await;
            }
            sleep(Duration::from_millis(1)).await;
            there.store(true, SeqCst);
        }))
        .unwrap();
        rt.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    }
}

/// A thread that is stuck while nothing waits for its P keeps it: no other thread is started.
#[test]
fn stuck_thread_and_nothing_that_waits() {
    let _watchdog = watchdog(20);
    let threads = Arc::new(AtomicUsize::new(0));
    let count = threads.clone();
    let hook = move || _ = count.fetch_add(1, SeqCst);
    let rt = Builder::new().workers(1).on_thread_start(hook).build().unwrap();
    // Twenty times as long as it would be left with its P, if anything waited.
    rt.run(async { thread::sleep(Duration::from_millis(150)) });
    assert_eq!(threads.load(SeqCst), 1);
}

/// What a stuck task does after its thread has lost the P goes the global way, and is all right.
#[test]
fn stuck_thread_calls_back() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        for panics in [false, true] {
            let (tx, rx) = channel();
            let gate = Arc::new(Gate::default());
            let there = gate.clone();
            let task = rt.spawn(async move {
                // Somebody else has the P, or this would not come back.
                let other = gopark::spawn(async move { there.open() });
                gate.wait();
                other.await.unwrap();
                let (gate, tasks) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
                let there = gate.clone();
                drop(gopark::spawn(async move {
                    sleep(Duration::from_millis(1)).await;
                    there.open();
                }));
                // In the same poll: spawns, timers, sockets, wakes, all with the P gone or about to go.
                gate.wait();
                for _ in 0..500 {
                    let tasks = tasks.clone();
                    drop(gopark::spawn(async move { tasks.fetch_add(1, SeqCst) }));
                }
                while tasks.load(SeqCst) < 500 {
                    thread::sleep(Duration::from_millis(1));
                }
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let stream = TcpStream::from_std(stream).unwrap();
                assert_eq!(gopark::block_in_place(|| gopark::block_on(async { 7 })), 7);
                drop((stream, listener));
                tx.send(sleep(Duration::from_millis(1))).unwrap();
                assert!(!panics, "meant to");
            });
            rt.block_on(rx.recv().unwrap());
            assert_eq!(rt.block_on(task).is_err(), panics);
        }
        no_more_than(&rt, workers);
    }
}

/// Runs `waits` in a task on every worker, and `releases` in another for each of them, behind it in the queue. Each of the
/// former returns only when one of the latter has begun.
fn release_from_a_task<W, R>(mut pair: impl FnMut() -> (W, R))
where
    W: FnOnce() + Send + 'static,
    R: FnOnce() + Send + 'static,
{
    for workers in [1, 2] {
        let rt = runtime(workers);
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (waits, releases) = pair();
                rt.spawn(async move {
                    let other = gopark::spawn(async move { releases() });
                    waits();
                    other.await.unwrap();
                })
            })
            .collect();
        rt.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    }
}

/// Whoever opens a FIFO waits in the kernel for the other side.
#[test]
fn fifo_that_another_task_opens() {
    let _watchdog = watchdog(60);
    let mut n = 0;
    release_from_a_task(|| {
        n += 1;
        let path = std::env::temp_dir().join(format!("gopark-fifo-{}-{n}", std::process::id()));
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a string that ends with a NUL byte.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let there = path.clone();
        let reads = move || {
            let opened = std::fs::File::open(&path);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(opened.unwrap().read(&mut [0]).unwrap(), 0);
        };
        (reads, move || drop(OpenOptions::new().write(true).open(there).unwrap()))
    });
}

/// flock(2), held by another open file.
#[test]
fn file_lock_that_another_task_holds() {
    let _watchdog = watchdog(60);
    fn flock(file: &File, operation: libc::c_int) {
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { libc::flock(file.as_raw_fd(), operation) }, 0);
    }
    let mut n = 0;
    release_from_a_task(|| {
        n += 1;
        let path = std::env::temp_dir().join(format!("gopark-lock-{}-{n}", std::process::id()));
        let (mine, theirs) = (File::create(&path).unwrap(), File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        flock(&mine, libc::LOCK_EX);
        (move || flock(&theirs, libc::LOCK_EX), move || flock(&mine, libc::LOCK_UN))
    });
}

/// waitpid(2) for a process that ends when another task says so.
#[test]
fn process_that_another_task_ends() {
    let _watchdog = watchdog(60);
    release_from_a_task(|| {
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stdin = process.stdin.take().unwrap();
        (move || assert!(process.wait().unwrap().success()), move || drop(stdin))
    });
}

/// A storm of page faults, until another task ends it: this thread's time is the kernel's.
#[test]
fn page_faults_that_another_task_ends() {
    const SIZE: usize = 16 << 20;
    let _watchdog = watchdog(60);
    release_from_a_task(|| {
        let end = Arc::new(AtomicBool::new(false));
        let there = end.clone();
        let faults = move || {
            // SAFETY: a new mapping of our own, used within its bounds and not after its end.
            unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let start = libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                assert_ne!(start, libc::MAP_FAILED);
                while !there.load(SeqCst) {
                    for at in (0..SIZE).step_by(4096) {
                        start.cast::<u8>().add(at).write_volatile(1);
                    }
                    assert_eq!(libc::madvise(start, SIZE, libc::MADV_DONTNEED), 0);
                }
                assert_eq!(libc::munmap(start, SIZE), 0);
            }
        };
        (faults, move || end.store(true, SeqCst))
    });
}

/// Says that it was called, and blocks.
struct Blocks {
    begun: Mutex<Sender<()>>,
    gate: Arc<Gate>,
}

impl Blocks {
    fn new() -> (Blocks, Receiver<()>, Arc<Gate>) {
        let ((tx, begun), gate) = (channel(), Arc::new(Gate::default()));
        (Blocks { begun: Mutex::new(tx), gate: gate.clone() }, begun, gate)
    }

    fn block(&self) {
        // Nobody listens any more once the test goes on.
        let _ = self.begun.lock().unwrap().send(());
        self.gate.wait();
    }
}

impl Wake for Blocks {
    fn wake(self: Arc<Self>) {
        self.block();
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// While one of the runtime's threads blocks somewhere, a task comes that opens the gate; then all is as before.
fn open_by_a_task(rt: &Runtime, begun: &Receiver<()>, gate: Arc<Gate>) {
    begun.recv().unwrap();
    let opener = rt.spawn(async move {
        gopark::yield_now().await;
        sleep(Duration::from_millis(1)).await;
        gate.open();
    });
    rt.block_on(opener).unwrap();
    let tasks = (0..100).map(|n| rt.spawn(async move { n }));
    let sum: usize = rt.block_on(join_all(tasks)).into_iter().map(Result::unwrap).sum();
    assert_eq!(sum, 4950);
}

/// The waker of a foreign executor blocks the thread that has harvested its socket's edge, or its timer.
#[test]
fn foreign_waker_that_blocks() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        let (blocks, begun, gate) = Blocks::new();
        let _entered = rt.enter();
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let here = gopark::net::UnixStream::from_std(here).unwrap();
        let waker = Waker::from(Arc::new(blocks));
        let buf = &mut [0];
        let mut read = pin!(here.read(buf));
        assert!(read.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        (&there).write_all(b"x").unwrap();
        open_by_a_task(&rt, &begun, gate);

        let (blocks, begun, gate) = Blocks::new();
        let waker = Waker::from(Arc::new(blocks));
        let mut slept = pin!(sleep(Duration::from_millis(1)));
        assert!(slept.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        open_by_a_task(&rt, &begun, gate);
    }
}

/// Foreign wakers, due at once, of which each waits for the others: of timers, of a socket that a task or another thread
/// closes, and of sockets at the end of the runtime.
#[test]
fn foreign_wakers_that_wait_for_each_other() {
    struct Meets(Arc<Barrier>, Sender<()>);
    impl Wake for Meets {
        fn wake(self: Arc<Self>) {
            self.0.wait();
            self.1.send(()).unwrap();
        }
    }
    let _watchdog = watchdog(60);
    for (workers, case) in [1, 2].into_iter().flat_map(|workers| (0..4).map(move |case| (workers, case))) {
        let rt = runtime(workers);
        // At the end there may be none but the last thread, and sysmon.
        let n = if case == 3 { 2 } else { 3 };
        let (tx, met) = channel();
        let all = Arc::new(Barrier::new(n));
        let wakers: Vec<_> = (0..n).map(|_| Waker::from(Arc::new(Meets(all.clone(), tx.clone())))).collect();
        let entered = rt.enter();
        if case == 0 {
            let at = Instant::now() + Duration::from_millis(10);
            let mut slept: Vec<_> = (0..n).map(|_| Box::pin(sleep_until(at))).collect();
            for (slept, waker) in slept.iter_mut().zip(&wakers) {
                assert!(slept.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
            }
            met.iter().take(n).for_each(drop);
            continue;
        }
        let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
        let here = Arc::new(gopark::net::UnixStream::from_std(here).unwrap());
        let there = here.clone();
        let mut readable: Vec<_> = (0..n).map(|_| Box::pin(there.readable())).collect();
        for (readable, waker) in readable.iter_mut().zip(&wakers) {
            assert!(readable.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        drop(entered);
        match case {
            1 => drop(rt.spawn(async move { here.close() })),
            2 => here.close(),
            _ => drop(rt),
        }
        met.iter().take(n).for_each(drop);
    }
}

/// A drop that blocks: of a future that was aborted, of what a future drops itself, and of an output that nobody wants.
#[test]
fn drop_that_blocks() {
    struct BlocksInDrop(Blocks);
    impl Drop for BlocksInDrop {
        fn drop(&mut self) {
            self.0.block();
        }
    }
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        for case in 0..3 {
            let (blocks, begun, gate) = Blocks::new();
            let (held, detached) = (BlocksInDrop(blocks), Arc::new(AtomicBool::new(false)));
            let there = detached.clone();
            let task = rt.spawn(async move {
                while !there.load(SeqCst) || case == 0 {
                    gopark::yield_now().await;
                }
                if case == 1 {
                    drop(held);
                    return None;
                }
                Some(held)
            });
            if case == 0 {
                task.abort();
            }
            drop(task);
            detached.store(true, SeqCst);
            open_by_a_task(&rt, &begun, gate);
        }
    }
}

/// Hooks that block: of the first threads, before they have run anything, and of a task's panic.
#[test]
fn hook_that_blocks() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let (blocks, begun, gate) = Blocks::new();
        let left = AtomicUsize::new(workers + 2);
        let builder = Builder::new().workers(workers).on_thread_start(move || {
            if left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                blocks.block();
            }
        });
        open_by_a_task(&builder.build().unwrap(), &begun, gate);

        let (blocks, begun, gate) = Blocks::new();
        let rt = Builder::new().workers(workers).on_task_panic(move |_, _| blocks.block()).build().unwrap();
        let detached = Arc::new(AtomicBool::new(false));
        let there = detached.clone();
        drop(rt.spawn(async move {
            // Where the handle is dropped later than this panics, the hook is called there: here, by who opens the gate.
            while !there.load(SeqCst) {
                gopark::yield_now().await;
            }
            std::panic::resume_unwind(Box::new("meant to"))
        }));
        detached.store(true, SeqCst);
        open_by_a_task(&rt, &begun, gate);
    }
}

/// Traps S15 and S20: calls that give the P away, one in another, in every order: each comes back to the thread that it
/// left, and to as many Ps as there were.
#[test]
fn nested_calls_in_every_order() {
    const DEEP: u32 = 4;
    /// Blocks, with the P in other hands, on a task that needs it.
    fn block() {
        let (tx, rx) = channel();
        drop(gopark::spawn(async move { tx.send(()).unwrap() }));
        rx.recv().unwrap();
    }
    fn nested(mut order: u32, depth: u32) -> u32 {
        if depth == 0 {
            return 1;
        }
        let (here, kind) = (thread::current().id(), order % 4);
        order /= 4;
        let deeper = move || {
            let n = nested(order, depth - 1);
            // Only `run` is in a task of its own, with a P.
            if kind != 2 {
                block();
            }
            n
        };
        let sum = match kind {
            0 => gopark::block_in_place(deeper),
            1 => gopark::block_on(async move {
                let n = deeper();
                gopark::yield_now().await;
                assert_eq!(thread::current().id(), here, "polled elsewhere");
                n
            }),
            2 => gopark::run(async move { deeper() }),
            _ => gopark::block_on(gopark::spawn_blocking(deeper)).unwrap(),
        };
        assert_eq!(thread::current().id(), here);
        sum + kind + 1
    }
    let _watchdog = watchdog(120);
    for (workers, retake) in [(1, false), (1, true), (2, true)] {
        let rt = Builder::new().workers(workers).retake(retake).build().unwrap();
        // So few at a time that there are threads enough.
        for start in (0..4u32.pow(DEEP)).step_by(16) {
            let calls = (start..start + 16).map(|order| match order / 4 % 2 {
                0 => rt.spawn(async move { nested(order, DEEP) }),
                _ => rt.spawn_blocking(move || nested(order, DEEP)),
            });
            let sums = rt.block_on(join_all(calls.collect::<Vec<_>>()));
            for (order, sum) in (start..).zip(sums) {
                assert_eq!(sum.unwrap(), 1 + (0..DEEP).map(|n| order / 4u32.pow(n) % 4 + 1).sum::<u32>());
            }
        }
        no_more_than(&rt, workers);
    }
}

/// What stuck threads do after a shutdown that has not waited for them is answered, or refused: they use nothing that is
/// gone. The runtime ends when they do.
#[test]
fn shutdown_while_tasks_are_stuck_without_their_ps() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let (started, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, down) = (started.clone(), stopped.clone());
        let builder = Builder::new().workers(workers);
        let builder = builder.on_thread_start(move || _ = up.fetch_add(1, SeqCst));
        let rt = builder.on_thread_stop(move || _ = down.fetch_add(1, SeqCst)).build().unwrap();
        let (gate, begun) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let (parked_tx, parked) = channel();
        let parked_task = rt.spawn(std::future::poll_fn(move |cx| {
            parked_tx.send(cx.waker().clone()).unwrap();
            Poll::<()>::Pending
        }));
        let parked = parked.recv().unwrap();
        let stuck: Vec<_> = (0..3)
            .map(|n| {
                let (gate, begun, parked) = (gate.clone(), begun.clone(), parked.clone());
                rt.spawn(async move {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    let own = std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                    begun.fetch_add(1, SeqCst);
                    gate.wait();
                    parked.wake();
                    own.wake();
                    let late = gopark::spawn(async {});
                    assert!(gopark::block_on(late).unwrap_err().is_cancelled());
                    let late = gopark::spawn_blocking(|| {});
                    assert!(gopark::block_on(late).unwrap_err().is_cancelled());
                    assert_eq!(gopark::block_on(async { gopark::block_in_place(|| 3) }), 3);
                    // Answered or refused, as the others are slower or quicker to end.
                    drop(gopark::block_on(TcpStream::connect(listener.local_addr().unwrap())));
                    drop(std::net::TcpStream::connect(listener.local_addr().unwrap()));
                    listener.close();
                    drop((sleep(Duration::from_secs(3600)), listener, gopark::Handle::current()));
                    if n == 1 {
                        std::panic::resume_unwind(Box::new("meant to"));
                    }
                    gopark::yield_now().await;
                })
            })
            .collect();
        // The third has begun: so one P at least has changed hands, both of them where there are two.
        while begun.load(SeqCst) < 3 {
            thread::yield_now();
        }
        rt.block_on(rt.spawn(async {})).unwrap();
        let still = rt.shutdown_timeout(Duration::from_millis(20)).unwrap_err();
        assert!(still.threads() >= 3, "{still}");
        gate.open();
        for (n, task) in stuck.into_iter().enumerate() {
            let error = futures::executor::block_on(task).unwrap_err();
            assert_eq!((error.is_panic(), error.is_cancelled()), (n == 1, n != 1), "{n}: {error}");
        }
        assert!(futures::executor::block_on(parked_task).unwrap_err().is_cancelled());
        while stopped.load(SeqCst) < started.load(SeqCst) {
            thread::yield_now();
        }
    }
}
