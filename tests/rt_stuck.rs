//! A task that blocks or computes stalls nobody: sysmon takes its P and hands it on, with nothing to configure. What a
//! stuck task waits for here comes only if the others run: a P that is not taken hangs the test.

mod support;

use futures::future::join_all;
use gopark::net::{TcpListener, TcpStream};
use gopark::time::{Duration, sleep};
use gopark::{Builder, Runtime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use support::{Gate, watchdog};

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
                use std::io::Write;
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
                let other = gopark::spawn(async move {
                    gopark::yield_now().await;
                    there.open();
                });
                gopark::spawn(async move { gate.wait() }).await.unwrap();
                other.await.unwrap();
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
        // As many as before run at the same time, and no more.
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (now, most) = (now.clone(), most.clone());
                rt.spawn(async move {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, SeqCst);
                })
            })
            .collect();
        rt.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
        assert!(most.load(SeqCst) <= workers);
    }
}
