//! The scheduler from outside: nothing starves, nothing is lost, nothing spins. What is bounded is counted in polls and
//! reads, not in time.

mod support;

use futures::task::AtomicWaker;
use gopark::net::{TcpListener, TcpStream};
use gopark::time::sleep;
use gopark::{Builder, Handle, Runtime};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::watchdog;

fn runtime(workers: usize) -> Runtime {
    // A worker that a test occupies stays so.
    Builder::new().workers(workers).retake(false).build().unwrap()
}

/// Computes for so long.
fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Two tasks that wake each other at every poll, `limit` polls in all unless stopped earlier.
fn pair(rt: &Handle, limit: usize, polls: &Arc<AtomicUsize>, stop: &Arc<AtomicBool>) -> [gopark::JoinHandle<()>; 2] {
    let wakers = Arc::new([AtomicWaker::new(), AtomicWaker::new()]);
    [0, 1].map(|me| {
        let (polls, stop, wakers) = (polls.clone(), stop.clone(), wakers.clone());
        rt.spawn(poll_fn(move |cx| {
            wakers[me].register(cx.waker());
            let over = polls.fetch_add(1, SeqCst) >= limit || stop.load(SeqCst);
            wakers[1 - me].wake();
            if over { Poll::Ready(()) } else { Poll::Pending }
        }))
    })
}

/// Trap S2: a pair that lives in the run-next slot leaves a third task its share.
#[test]
fn pair_in_the_run_next_slot_and_a_third_task() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let worst = rt.run(async {
        let (polls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let tasks = pair(&Handle::current(), 100_000, &polls, &stop);
        let mut worst = 0;
        for _ in 0..200 {
            let before = polls.load(SeqCst);
            gopark::yield_now().await;
            worst = worst.max(polls.load(SeqCst) - before);
        }
        stop.store(true, SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        worst
    });
    // Behind sysmon's look, the network and the timers there may be a few more than in the plain order.
    assert!((1..=16).contains(&worst), "{worst} polls of the pair between two of the third");
}

/// Traps S2 and S6: beside such a pair the global queue, a timer and a socket have their turn.
#[test]
fn pair_in_the_run_next_slot_and_everything_else() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (polls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let limit = 5_000_000;
    let tasks = pair(rt.handle(), limit, &polls, &stop);
    // From outside: through the global queue.
    for _ in 0..50 {
        rt.block_on(rt.spawn(async {})).unwrap();
    }
    rt.run(async {
        for _ in 0..20 {
            gopark::time::sleep(Duration::from_millis(1)).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut byte = [0];
        for _ in 0..20 {
            let echo = async {
                let mut byte = [0];
                server.read_exact(&mut byte).await.unwrap();
                server.write_all(&byte).await.unwrap();
            };
            let ask = async {
                client.write_all(b"x").await.unwrap();
                client.read_exact(&mut byte).await.unwrap();
            };
            futures::join!(echo, ask);
        }
    });
    let used = polls.load(SeqCst);
    stop.store(true, SeqCst);
    for task in tasks {
        rt.block_on(task).unwrap();
    }
    assert!(used < limit, "nothing else moved until the pair had ended");
}

/// Trap S6, the 61-tick check: beside tasks that keep the local queue full, what is in the global queue is served.
#[test]
fn global_queue_beside_a_busy_local_queue() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (polls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let limit = 50_000_000;
    let (polls_there, stop_there) = (polls.clone(), stop.clone());
    let busy = rt.spawn(async move {
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let (polls, stop) = (polls_there.clone(), stop_there.clone());
                gopark::spawn(async move {
                    while !stop.load(SeqCst) && polls.fetch_add(1, SeqCst) < limit {
                        gopark::yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    while polls.load(SeqCst) < 1000 {
        thread::yield_now();
    }
    // All at once, so that none of the counted polls are this thread's own delays.
    let served = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (served, polls) = (served.clone(), polls.clone());
            rt.spawn(async move { served.lock().unwrap().push(polls.load(SeqCst)) })
        })
        .collect();
    for task in tasks {
        rt.block_on(task).unwrap();
    }
    assert!(polls.load(SeqCst) < limit, "served when the local tasks had come to their end");
    stop.store(true, SeqCst);
    rt.block_on(busy).unwrap();
    let served = served.lock().unwrap();
    let gaps = served.windows(2).map(|pair| pair[1] - pair[0]);
    // Gaps in which this thread was still spawning do not count: the last ones came when all were queued.
    let worst = gaps.skip(80).max().unwrap();
    assert!(worst <= 2 * 61, "{worst} polls of the local tasks between two from the global queue");
}

/// The other way round: tasks from outside that take so long that each is followed by a look at the global queue.
#[test]
fn local_queue_beside_a_long_global_queue() {
    const FILLERS: usize = 800;
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (polls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (there, over) = (polls.clone(), stop.clone());
    let yielder = rt.spawn(async move {
        while !over.load(SeqCst) {
            there.fetch_add(1, SeqCst);
            gopark::yield_now().await;
        }
    });
    let fillers: Vec<_> = (0..FILLERS).map(|_| rt.spawn(async { compute(Duration::from_micros(500)) })).collect();
    rt.block_on(async {
        let mut before = 0;
        for (n, filler) in fillers.into_iter().enumerate() {
            filler.await.unwrap();
            if n == FILLERS / 2 {
                // By now the worker knows how long they take.
                before = polls.load(SeqCst);
            }
        }
        let polls = polls.load(SeqCst) - before;
        stop.store(true, SeqCst);
        yielder.await.unwrap();
        assert!(polls >= FILLERS / 4, "{polls} polls beside {FILLERS} tasks");
    });
}

/// Tasks that are due whenever anybody looks, and one that was woken by one of them.
#[test]
fn run_next_slot_beside_timers_without_end() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let done = Arc::new(AtomicBool::new(false));
    let (wake, woken) = futures::channel::oneshot::channel();
    let mut wake = Some(wake);
    let sleepers: Vec<_> = (0..500)
        .map(|n| {
            let (done, mut wake) = (done.clone(), wake.take_if(|_| n == 250));
            rt.spawn(async move {
                for round in 0.. {
                    if done.load(SeqCst) {
                        return;
                    }
                    gopark::time::sleep(Duration::from_micros(1)).await;
                    compute(Duration::from_micros(20));
                    if round == 20 {
                        wake.take().map(|wake| wake.send(()));
                    }
                }
            })
        })
        .collect();
    rt.block_on(rt.spawn(async move {
        woken.await.unwrap();
        done.store(true, SeqCst);
    }))
    .unwrap();
    rt.block_on(async {
        for sleeper in sleepers {
            sleeper.await.unwrap();
        }
    });
}

/// The network's share does not depend on how much is queued: it is not one batch for each round of the queue.
#[test]
fn many_ready_sockets_beside_a_long_queue() {
    const SOCKETS: usize = 2000;
    const YIELDERS: usize = 1000;
    let _watchdog = watchdog(60);
    gopark::net::raise_nofile_limit().unwrap();
    // The one task that sends to all of them keeps its P meanwhile.
    let rt = gopark::Builder::new().workers(1).retake(false).build().unwrap();
    let (polls, waiting) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let test = rt.spawn(async move {
        let (mut readers, mut addrs) = (Vec::new(), Vec::new());
        for _ in 0..SOCKETS {
            let socket = gopark::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            addrs.push(socket.local_addr().unwrap());
            let (polls, waiting) = (polls.clone(), waiting.clone());
            readers.push(gopark::spawn(async move {
                waiting.fetch_add(1, SeqCst);
                socket.recv(&mut [0]).await.unwrap();
                polls.load(SeqCst)
            }));
        }
        while waiting.load(SeqCst) < SOCKETS {
            gopark::yield_now().await;
        }
        let yielders: Vec<_> = (0..YIELDERS)
            .map(|_| {
                let (polls, stop) = (polls.clone(), stop.clone());
                gopark::spawn(async move {
                    while !stop.load(SeqCst) {
                        polls.fetch_add(1, SeqCst);
                        compute(Duration::from_micros(5));
                        gopark::yield_now().await;
                    }
                })
            })
            .collect();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for addr in addrs {
            sender.send_to(b"x", addr).unwrap();
        }
        let before = polls.load(SeqCst);
        let mut last = before;
        for reader in readers {
            last = last.max(reader.await.unwrap());
        }
        stop.store(true, SeqCst);
        for yielder in yielders {
            yielder.await.unwrap();
        }
        let rounds = (last - before) / YIELDERS;
        assert!(rounds < 8, "{rounds} rounds of the queue before all sockets were read");
    });
    rt.block_on(test).unwrap();
}

/// A local queue much longer than Go's or tokio's: ten thousand tasks spawned on one worker have their first polls close to
/// the order in which they were spawned, while newcomers keep arriving; nobody waits behind them.
#[test]
fn many_tasks_keep_their_order() {
    let _watchdog = watchdog(60);
    const N: usize = 10_000;
    let rt = runtime(1);
    let order = Arc::new(Mutex::new(Vec::with_capacity(2 * N)));
    let spawn = |order: &Arc<Mutex<Vec<usize>>>, n: usize, child: bool| {
        let order = order.clone();
        drop(gopark::spawn(async move {
            order.lock().unwrap().push(n);
            if child {
                // A newcomer each: it goes behind all that were spawned before.
                let order = order.clone();
                drop(gopark::spawn(async move {
                    gopark::yield_now().await;
                    order.lock().unwrap().push(usize::MAX);
                }));
            }
        }));
    };
    rt.run({
        let order = order.clone();
        async move {
            for n in 0..N {
                spawn(&order, n, n % 2 == 0);
            }
            while order.lock().unwrap().len() < N + N / 2 {
                gopark::yield_now().await;
            }
        }
    });
    let order = order.lock().unwrap();
    let first_polls: Vec<_> = order.iter().copied().filter(|&n| n != usize::MAX).collect();
    assert_eq!(first_polls.len(), N);
    let worst = first_polls.iter().enumerate().map(|(at, &n)| at.abs_diff(n)).max().unwrap();
    // The very last spawned sits in the run-next slot.
    let but_last = first_polls.iter().filter(|&&n| n != N - 1).enumerate();
    let worst_but_last = but_last.map(|(at, &n)| at.abs_diff(n)).max().unwrap();
    assert!(worst_but_last <= 512, "first polled {worst_but_last} places from its turn (run-next: {worst})");
    // Nobody waits behind newcomers: the second poll of each of those belongs behind the first polls of all the old.
    let last = order.iter().rposition(|&n| n != usize::MAX && n != N - 1).unwrap();
    let early = order[..last].iter().filter(|&&n| n == usize::MAX).count();
    assert!(early <= 512, "{early} newcomers were served before the last of the old");
}

/// The run-next slot can be stolen: a task that is woken by one that then keeps its worker runs on the other.
#[test]
fn run_next_is_stolen_from_a_busy_worker() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for _ in 0..20 {
        rt.run(async {
            let (tx, rx) = channel();
            drop(gopark::spawn(async move { tx.send(thread::current().id()).unwrap() }));
            // Not `block_in_place`: the worker is kept.
            assert_ne!(rx.recv().unwrap(), thread::current().id());
        });
    }
}

/// Trap S1, its milder form: the worker that is left is never idle, so it never steals in the ordinary way. It takes
/// over what waits behind the task that holds up the other.
#[test]
fn queue_behind_a_stuck_task_and_a_busy_worker() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let stop = Arc::new(AtomicBool::new(false));
    let busy = rt.spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(SeqCst) {
                gopark::yield_now().await;
            }
        }
    });
    let stuck = rt.spawn(async {
        let (ran, all_ran) = channel();
        for n in 0..100 {
            let ran = ran.clone();
            gopark::spawn(async move { ran.send(n).unwrap() });
        }
        drop(ran);
        let mut numbers: Vec<i32> = all_ran.iter().collect();
        numbers.sort();
        assert!(numbers.into_iter().eq(0..100));
    });
    rt.block_on(stuck).unwrap();
    stop.store(true, SeqCst);
    rt.block_on(busy).unwrap();
}

/// A worker whose tasks took next to nothing looks around seldom. It vouches for itself while longer ones run, and looks around
/// as often as sysmon would have had it do.
#[test]
fn timer_behind_longer_tasks_than_before() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    for _ in 0..10 {
        rt.run(async {
            for _ in 0..3 {
                for _ in 0..500 {
                    gopark::yield_now().await;
                }
                sleep(Duration::from_millis(3)).await;
            }
            for _ in 0..140 {
                sleep(Duration::from_micros(600)).await;
            }
        });
        let behind = rt.run(async {
            let ran = Arc::new(AtomicUsize::new(0));
            let there = ran.clone();
            let timer = gopark::spawn(async move {
                sleep(Duration::from_millis(2)).await;
                there.load(SeqCst)
            });
            for _ in 0..100 {
                let ran = ran.clone();
                drop(gopark::spawn(async move {
                    compute(Duration::from_micros(600));
                    ran.fetch_add(1, SeqCst);
                }));
            }
            timer.await.unwrap()
        });
        assert!(behind < 30, "behind {behind} of 100");
    }
}

/// A thousand tasks, or a hundred, which have to be stolen from the local queue, are not left to one worker.
#[test]
fn work_is_taken_by_the_second_worker() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for n in [1000, 100] {
        // Elsewhere may be too busy for the second thread to come in time: again, then.
        loop {
            let tasks = async move {
                let tasks: Vec<_> = (0..n)
                    .map(|_| {
                        gopark::spawn(async {
                            compute(Duration::from_micros(20));
                            thread::current().id()
                        })
                    })
                    .collect();
                futures::future::join_all(tasks).await
            };
            let threads: Vec<_> = rt.run(tasks).into_iter().map(Result::unwrap).collect();
            let by_first = threads.iter().filter(|&thread| thread == &threads[0]).count();
            // Not just the one that sat in the run-next slot.
            if by_first.min(n - by_first) >= n / 10 {
                break;
            }
        }
    }
}

/// Traps S12, S13 and S14: work that is submitted while workers go idle, from outside and from another worker, with
/// nothing else going on that could hide a lost wake.
#[test]
fn submit_while_workers_go_idle() {
    let _watchdog = watchdog(60);
    for workers in [1, 2, 4] {
        let rt = runtime(workers);
        let (tx, rx) = channel();
        for round in 0..10_000u32 {
            let tx = tx.clone();
            drop(rt.spawn(async move { tx.send(round).unwrap() }));
            // Bare waiting, so that the next comes while the worker is on its way to rest.
            loop {
                match rx.try_recv() {
                    Ok(n) => break assert_eq!(n, round),
                    Err(_) => thread::yield_now(),
                }
            }
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
        }
    }
}

/// Traps S12 and S14: the same between tasks: a chain of wakes across workers, each of which has gone idle before.
#[test]
fn chain_of_wakes_across_idle_workers() {
    let _watchdog = watchdog(60);
    for workers in [2, 3, 8] {
        let rt = runtime(workers);
        const LINKS: usize = 4;
        let turns = Arc::new(AtomicUsize::new(0));
        let wakers: Arc<[AtomicWaker; LINKS]> = Arc::default();
        let tasks: Vec<_> = (0..LINKS)
            .map(|me| {
                let (turns, wakers) = (turns.clone(), wakers.clone());
                rt.spawn(async move {
                    for round in 0..3_000 {
                        let mine = round * LINKS + me;
                        poll_fn(|cx| {
                            wakers[me].register(cx.waker());
                            if turns.load(SeqCst) == mine { Poll::Ready(()) } else { Poll::Pending }
                        })
                        .await;
                        turns.store(mine + 1, SeqCst);
                        // From a thread that is none of the runtime's every now and then.
                        if mine % 97 == 0 {
                            let wakers = wakers.clone();
                            thread::spawn(move || wakers[(me + 1) % LINKS].wake());
                        } else {
                            wakers[(me + 1) % LINKS].wake();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            rt.block_on(task).unwrap();
        }
    }
}

/// Trap S14: one worker is woken for two tasks and takes both: when it stops spinning it must see to the second, for the
/// first waits for that inside its poll. Sysmon would notice in the end, some milliseconds later: so many rounds of that
/// would outlast the watchdog.
#[test]
fn second_task_of_a_worker_that_stops_spinning() {
    let _watchdog = watchdog(20);
    let rt = runtime(2);
    for _ in 0..10_000 {
        let (tx, rx) = channel();
        let first = rt.spawn(async move { rx.recv().unwrap() });
        let second = rt.spawn(async move { tx.send(()).unwrap() });
        rt.block_on(async {
            first.await.unwrap();
            second.await.unwrap();
        });
    }
}

/// Trap S1: the only worker awake is the one that polled; the task that it got from there keeps it. The others are woken
/// to look after the timers and the network.
#[test]
fn poller_that_gets_stuck_in_what_it_harvested() {
    let _watchdog = watchdog(60);
    for _ in 0..10 {
        let rt = runtime(2);
        let (tx, rx) = channel();
        let stuck = rt.spawn(async move {
            gopark::time::sleep(Duration::from_millis(1)).await;
            rx.recv().unwrap()
        });
        let other = rt.spawn(async move {
            gopark::time::sleep(Duration::from_millis(4)).await;
            tx.send(()).unwrap();
        });
        rt.block_on(async {
            other.await.unwrap();
            stuck.await.unwrap();
        });
    }
}

/// Trap S1: a task that keeps its worker does not keep the network and the timers from the
/// other one, whoever was polling.
#[test]
fn worker_that_is_stuck_and_sockets_and_timers() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    for _ in 0..20 {
        let (release, wait) = channel::<()>();
        let stuck = rt.spawn(async move {
            let _ = wait.recv();
        });
        rt.run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let client = thread::spawn(move || {
                let mut client = std::net::TcpStream::connect(addr).unwrap();
                for _ in 0..5 {
                    client.write_all(b"x").unwrap();
                    client.read_exact(&mut [0]).unwrap();
                }
            });
            let (server, _) = listener.accept().await.unwrap();
            let mut byte = [0];
            for _ in 0..5 {
                server.read_exact(&mut byte).await.unwrap();
                gopark::time::sleep(Duration::from_micros(100)).await;
                server.write_all(&byte).await.unwrap();
            }
            client.join().unwrap();
        });
        drop(release);
        rt.block_on(stuck).unwrap();
    }
}

/// Connected sockets, the peer's end by std and not blocking.
async fn connection(listener: &TcpListener) -> (TcpStream, std::net::TcpStream) {
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nonblocking(true).unwrap();
    (listener.accept().await.unwrap().0, peer)
}

/// Traps P5 and S6: with its only worker busy, the network is polled between tasks, not by sysmon alone. The event is
/// there before the counting begins, so that only the runtime's polls are counted: 20 us each.
#[test]
fn network_is_polled_between_tasks() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    const ROUNDS: usize = 30;
    let total = rt.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (socket, mut peer) = connection(&listener).await;
        let reads = Arc::new(AtomicUsize::new(0));
        let there = reads.clone();
        let reader = gopark::spawn(async move {
            let mut byte = [0];
            while let Ok(1) = socket.read(&mut byte).await {
                there.fetch_add(1, SeqCst);
            }
        });
        // Always something to run.
        let mut total = 0;
        for round in 1..=ROUNDS {
            for _ in 0..100 {
                gopark::yield_now().await;
            }
            peer.write_all(b"x").unwrap();
            while reads.load(SeqCst) < round {
                compute(Duration::from_micros(20));
                gopark::yield_now().await;
                total += 1;
            }
        }
        drop(peer);
        reader.await.unwrap();
        total
    });
    // 0.5 ms is 25 polls; sysmon alone would come after 500.
    assert!(total <= ROUNDS * 100, "{total} polls for {ROUNDS} events");
}

/// The budget: beside a task that reads a socket that is never empty, on one worker, 64 other connections and an
/// interval of 1 ms move after a bounded count of its reads.
#[test]
fn budget_beside_a_socket_that_is_always_full() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let worst = rt.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (greedy, feed) = connection(&listener).await;
        feed.set_nonblocking(false).unwrap();
        let feeder = thread::spawn(move || {
            let mut feed = feed;
            while feed.write_all(&[0; 65536]).is_ok() {}
        });
        let (reads_there, stop_there) = (reads.clone(), stop.clone());
        let greedy = gopark::spawn(async move {
            // One byte at a time: the feeder is always ahead.
            while !stop_there.load(SeqCst) && greedy.read(&mut [0]).await.is_ok_and(|n| n == 1) {
                reads_there.fetch_add(1, SeqCst);
            }
        });
        while reads.load(SeqCst) < 1000 {
            gopark::yield_now().await;
        }
        let mut tasks = Vec::new();
        for _ in 0..64 {
            let (socket, mut peer) = connection(&listener).await;
            let reads = reads.clone();
            tasks.push(gopark::spawn(async move {
                let mut worst = 0;
                for _ in 0..20 {
                    // What it waits for is there already, so that no other process has a part in the wait.
                    peer.write_all(b"x").unwrap();
                    let before = reads.load(SeqCst);
                    gopark::yield_now().await;
                    assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 1);
                    worst = worst.max(reads.load(SeqCst) - before);
                }
                worst
            }));
        }
        let (reads_there, ticks) = (reads.clone(), 20);
        tasks.push(gopark::spawn(async move {
            let mut interval = gopark::time::interval(Duration::from_millis(1));
            let mut worst = 0;
            for _ in 0..ticks {
                let before = reads_there.load(SeqCst);
                interval.tick().await;
                worst = worst.max(reads_there.load(SeqCst) - before);
            }
            worst
        }));
        let interval = tasks.pop().unwrap();
        let mut worst = 0;
        for task in tasks {
            worst = worst.max(task.await.unwrap());
        }
        let worst_tick = interval.await.unwrap();
        stop.store(true, SeqCst);
        greedy.await.unwrap();
        feeder.join().unwrap();
        (worst, worst_tick)
    });
    // Two turns, of 128 reads each; with the harvest's a few more.
    assert!(worst.0 <= 8 * 128, "{} reads between two of another connection", worst.0);
    // A millisecond is some thousand reads where they are fastest; never so many as this.
    assert!(worst.1 <= 50_000, "{} reads between two ticks", worst.1);
}

/// Trap S22: a loop over an accept that fails at once, each time, lets others run.
#[test]
fn accept_loop_that_always_fails_yields() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let worst = rt.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.close();
        let failures = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (failures_there, stop_there) = (failures.clone(), stop.clone());
        let failing = gopark::spawn(async move {
            while !stop_there.load(SeqCst) && failures_there.load(SeqCst) < 1_000_000 {
                assert!(listener.accept().await.is_err());
                failures_there.fetch_add(1, SeqCst);
            }
        });
        let mut worst = 0;
        for _ in 0..50 {
            let before = failures.load(SeqCst);
            gopark::yield_now().await;
            worst = worst.max(failures.load(SeqCst) - before);
        }
        stop.store(true, SeqCst);
        failing.await.unwrap();
        worst
    });
    assert!((1..=512).contains(&worst), "{worst} failures in a row");
}

/// The budget is a poll's: a `select!` of many ready sockets, and a task that wakes itself, get a new one each time.
#[test]
fn budget_does_not_starve_its_own_task() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    rt.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (socket, mut peer) = connection(&listener).await;
        peer.write_all(&[7; 1000]).unwrap();
        let mut byte = [0];
        for _ in 0..1000 {
            socket.read_exact(&mut byte).await.unwrap();
        }
        // In `block_on` and in `block_in_place` there is nobody behind it.
        peer.write_all(&[7; 1000]).unwrap();
        gopark::block_in_place(|| {
            for _ in 0..1000 {
                let mut byte = [0];
                let mut read = Box::pin(socket.read(&mut byte));
                while read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
            }
        });
    });
}

/// Trap S13: there is no timed park: threads with nothing to do are not woken at all. Sysmon's last looks pass first.
#[test]
fn idle_runtime_sleeps() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(2).thread_name("idle-runtime").build().unwrap();
    rt.run(async {
        let tasks: Vec<_> = (0..100).map(|_| gopark::spawn(gopark::yield_now())).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let _pool = gopark::spawn_blocking(|| {}).await;
    });
    let switches = || -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let status = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
        let ours = status.filter(|status| status.starts_with("Name:\tidle-runtime"));
        let count = |status: String| -> usize {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        ours.map(count).sum()
    };
    // One stretch of quiet is enough, but there must be one, or the watchdog ends this.
    let (_keep, never) = channel::<()>();
    loop {
        // None, as long as none has slept at all.
        let before = switches();
        assert_eq!(never.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
        if before > 0 && switches() == before {
            break;
        }
    }
    assert_eq!(rt.run(async { 1 }), 1, "and it can be woken");
}

/// A future that is polled by a foreign executor, in a task of this one, and by `block_on`, one after the other: each
/// wake goes to who polled last (trap S9).
#[test]
fn task_handed_from_executor_to_executor() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let mut pool = futures::executor::LocalPool::new();
    for round in 0..300 {
        let mut task = rt.spawn(async move {
            for _ in 0..round % 5 {
                gopark::yield_now().await;
            }
            gopark::time::sleep(Duration::from_micros(10)).await;
            round
        });
        if Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            continue;
        }
        let out = match round % 3 {
            0 => pool.run_until(task),
            1 => rt.block_on(task),
            _ => rt.block_on(rt.spawn(task)).unwrap(),
        };
        assert_eq!(out.unwrap(), round);
    }
}
