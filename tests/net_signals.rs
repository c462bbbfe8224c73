//! Signals: they interrupt calls, and nobody notices; and none is raised by a write.
//!
//! Handlers and timers belong to the process, so this file has them for itself.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::io::AsyncWrite;
use gopark::net::{TcpListener, TcpStream};
use net::*;
use std::io::{ErrorKind, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

static ALARMS: AtomicUsize = AtomicUsize::new(0);
static PIPES: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(signal: libc::c_int) {
    let counter = if signal == libc::SIGPIPE { &PIPES } else { &ALARMS };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts a signal, and lets it interrupt calls (no SA_RESTART).
fn handle(signal: libc::c_int) {
    // SAFETY: all zeroes is a valid sigaction; the handler only counts, by an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Sends SIGALRM to the process, again and again, and SIGUSR1 to every thread of it.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start() -> Self {
        handle(libc::SIGALRM);
        handle(libc::SIGUSR1);
        let every = |us| libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: us },
            it_value: libc::timeval { tv_sec: 0, tv_usec: us },
        };
        // SAFETY: the value outlives the call.
        assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &every(300), std::ptr::null_mut()) }, 0);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                // SAFETY: it takes nothing.
                let pid = unsafe { libc::getpid() };
                while !stop.load(Ordering::Relaxed) {
                    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
                        let Some(tid) = task.file_name().to_str().and_then(|t| t.parse::<libc::pid_t>().ok()) else {
                            continue;
                        };
                        // SAFETY: takes numbers; a thread that is gone is an error that nobody minds.
                        unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
                    }
                    std::thread::yield_now();
                }
            }
        });
        Flood { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        // SAFETY: all zeroes disarms the timer.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &std::mem::zeroed(), std::ptr::null_mut()) };
    }
}

async fn transfer(stream: &TcpStream, total: usize, send: u32, receive: u32) {
    let sending = async {
        let mut pattern = Pattern::new(send);
        while pattern.taken() < total {
            let n = stream.write(pattern.peek(total - pattern.taken())).await.unwrap();
            pattern.take(n);
        }
        stream.shutdown(Shutdown::Write).unwrap();
    };
    let receiving = async {
        let mut pattern = Pattern::new(receive);
        let mut buf = vec![0; 30_000];
        loop {
            match stream.read(&mut buf).await.unwrap() {
                0 => return assert_eq!(pattern.taken(), total),
                n => pattern.check(&buf[..n]),
            }
        }
    };
    futures::join!(sending, receiving);
}

/// Traps P20 and P14: signals interrupt whatever call there is; transfers, connects, accepts and sleeps go on, byte for byte.
#[test]
fn signals_and_transfers() {
    let _alone = alone(60);
    let flood = Flood::start();
    for workers in [1, 2] {
        let runtime = runtime(workers);
        for _ in 0..3 {
            runtime.run(async {
                let listener = TcpListener::bind(ANY).await.unwrap();
                let addr = listener.local_addr().unwrap();
                let clients: Vec<_> = (0..10)
                    .map(|_| {
                        gopark::spawn(async move {
                            let stream = TcpStream::connect(addr).await.unwrap();
                            transfer(&stream, 1 << 20, 1, 2).await;
                        })
                    })
                    .collect();
                for _ in 0..10 {
                    let (stream, _) = listener.accept().await.unwrap();
                    gopark::spawn(async move { transfer(&stream, 1 << 20, 2, 1).await });
                }
                for client in clients {
                    client.await.unwrap();
                }
                gopark::time::sleep(Duration::from_millis(5)).await;
            });
        }
    }
    drop(flood);
    assert!(ALARMS.load(Ordering::Relaxed) > 100);
}

/// Trap P20: an idle machine is interrupted; the poll that waits goes on waiting.
#[test]
fn signals_and_an_idle_reader() {
    let _alone = alone(60);
    let runtime = runtime(1);
    let (stream, mut peer) = runtime.block_on(std_pair());
    let read = runtime.spawn(async move { stream.read(&mut [0; 4]).await.unwrap() });
    let before = ALARMS.load(Ordering::Relaxed);
    let flood = Flood::start();
    while ALARMS.load(Ordering::Relaxed) < before + 2000 {
        std::thread::yield_now();
    }
    assert!(!read.is_finished());
    std::io::Write::write_all(&mut peer, b"x").unwrap();
    assert_eq!(runtime.block_on(read).unwrap(), 1);
    drop(flood);
}

/// Trap P26: a write to a peer that is gone is an error and no signal, whichever call makes it.
#[test]
fn writes_to_a_closed_peer() {
    let _alone = alone(60);
    // std ignores SIGPIPE in Rust's own programs; others do not.
    handle(libc::SIGPIPE);
    runtime(1).run(async {
        let broken = |e: std::io::Error| {
            assert!(matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{e}");
        };
        let (stream, peer) = std_pair().await;
        drop(peer);
        // The first write is answered by a reset.
        let _ = stream.write(b"x").await;
        stream.readable().await.unwrap();
        for _ in 0..3 {
            broken(stream.write(b"x").await.map(|_| ()).unwrap_err());
            broken(stream.write_all(b"x").await.unwrap_err());
            broken(stream.try_write(b"x").map(|_| ()).unwrap_err());
            broken(stream.write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).await.map(|_| ()).unwrap_err());
            broken(stream.try_write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).map(|_| ()).unwrap_err());
            let polled = std::future::poll_fn(|cx| {
                let bufs = [IoSlice::new(b"x"), IoSlice::new(b"y")];
                Pin::new(&mut &stream).poll_write_vectored(cx, &bufs)
            });
            broken(polled.await.map(|_| ()).unwrap_err());
            let polled = std::future::poll_fn(|cx| Pin::new(&mut &stream).poll_write(cx, b"x"));
            broken(polled.await.map(|_| ()).unwrap_err());
        }
        let (stream, _peer) = std_pair().await;
        stream.shutdown(Shutdown::Write).unwrap();
        broken(stream.write(b"x").await.map(|_| ()).unwrap_err());
    });
    assert_eq!(PIPES.load(Ordering::Relaxed), 0, "SIGPIPE was raised");
}
