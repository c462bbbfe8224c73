//! Sockets and runtimes: other executors, several runtimes, and the end of one.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::executor::LocalPool;
use futures::future::join_all;
use futures::task::LocalSpawnExt;
use gopark::net::{RuntimeGone, TcpListener, TcpStream};
use gopark::{Handle, Runtime};
use net::*;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

fn gone(error: &io::Error) {
    let inner = error.get_ref().unwrap_or_else(|| panic!("{error:?}"));
    assert!(inner.is::<RuntimeGone>(), "{error:?}");
}

async fn ping_pong(stream: &TcpStream, rounds: usize, first: bool) {
    let mut buf = [0; 8];
    for _ in 0..rounds {
        if first {
            stream.write_all(b"pingpong").await.unwrap();
        }
        stream.read_exact(&mut buf).await.unwrap();
        if !first {
            stream.write_all(&buf).await.unwrap();
        }
    }
}

/// Trap S9: the executor is another's; wakes come from gopark's threads.
#[test]
fn futures_block_on() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let (a, b) = runtime.block_on(pair());
    let there = std::thread::spawn(move || futures::executor::block_on(ping_pong(&b, 500, false)));
    futures::executor::block_on(ping_pong(&a, 500, true));
    there.join().unwrap();
}

/// Trap S9: another's executor blocks a worker from within a task, and makes more operations in that one poll than the
/// cooperative budget has. Nobody gives it a new one; it must get on all the same.
#[test]
fn futures_block_on_in_a_task() {
    let _alone = alone(30);
    let runtime = runtime(2);
    let (a, b) = runtime.block_on(pair());
    let there = runtime.spawn(async move { ping_pong(&b, 500, false).await });
    let here = runtime.spawn(async move { futures::executor::block_on(ping_pong(&a, 500, true)) });
    runtime.block_on(here).unwrap();
    runtime.block_on(there).unwrap();
}

/// Trap S9: a local executor whose futures are not Send, with several of them on one connection.
#[test]
fn futures_local_pool() {
    let _alone = alone(30);
    let runtime = runtime(2);
    let (a, b) = runtime.block_on(pair());
    let echo = runtime.spawn(async move {
        let mut buf = [0; 256];
        while let Ok(n @ 1..) = b.read(&mut buf).await {
            b.write_all(&buf[..n]).await.unwrap();
        }
    });
    let mut pool = LocalPool::new();
    let a = std::rc::Rc::new(a);
    let sum = std::rc::Rc::new(std::cell::Cell::new(0));
    for i in 0..10u8 {
        let (a, sum) = (a.clone(), sum.clone());
        let task = async move {
            for _ in 0..20 {
                a.write_all(&[i]).await.unwrap();
                let mut buf = [0; 1];
                a.read_exact(&mut buf).await.unwrap();
                sum.set(sum.get() + u32::from(buf[0]));
            }
        };
        pool.spawner().spawn_local(task).unwrap();
    }
    pool.run();
    assert_eq!(sum.get(), 20 * 45);
    drop(a);
    runtime.block_on(echo).unwrap();
}

/// An executor made by hand: a queue, and threads that take from it.
struct Pool {
    queue: Mutex<VecDeque<Arc<Task>>>,
    news: Condvar,
}

struct Task {
    pool: Arc<Pool>,
    queued: AtomicBool,
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let pool = self.pool.clone();
            pool.queue.lock().unwrap().push_back(self);
            pool.news.notify_one();
        }
    }
}

impl Pool {
    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let future = Mutex::new(Some(Box::pin(future) as _));
        Waker::from(Arc::new(Task { pool: self.clone(), queued: AtomicBool::new(false), future })).wake();
    }

    /// Runs tasks until `done` says so.
    fn work(&self, done: impl Fn() -> bool) {
        while !done() {
            let task = {
                let mut queue = self.queue.lock().unwrap();
                loop {
                    if done() {
                        self.news.notify_all();
                        return;
                    }
                    match queue.pop_front() {
                        Some(task) => break task,
                        None => queue = self.news.wait(queue).unwrap(),
                    }
                }
            };
            let mut future = task.future.lock().unwrap();
            task.queued.store(false, Ordering::Release);
            if let Some(running) = &mut *future {
                let waker = Waker::from(task.clone());
                if running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    *future = None;
                }
            }
        }
        let _queue = self.queue.lock().unwrap();
        self.news.notify_all();
    }
}

/// Trap S9: an executor made by hand, whose tasks move between threads, on both ends of many connections.
#[test]
fn executor_made_by_hand() {
    let _alone = alone(30);
    let runtime = runtime(2);
    let pool = Arc::new(Pool { queue: Mutex::default(), news: Condvar::new() });
    let left = Arc::new(AtomicUsize::new(40));
    for _ in 0..20 {
        let (a, b) = runtime.block_on(pair());
        for (stream, first) in [(a, true), (b, false)] {
            let left = left.clone();
            pool.spawn(async move {
                ping_pong(&stream, 100, first).await;
                left.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| pool.work(|| left.load(Ordering::Acquire) == 0));
        }
    });
}

/// Any number of threads block on one runtime and use each other's sockets.
#[test]
fn many_block_ons() {
    let _alone = alone(30);
    let runtime = runtime(1);
    std::thread::scope(|s| {
        for _ in 0..4 {
            let (a, b) = runtime.block_on(pair());
            let runtime = &runtime;
            s.spawn(move || runtime.block_on(ping_pong(&a, 200, true)));
            s.spawn(move || runtime.block_on(ping_pong(&b, 200, false)));
        }
    });
}

/// Two runtimes talk; and a task of each waits on a socket of the other.
#[test]
fn two_runtimes() {
    let _alone = alone(30);
    for workers in [1, 2] {
        let (one, two) = (runtime(workers), runtime(workers));
        let (a, b) = {
            let listener = one.block_on(TcpListener::bind(ANY)).unwrap();
            let addr = listener.local_addr().unwrap();
            let a = two.block_on(TcpStream::connect(addr)).unwrap();
            (a, one.block_on(listener.accept()).unwrap().0)
        };
        // `a` belongs to `two`, `b` to `one`.
        let (a, b) = (Arc::new(a), Arc::new(b));
        for (x, y) in [(&two, &one), (&one, &two)] {
            let here = x.spawn({
                let a = a.clone();
                async move { ping_pong(&a, 300, true).await }
            });
            let there = y.spawn({
                let b = b.clone();
                async move { ping_pong(&b, 300, false).await }
            });
            futures::executor::block_on(join_all([here, there])).into_iter().for_each(Result::unwrap);
        }
    }
}

/// Trap S9: whoever harvests its edge, a task runs on its own runtime's threads.
#[test]
fn tasks_stay_at_home() {
    let _alone = alone(30);
    let named = |name: &str| gopark::Builder::new().workers(1).thread_name(name).build().unwrap();
    let (one, two) = (named("one"), named("two"));
    let (a, b) = one.block_on(pair());
    let at_home = |stream: TcpStream, first, name: &'static str| async move {
        let mut talk = Box::pin(ping_pong(&stream, 200, first));
        std::future::poll_fn(|cx| {
            assert_eq!(std::thread::current().name(), Some(name));
            talk.as_mut().poll(cx)
        })
        .await;
    };
    let (x, y) = (one.spawn(at_home(a, true, "one")), two.spawn(at_home(b, false, "two")));
    futures::executor::block_on(join_all([x, y])).into_iter().for_each(Result::unwrap);
}

/// A task waits on a socket of a runtime that is fast asleep, and its own is too: the wake goes from one to the other.
#[test]
fn wake_between_idle_runtimes() {
    let _alone = alone(30);
    let (one, two) = (runtime(1), runtime(1));
    let (stream, mut peer) = one.block_on(std_pair());
    let stream = Arc::new(stream);
    for i in 0..200 {
        let task = two.spawn({
            let stream = stream.clone();
            async move { stream.read(&mut [0; 4]).await.unwrap() }
        });
        if i % 2 == 0 {
            two.block_on(gopark::yield_now());
        }
        io::Write::write_all(&mut peer, b"x").unwrap();
        assert_eq!(two.block_on(task).unwrap(), 1);
    }
}

/// Who waits when a runtime ends is woken with `RuntimeGone`, whoever it is; later operations get it at once.
#[test]
fn shutdown_and_waiters() {
    let alone = alone(30);
    for how in 0..3 {
        let (doomed, other) = (runtime(2), runtime(1));
        let (stream, peer) = doomed.block_on(std_pair());
        let stream = Arc::new(stream);
        let listener = Arc::new(doomed.block_on(TcpListener::bind(ANY)).unwrap());
        // A write that is stuck, and a write_all behind its lock.
        let full = Arc::new(doomed.block_on(pair()));
        doomed.block_on(fill(&full.0));
        let armed = Arc::new(AtomicUsize::new(0));
        type Op = Pin<Box<dyn Future<Output = io::Error> + Send>>;
        let ops = || -> Vec<Op> {
            let (s1, s2, l, f) = (stream.clone(), stream.clone(), listener.clone(), full.clone());
            let f2 = full.clone();
            vec![
                Box::pin(async move { s1.read(&mut [0; 4]).await.unwrap_err() }),
                Box::pin(async move { s2.readable().await.unwrap_err() }),
                Box::pin(async move { l.accept().await.map(|_| ()).unwrap_err() }),
                Box::pin(async move { f.0.write_all(&vec![0; 32 << 20]).await.unwrap_err() }),
                Box::pin(async move { f2.0.write_all(b"queued").await.unwrap_err() }),
            ]
        };
        let arm = |op: Op, armed: &Arc<AtomicUsize>| {
            let armed = armed.clone();
            async move {
                let mut op = op;
                assert!(is_pending(&mut op).await);
                armed.fetch_add(1, Ordering::AcqRel);
                op.await
            }
        };
        let mut tasks = Vec::new();
        let mut threads = Vec::new();
        for op in ops() {
            tasks.push(other.spawn(arm(op, &armed)));
        }
        for op in ops() {
            let (op, handle) = (arm(op, &armed), other.handle().clone());
            threads.push(std::thread::spawn(move || handle.block_on(op)));
        }
        for op in ops() {
            let op = arm(op, &armed);
            threads.push(std::thread::spawn(move || futures::executor::block_on(op)));
        }
        for op in ops() {
            // A thread that blocks on the very runtime.
            let (op, handle) = (arm(op, &armed), doomed.handle().clone());
            threads.push(std::thread::spawn(move || handle.block_on(op)));
        }
        while armed.load(Ordering::Acquire) < 20 {
            std::thread::yield_now();
        }
        match how {
            0 => drop(doomed),
            1 => doomed.shutdown_background(),
            _ => doomed.shutdown_timeout(std::time::Duration::from_secs(20)).unwrap(),
        }
        for task in tasks {
            gone(&other.block_on(task).unwrap());
        }
        for thread in threads {
            gone(&thread.join().unwrap());
        }
        for op in ops() {
            gone(&other.block_on(op));
        }
        gone(&stream.try_read(&mut [0; 4]).unwrap_err());
        gone(&other.block_on(stream.writable()).unwrap_err());
        // What needs no runtime still works; and another runtime can take the connection over.
        stream.local_addr().unwrap();
        let std = Arc::into_inner(stream).unwrap().into_std().unwrap();
        other.block_on(async {
            let stream = TcpStream::from_std(std).unwrap();
            io::Write::write_all(&mut &peer, b"alive").unwrap();
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 5);
        });
    }
    // Two of the three do not wait for the last of the threads.
    alone.wait();
}

/// Trap P10: a registration after the end of the runtime is refused.
#[test]
fn shutdown_then_registration() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let handle = runtime.handle().clone();
    drop(runtime);
    handle.block_on(async {
        gone(&TcpListener::bind(ANY).await.map(|_| ()).unwrap_err());
        let listener = std::net::TcpListener::bind(ANY).unwrap();
        let addr = listener.local_addr().unwrap();
        gone(&TcpStream::connect(addr).await.map(|_| ()).unwrap_err());
        gone(&TcpStream::from_std(std::net::TcpStream::connect(addr).unwrap()).map(|_| ()).unwrap_err());
        gone(&TcpListener::from_std(listener).map(|_| ()).unwrap_err());
    });
}

/// And a connect that was under way, waiting for an answer that never comes.
#[test]
fn shutdown_during_connect() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let (_listener, _clients, addr) = full_listener();
    let mut connect = Box::pin(TcpStream::connect(addr));
    let (count, waker) = Count::new();
    {
        let _enter = runtime.enter();
        assert!(poll(&mut connect, &waker).is_pending());
    }
    drop(runtime);
    count.wait(1);
    match poll(&mut connect, &waker) {
        Poll::Ready(Err(error)) => gone(&error),
        other => panic!("{other:?}"),
    }
}

/// Trap P10: a registration during the shutdown is refused, or its waiters are woken; none sleeps on.
#[test]
fn shutdown_during_registrations() {
    let _alone = alone(60);
    for round in 0..60 {
        let runtime = runtime(2);
        let started = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (handle, started) = (runtime.handle().clone(), started.clone());
                std::thread::spawn(move || {
                    loop {
                        let std = std::net::TcpListener::bind(ANY).unwrap();
                        let listener = {
                            let _enter = handle.enter();
                            match TcpListener::from_std(std) {
                                Ok(listener) => listener,
                                Err(error) => return gone(&error),
                            }
                        };
                        let turn = started.fetch_add(1, Ordering::Relaxed);
                        if turn % 4 == 0 {
                            // Nobody will ever connect: only the end of the runtime wakes it.
                            let error = futures::executor::block_on(listener.accept()).map(|_| ()).unwrap_err();
                            return gone(&error);
                        }
                        let mut accept = Box::pin(listener.accept());
                        let _ = poll(&mut accept, &noop());
                    }
                })
            })
            .collect();
        while started.load(Ordering::Relaxed) < round % 7 {
            std::thread::yield_now();
        }
        drop(runtime);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

/// A socket that outlives its runtime is dropped in peace, from any thread, with waiters that were never woken.
#[test]
fn shutdown_then_drop() {
    let _alone = alone(30);
    let runtime = runtime(2);
    let (stream, peer) = runtime.block_on(pair());
    let stream = leak(stream);
    let (count, waker) = Count::new();
    let mut read = Box::pin(stream.readable());
    assert!(poll(&mut read, &waker).is_pending());
    drop(runtime);
    assert_eq!(count.wakes(), 1);
    drop(read);
    std::thread::spawn(move || drop(peer)).join().unwrap();
    gone(&futures::executor::block_on(stream.readable()).unwrap_err());
}

/// `close` and the end of the runtime: whichever came first is what one hears, and no more than once.
#[test]
fn close_then_shutdown() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let (stream, _peer) = runtime.block_on(pair());
    stream.close();
    drop(runtime);
    let error = stream.try_read(&mut [0; 4]).unwrap_err();
    assert!(error.get_ref().unwrap().is::<gopark::net::Closed>(), "{error:?}");
}

/// Under `enter`, a foreign executor makes sockets of the runtime that was entered.
#[test]
fn enter_and_foreign_executor() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let _enter = runtime.enter();
    futures::executor::block_on(async {
        assert!(Handle::try_current().is_some());
        let (a, b) = pair().await;
        futures::join!(ping_pong(&a, 50, true), ping_pong(&b, 50, false));
        // Names go to the runtime's blocking pool.
        assert!(gopark::net::lookup_host("localhost:1").await.unwrap().count() > 0);
    });
}

/// Many futures of one foreign task, each with a waker of its own (FuturesUnordered), on one runtime's sockets.
#[test]
fn futures_unordered() {
    let _alone = alone(30);
    let runtime: Runtime = runtime(2);
    let pairs: Vec<_> = (0..30).map(|_| runtime.block_on(pair())).collect();
    futures::executor::block_on(join_all(pairs.iter().map(|(a, b)| async {
        futures::join!(ping_pong(a, 50, true), ping_pong(b, 50, false));
    })));
    runtime.run(async move {
        join_all(pairs.iter().map(|(a, b)| async move {
            futures::join!(ping_pong(a, 50, true), ping_pong(b, 50, false));
        }))
        .await;
    });
}

/// A poll that is ready at once needs nobody to wake it.
#[test]
fn ready_at_once() {
    let _alone = alone(30);
    let runtime = runtime(1);
    let (a, b) = runtime.block_on(pair());
    runtime.block_on(async {
        a.write_all(b"x").await.unwrap();
        b.readable().await.unwrap();
    });
    let mut readable = Box::pin(b.readable());
    assert!(matches!(poll(&mut readable, &noop()), Poll::Ready(Ok(()))));
    let mut buf = [0; 4];
    let mut read = Box::pin(b.read(&mut buf));
    assert!(matches!(poll(&mut read, &noop()), Poll::Ready(Ok(1))));
}
