//! What comes at the wrong moment: wakers, hooks and drops that block, ends of the runtime, threads that go to rest.

mod support;

use futures::task::AtomicWaker;
use gopark::{Builder, Runtime};
use std::future::{Future, pending, poll_fn};
use std::io::Write;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use support::{no_more_than, watchdog};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

struct Call<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Call<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

fn waker(f: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(Call(f)))
}

fn spin_until(what: impl Fn() -> bool) {
    while !what() {
        thread::yield_now();
    }
}

/// Two tasks that run at the same time: both workers are there.
fn two_meet(rt: &Runtime) {
    let meet = Arc::new(AtomicUsize::new(0));
    let tasks = [(); 2].map(|()| {
        let meet = meet.clone();
        rt.spawn(async move {
            meet.fetch_add(1, SeqCst);
            spin_until(|| meet.load(SeqCst) == 2);
        })
    });
    rt.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// The foreign waker of a timer blocks its worker in place, and when it returns, every P is in use: the worker goes on
/// without one. Of one worker's tasks never two run at once.
#[test]
fn foreign_waker_that_loses_the_p() {
    let _watchdog = watchdog(30);
    for _ in 0..5 {
        let rt = Builder::new().workers(1).retake(false).build().unwrap();
        let handle = rt.handle().clone();
        let (began, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (began2, release2) = (began.clone(), release.clone());
        let back = Arc::new(AtomicBool::new(false));
        let back2 = back.clone();
        let blocker = waker(move || {
            gopark::block_in_place(|| {
                let (began, release) = (began2.clone(), release2.clone());
                drop(handle.spawn(async move {
                    began.store(true, SeqCst);
                    spin_until(|| release.load(SeqCst));
                }));
                spin_until(|| began2.load(SeqCst));
            });
            back2.store(true, SeqCst);
        });
        let _entered = rt.enter();
        let mut sleep = pin!(gopark::time::sleep(Duration::from_millis(1)));
        assert!(sleep.as_mut().poll(&mut Context::from_waker(&blocker)).is_pending());
        spin_until(|| back.load(SeqCst));
        // The one P is held by the task that spins. A second task must not run beside it.
        let second = Arc::new(AtomicBool::new(false));
        let second2 = second.clone();
        let task = rt.spawn(async move { second2.store(true, SeqCst) });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(20) {
            assert!(!second.load(SeqCst), "two tasks run at once on one worker");
            thread::yield_now();
        }
        release.store(true, SeqCst);
        rt.block_on(task).unwrap();
    }
}

/// The same with two workers: what the worker without a P steals or takes is not forgotten.
#[test]
fn foreign_wakers_that_lose_their_p_and_tasks() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let ran = Arc::new(AtomicUsize::new(0));
    let mut spawned = 0;
    for round in 0..300u64 {
        let blocker = waker(move || {
            gopark::block_in_place(|| thread::sleep(Duration::from_micros(100)));
        });
        let _entered = rt.enter();
        let mut sleeps: Vec<_> =
            (0..8).map(|n| Box::pin(gopark::time::sleep(Duration::from_micros(200 + 50 * n + round % 7)))).collect();
        for sleep in &mut sleeps {
            let _ = sleep.as_mut().poll(&mut Context::from_waker(&blocker));
        }
        let mut tasks = Vec::new();
        for _ in 0..16 {
            let ran = ran.clone();
            spawned += 4;
            tasks.push(rt.spawn(async move {
                let more: Vec<_> = (0..3)
                    .map(|_| {
                        let ran = ran.clone();
                        gopark::spawn(async move {
                            let begin = Instant::now();
                            while begin.elapsed() < Duration::from_micros(30) {}
                            ran.fetch_add(1, SeqCst);
                        })
                    })
                    .collect();
                ran.fetch_add(1, SeqCst);
                for task in more {
                    task.await.unwrap();
                }
            }));
        }
        rt.block_on(async {
            for task in tasks {
                task.await.unwrap();
            }
        });
    }
    assert_eq!(ran.load(SeqCst), spawned);
    // Both places are still there, and no third one.
    no_more_than(&rt, 2);
    two_meet(&rt);
}

/// A worker that was woken to look for work meets a foreign waker that waits for that work: somebody else does it.
#[test]
fn foreign_waker_that_waits_for_a_task_that_was_just_spawned() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _entered = rt.enter();
    let stream = gopark::net::TcpStream::from_std(listener.accept().unwrap().0).unwrap();
    for _ in 0..300 {
        let (tx, rx) = channel::<()>();
        let rx = Mutex::new(rx);
        let (done_tx, done) = channel();
        let blocker = waker(move || {
            let in_time = rx.lock().unwrap().recv_timeout(Duration::from_secs(10)).is_ok();
            let _ = done_tx.send(in_time);
        });
        let mut read = Box::pin(stream.readable());
        let mut buf = [0; 8];
        while read.as_mut().poll(&mut Context::from_waker(&blocker)).is_ready() {
            let _ = stream.try_read(&mut buf);
            read = Box::pin(stream.readable());
        }
        // The workers may rest by now; where they do not, the round shows nothing.
        thread::sleep(Duration::from_micros(500));
        (&peer).write_all(b"x").unwrap();
        drop(rt.spawn(async move { tx.send(()).unwrap() }));
        assert!(done.recv().unwrap(), "the task waited for the waker that waited for the task");
        drop(read);
    }
}

/// A hook that blocks in place costs the runtime no worker.
#[test]
fn on_thread_start_that_blocks() {
    let _watchdog = watchdog(20);
    let rt = Builder::new().workers(2).on_thread_start(|| gopark::block_in_place(|| ())).build().unwrap();
    two_meet(&rt);
}

/// A hook that waits for a task: another worker runs it.
#[test]
fn on_thread_start_that_waits_for_a_task() {
    let _watchdog = watchdog(20);
    let first = AtomicBool::new(true);
    let rt = Builder::new()
        .workers(2)
        .on_thread_start(move || {
            if first.swap(false, SeqCst) {
                gopark::block_on(async { gopark::spawn(async {}).await.unwrap() });
            }
        })
        .build()
        .unwrap();
    rt.run(async {});
}

/// The last poll that is under way goes aside while the other worker is already on its way out, done with its part of
/// the clean-up.
#[test]
fn block_on_while_the_other_worker_is_in_its_stop_hook() {
    let _watchdog = watchdog(20);
    let (in_hook, aside) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (hook_in, hook_aside) = (in_hook.clone(), aside.clone());
    let rt = Builder::new()
        .workers(2)
        .on_thread_stop(move || {
            hook_in.store(true, SeqCst);
            spin_until(|| hook_aside.load(SeqCst));
        })
        .build()
        .unwrap();
    let (begun_tx, begun) = channel();
    let task = rt.spawn(async move {
        // The other worker has to exist.
        gopark::spawn(async move { begun_tx.send(()).unwrap() });
        spin_until(|| in_hook.load(SeqCst));
        gopark::block_on(async {
            let listener = gopark::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            aside.store(true, SeqCst);
            listener.accept().await.unwrap_err();
        });
    });
    begun.recv().unwrap();
    drop(rt);
    futures::executor::block_on(task).unwrap();
}

/// A future that is dropped at the end blocks in its drop, then wakes another that is still there.
#[test]
fn drop_that_blocks_in_place_and_wakes_another_task_at_the_end() {
    let _watchdog = watchdog(20);
    struct Wakes(Arc<AtomicWaker>);
    impl Drop for Wakes {
        fn drop(&mut self) {
            gopark::block_in_place(|| ());
            self.0.wake();
        }
    }
    for workers in [1, 2] {
        let rt = runtime(workers);
        let slots: Vec<_> = (0..8).map(|_| Arc::new(AtomicWaker::new())).collect();
        for n in 0..8 {
            let (mine, others) = (slots[n].clone(), slots.clone());
            let task = rt.spawn(async move {
                let _wakes: Vec<_> = others.into_iter().map(Wakes).collect();
                poll_fn::<(), _>(|cx| {
                    mine.register(cx.waker());
                    Poll::Pending
                })
                .await;
            });
            drop(task);
        }
        drop(rt);
    }
}

/// A future that is dropped at the end waits, in its drop, for the network.
#[test]
fn drop_that_waits_for_a_socket_at_the_end() {
    let _watchdog = watchdog(20);
    struct Waits(Sender<()>);
    impl Drop for Waits {
        fn drop(&mut self) {
            gopark::block_on(async {
                let Ok(listener) = gopark::net::TcpListener::bind("127.0.0.1:0").await else { return };
                let _ = listener.accept().await;
            });
            self.0.send(()).unwrap();
        }
    }
    for workers in [1, 2] {
        let rt = runtime(workers);
        let (tx, rx) = channel();
        let (begun_tx, begun) = channel();
        for _ in 0..3 {
            let (waits, begun) = (Waits(tx.clone()), begun_tx.clone());
            drop(rt.spawn(async move {
                let _waits = waits;
                begun.send(()).unwrap();
                pending::<()>().await;
            }));
        }
        for _ in 0..3 {
            begun.recv().unwrap();
        }
        drop(rt);
        assert_eq!(rx.try_iter().count(), 3);
    }
}

/// A closure that no thread had begun when the runtime ended does not begin.
#[test]
fn shutdown_and_closures_that_have_not_begun() {
    use futures::task::Spawn;
    let _watchdog = watchdog(20);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let handle = rt.handle().clone();
    let (begun_tx, begun) = channel();
    let first = rt.spawn_blocking(move || {
        begun_tx.send(()).unwrap();
        spin_until(|| handle.status().is_err());
    });
    begun.recv().unwrap();
    let second = rt.spawn_blocking(|| ());
    drop(rt);
    futures::executor::block_on(first).unwrap();
    assert!(futures::executor::block_on(second).unwrap_err().is_cancelled());
}

/// A thread-local's destructor asks for the current runtime.
#[test]
fn current_runtime_in_a_destructor_of_the_thread() {
    let _watchdog = watchdog(20);
    struct Asks(Sender<bool>);
    impl Drop for Asks {
        fn drop(&mut self) {
            let answer = std::panic::catch_unwind(|| gopark::Handle::try_current().is_none());
            self.0.send(answer.unwrap_or(false)).unwrap();
        }
    }
    thread_local!(static ASKS: std::cell::RefCell<Option<Asks>> = const { std::cell::RefCell::new(None) });
    let (tx, rx) = channel();
    thread::spawn(move || {
        ASKS.set(Some(Asks(tx)));
        drop(gopark::Handle::try_current());
        gopark::block_on(async {});
    })
    .join()
    .unwrap();
    assert!(rx.recv().unwrap());
}

/// Trap S13: the only thread for closures rests, in the poller's place, and no worker ever does: it takes the next closure.
#[test]
fn spawn_blocking_while_the_last_free_thread_is_the_poller() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(1).build().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let over2 = over.clone();
    let busy = rt.spawn(async move {
        while !over2.load(SeqCst) {
            gopark::yield_now().await;
        }
    });
    for n in 0..2_000 {
        let task = rt.spawn_blocking(|| ());
        let begin = Instant::now();
        while !task.is_finished() {
            assert!(begin.elapsed() < Duration::from_secs(20), "closure {n} was forgotten");
            thread::yield_now();
        }
    }
    over.store(true, SeqCst);
    rt.block_on(busy).unwrap();
}

/// Everybody is aside when the runtime ends, and no thread more may be started.
#[test]
fn shutdown_while_every_thread_blocks_in_place() {
    let _watchdog = watchdog(20);
    let rt = Builder::new().workers(1).max_threads(1).build().unwrap();
    let (begun_tx, begun) = channel();
    let begun2 = begun_tx.clone();
    let wait = |begun: Sender<()>| async move {
        let listener = gopark::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        begun.send(()).unwrap();
        listener.accept().await.unwrap_err();
    };
    let closure = rt.spawn_blocking(move || gopark::block_on(wait(begun2)));
    begun.recv().unwrap();
    let task = rt.spawn(async move { gopark::block_on(wait(begun_tx)) });
    begun.recv().unwrap();
    drop(rt);
    futures::executor::block_on(closure).unwrap();
    futures::executor::block_on(task).unwrap();
}

/// A poll that is under way waits for a closure that has begun, and that sleeps.
#[test]
fn shutdown_while_a_poll_waits_for_a_closure_that_sleeps() {
    use futures::task::Spawn;
    let _watchdog = watchdog(20);
    let rt = runtime(2);
    let handle = rt.handle().clone();
    let (begun_tx, begun) = channel();
    let task = rt.spawn(async move {
        let (tx, rx) = channel::<()>();
        drop(gopark::spawn_blocking(move || {
            begun_tx.send(()).unwrap();
            spin_until(|| handle.status().is_err());
            let _tx = tx;
            handle.block_on(gopark::time::sleep(Duration::from_millis(50)));
        }));
        let _ = rx.recv();
    });
    begun.recv().unwrap();
    drop(rt);
    futures::executor::block_on(task).unwrap();
}

/// Trap TM1: a worker finds work on its way to rest and gives the poller's place up, while another takes it: what the new
/// poller says, until when it sleeps, stays said. A timer that is made then, on another thread, ends its sleep.
#[test]
fn poller_that_changes_and_a_timer_from_outside() {
    let _watchdog = watchdog(60);
    let rt = runtime(2);
    let begin = Instant::now();
    let mut round = 0u32;
    while begin.elapsed() < Duration::from_secs(2) {
        for _ in 0..1 + round % 4 {
            drop(rt.spawn(gopark::yield_now()));
            for _ in 0..round % 97 {
                std::hint::spin_loop();
            }
        }
        rt.block_on(async { gopark::time::sleep(Duration::from_micros(20)).await });
        round += 1;
    }
}

/// Deadlines are moved to and fro, by threads that are no workers, while readers wait under them: each reader hears of the
/// last one, whatever became of the timers of the others.
#[test]
fn deadlines_from_outside_and_readers_that_wait() {
    let _watchdog = watchdog(60);
    for workers in [1, 2] {
        let rt = runtime(workers);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _entered = rt.enter();
        let pairs = [(); 8].map(|()| {
            let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (Arc::new(gopark::net::TcpStream::from_std(listener.accept().unwrap().0).unwrap()), peer)
        });
        for round in 0..200u64 {
            let readers = pairs.each_ref().map(|(stream, _)| {
                let stream = stream.clone();
                rt.spawn(async move { stream.read(&mut [0; 8]).await.unwrap_err().kind() })
            });
            thread::scope(|scope| {
                for half in 0..2 {
                    let pairs = &pairs;
                    scope.spawn(move || {
                        for n in 0..20u64 {
                            for (stream, _) in &pairs[half * 4..half * 4 + 4] {
                                let at = match (n * 7 + round) % 5 {
                                    0 => None,
                                    1 => Some(Duration::from_secs(3600)),
                                    k => Some(Duration::from_micros(300 * k + 37 * (n % 8))),
                                };
                                stream.set_read_deadline(at.map(|at| Instant::now() + at)).unwrap();
                            }
                        }
                        for (n, (stream, _)) in pairs[half * 4..half * 4 + 4].iter().enumerate() {
                            let at = Instant::now() + Duration::from_micros(100 * n as u64);
                            stream.set_read_deadline(Some(at)).unwrap();
                        }
                    });
                }
            });
            for reader in readers {
                assert_eq!(futures::executor::block_on(reader).unwrap(), std::io::ErrorKind::TimedOut);
            }
            for (stream, _) in &pairs {
                stream.set_deadline(None).unwrap();
            }
        }
    }
}

/// A socket, and one that keeps it open.
fn socket(rt: &Runtime) -> (gopark::net::UnixStream, std::os::unix::net::UnixStream) {
    let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let _entered = rt.enter();
    (gopark::net::UnixStream::from_std(socket).unwrap(), peer)
}

/// A poll loses its P while it wakes itself, and then its thread calls a foreign waker that another thread has left behind: the
/// task does not wait for that.
#[test]
fn task_that_woke_itself_and_a_waker_left_behind() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let (socket, _peer) = socket(&rt);
    let socket = Arc::new(socket);
    // Two wakers of one close: the first blocks who closes, and leaves the second behind.
    let ((first_tx, first), (second_tx, second)) = (channel(), channel());
    let [goes_on, closed, ran] = [(); 3].map(|()| Arc::new(support::Gate::default()));
    let (first_tx, closing) = (Mutex::new(first_tx), closed.clone());
    let (second_tx, waits) = (Mutex::new(second_tx), ran.clone());
    let wakers = [
        waker(move || {
            first_tx.lock().unwrap().send(()).unwrap();
            closing.wait();
        }),
        waker(move || {
            second_tx.lock().unwrap().send(()).unwrap_or(());
            waits.wait();
        }),
    ];
    let mut readable = [(); 2].map(|()| Box::pin(socket.readable()));
    for (readable, waker) in readable.iter_mut().zip(&wakers) {
        assert!(readable.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    }
    let (begun_tx, begun) = channel();
    let (gate, opens, mut polls) = (goes_on.clone(), ran.clone(), 0);
    let task = rt.spawn(poll_fn(move |cx| {
        polls += 1;
        match polls {
            // So long does a task take: the thread looks around after each.
            ..=80 => thread::sleep(Duration::from_millis(2)),
            81 => {
                begun_tx.send(()).unwrap();
                // Meanwhile sysmon takes the P.
                gate.wait();
            }
            _ => {
                opens.open();
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    begun.recv().unwrap();
    let (close_tx, close) = channel::<()>();
    let there = socket.clone();
    let closer = thread::spawn(move || {
        close.recv().unwrap();
        there.close();
    });
    let other = rt.spawn(async move {
        close_tx.send(()).unwrap();
        first.recv().unwrap();
        goes_on.open();
        // It keeps the P until the waker that was left behind is called, or the task has run without it.
        let _ = second.recv_timeout(Duration::from_secs(5));
    });
    rt.block_on(other).unwrap();
    rt.block_on(task).unwrap();
    closed.open();
    closer.join().unwrap();
}

/// A runtime has not ended while its last thread, which has counted itself out, is in somebody else's waker.
#[test]
fn shutdown_timeout_and_a_waker_that_blocks() {
    let _watchdog = watchdog(60);
    let rt = runtime(1);
    let gate = Arc::new(support::Gate::default());
    let (there, (begun_tx, begun)) = (gate.clone(), channel());
    let begun_tx = Mutex::new(begun_tx);
    let blocks = waker(move || {
        begun_tx.lock().unwrap().send(()).unwrap();
        there.wait();
    });
    let (socket, _peer) = socket(&rt);
    let mut readable = pin!(socket.readable());
    assert!(readable.as_mut().poll(&mut Context::from_waker(&blocks)).is_pending());
    let end = rt.shutdown_timeout(Duration::from_secs(1));
    begun.recv().unwrap();
    gate.open();
    end.unwrap_err();
}

/// A sleep whose waker waits for a task of the runtime, and says on which thread.
fn sleep_and_wait_for_a_task(rt: &Runtime, told: Sender<Option<String>>) -> impl Future + use<> {
    let (handle, told) = (rt.handle().clone(), Mutex::new(told));
    let _entered = rt.enter();
    let mut sleep = Box::pin(gopark::time::sleep(Duration::from_millis(50)));
    let waits = waker(move || {
        told.lock().unwrap().send(thread::current().name().map(str::to_owned)).unwrap();
        let _ = handle.block_on(handle.spawn(async {}));
    });
    assert!(sleep.as_mut().poll(&mut Context::from_waker(&waits)).is_pending());
    sleep
}

/// Where every thread waits for a task, and no more may be started, somebody else's waker that waits for one, too, keeps neither
/// sysmon nor the end.
#[test]
fn end_beside_a_waker_at_the_bound() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let (handle, (begun_tx, begun)) = (rt.handle().clone(), channel());
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        let _ = handle.block_on(handle.spawn(pending::<()>()));
    }));
    begun.recv().unwrap();
    let (told, in_waker) = channel();
    let _sleep = sleep_and_wait_for_a_task(&rt, told);
    in_waker.recv().unwrap();
    drop(rt);
}

/// The bound is over, the waker is not: a thread that is stuck loses its P.
#[test]
fn stuck_task_beside_a_waker_from_the_bound() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(1).build().unwrap();
    let gates = [(); 2].map(|()| Arc::new(support::Gate::default()));
    let (begun_tx, begun) = channel();
    let aside = gates.each_ref().map(|gate| {
        let (gate, begun) = (gate.clone(), begun_tx.clone());
        rt.spawn(async move {
            gopark::block_in_place(|| {
                begun.send(()).unwrap();
                gate.wait();
            });
        })
    });
    begun.iter().take(2).for_each(drop);
    let stuck = Arc::new(support::Gate::default());
    let there = stuck.clone();
    let blocks = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        there.wait();
    });
    let (told, in_waker) = channel();
    let _sleep = sleep_and_wait_for_a_task(&rt, told);
    in_waker.recv().unwrap();
    gates.iter().for_each(|gate| gate.open());
    begun.recv().unwrap();
    rt.block_on(rt.spawn(async {})).unwrap();
    stuck.open();
    for task in aside.into_iter().chain([blocks]) {
        rt.block_on(task).unwrap();
    }
}
