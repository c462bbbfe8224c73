//! What the tests of sockets share: connected pairs, bytes to send, wakers that count, polls by hand.
#![allow(dead_code, unreachable_pub, missing_docs)]

use crate::support::{Watchdog, watchdog};
use gopark::net::{TcpListener, TcpStream};
use gopark::{Builder, Runtime};
use socket2::{Domain, Socket, Type};
use std::any::Any;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

pub fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).build().unwrap()
}

pub const ANY: &str = "127.0.0.1:0";

/// A connection, both ends in the current runtime: who connected, who accepted.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (connected, accepted) = futures::join!(TcpStream::connect(addr), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

/// A connection whose other end is std's and blocks.
pub async fn std_pair() -> (TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    (listener.accept().await.unwrap().0, peer)
}

static LEAKED: Mutex<Vec<Arc<dyn Any + Send + Sync>>> = Mutex::new(Vec::new());

/// For futures that are kept for ever: what they borrow lives until [`Alone`] has the test end.
pub fn leak<T: Any + Send + Sync>(value: T) -> &'static T {
    let value = Arc::new(value);
    // SAFETY: it stays where it is until the test is over, and then nobody comes back to what was forgotten.
    let leaked = unsafe { &*Arc::as_ptr(&value) };
    LEAKED.lock().unwrap().push(value);
    leaked
}

pub fn leak_mut<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// An address that refuses: bound, and nobody listens. It stays so while the socket lives.
pub fn refusing() -> (Socket, SocketAddr) {
    refusing_on(ANY)
}

pub fn refusing_on(addr: &str) -> (Socket, SocketAddr) {
    let addr: SocketAddr = addr.parse().unwrap();
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    socket.bind(&addr.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

/// A listener whose queue is full, so that a further connect waits: SYNs are dropped.
pub fn full_listener() -> (Socket, Vec<Socket>, SocketAddr) {
    full_listener_on(ANY)
}

pub fn full_listener_on(addr: &str) -> (Socket, Vec<Socket>, SocketAddr) {
    let addr: SocketAddr = addr.parse().unwrap();
    let socket = || Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&addr.into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    let mut clients = Vec::new();
    loop {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&addr.into());
        let mut poll = libc::pollfd { fd: client.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        let connected = unsafe { libc::poll(&mut poll, 1, 100) } == 1;
        clients.push(client);
        if !connected {
            return (listener, clients, addr);
        }
        assert!(clients.len() < 100, "the queue never fills");
    }
}

/// A prime, so that a lost or doubled block of any usual size shifts the pattern.
const PERIOD: usize = 65_521;

/// An endless stream of bytes, of which each place can be checked.
#[derive(Clone)]
pub struct Pattern {
    bytes: Arc<[u8]>,
    at: usize,
}

impl Pattern {
    pub fn new(seed: u32) -> Self {
        let mut x = seed | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        };
        Pattern { bytes: (0..PERIOD).map(|_| next()).collect(), at: 0 }
    }

    /// The next bytes, at most `max`, without taking them.
    pub fn peek(&self, max: usize) -> &[u8] {
        let at = self.at % PERIOD;
        &self.bytes[at..PERIOD.min(at + max)]
    }

    pub fn take(&mut self, n: usize) {
        self.at += n;
    }

    pub fn taken(&self) -> usize {
        self.at
    }

    /// Compares what arrived with what must have been sent.
    pub fn check(&mut self, mut got: &[u8]) {
        while !got.is_empty() {
            let n = self.peek(got.len()).len();
            assert!(self.peek(n) == &got[..n], "the bytes from {} on are not what was sent", self.at);
            self.take(n);
            got = &got[n..];
        }
    }

    pub fn bytes(&self, n: usize) -> Vec<u8> {
        let (mut rest, mut bytes) = (self.clone(), Vec::with_capacity(n));
        while bytes.len() < n {
            bytes.extend_from_slice(rest.peek(n - bytes.len()));
            rest.at = self.at + bytes.len();
        }
        bytes
    }
}

/// A waker of nobody's executor, that counts.
#[derive(Default)]
pub struct Count {
    wakes: Mutex<usize>,
    woken: Condvar,
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        *self.wakes.lock().unwrap() += 1;
        self.woken.notify_all();
    }
}

impl Count {
    pub fn new() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (count.clone(), count.into())
    }

    pub fn wakes(&self) -> usize {
        *self.wakes.lock().unwrap()
    }

    /// Waits for the `n`th wake. Not for runtime threads.
    pub fn wait(&self, n: usize) {
        let mut wakes = self.wakes.lock().unwrap();
        while *wakes < n {
            wakes = self.woken.wait(wakes).unwrap();
        }
    }
}

/// One poll by hand.
pub fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>, waker: &Waker) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(waker))
}

pub fn noop() -> Waker {
    futures::task::noop_waker()
}

/// Polls once, whoever the caller is, and leaves no waker behind that anybody misses.
pub async fn is_pending<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// A connection on which a byte goes round. What the kernel knew when `beat` began, a poll has harvested when it ends:
/// epoll reports in the order in which descriptors became ready, and this one's byte came last.
pub struct Pulse {
    from: TcpStream,
    to: TcpStream,
}

impl Pulse {
    pub async fn new() -> Self {
        let (from, to) = pair().await;
        let pulse = Pulse { from, to };
        pulse.beat().await;
        pulse
    }

    pub async fn beat(&self) {
        // Twice: the first byte may be found by a read that an older event had let through.
        for _ in 0..2 {
            let mut buf = [0; 2];
            let mut read = Box::pin(self.to.read(&mut buf));
            assert!(is_pending(&mut read).await);
            self.from.write_all(b".").await.unwrap();
            assert_eq!(read.await.unwrap(), 1);
        }
    }
}

/// Fills a connection until the kernel takes no more, and nothing is under way; returns how much it took.
pub async fn fill(stream: &TcpStream) -> usize {
    let (pulse, chunk, mut total) = (Pulse::new().await, [b'f'; 20_000], 0);
    loop {
        match stream.try_write(&chunk) {
            Ok(n) => total += n,
            Err(_) => {
                pulse.beat().await;
                if is_pending(&mut Box::pin(stream.writable())).await {
                    return total;
                }
            }
        }
    }
}

/// The kind is the system's, the text names the address, and the system's error is the source.
pub fn is_address_error(error: &std::io::Error, kind: std::io::ErrorKind, addr: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(addr), "{error}");
    let source = error.get_ref().unwrap().source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.kind(), kind);
}

/// How many descriptors the process has open, of those that [`descriptors`] knows.
pub fn open_fds() -> usize {
    descriptors().len()
}

/// What the process has open: each descriptor, and what is behind it. What a child would inherit is not ours: sanitizers
/// have such pipes, from whenever they first look up a symbol.
fn descriptors() -> BTreeSet<(i32, PathBuf)> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let all = entries.filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        // SAFETY: takes no pointers.
        let ours = unsafe { libc::fcntl(fd, libc::F_GETFD) } & libc::FD_CLOEXEC != 0;
        // Sysmon's look at a thread is no leak.
        let path = entry.path().read_link().ok().filter(|path| !path.ends_with("stat"))?;
        ours.then_some((fd, path))
    });
    all.collect()
}

/// For tests that count the descriptors of the process or change its limits.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// Sets the soft limit of descriptors; back again when dropped.
pub struct Limit(libc::rlimit);

impl Limit {
    pub fn set(soft: u64) -> Self {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: both calls use the struct for their length only.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut old), 0);
            let new = libc::rlimit { rlim_cur: soft.min(old.rlim_max), rlim_max: old.rlim_max };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &new), 0);
        }
        Limit(old)
    }

    /// No descriptor can be opened any more.
    pub fn exhausted() -> Self {
        let spare = File::open("/proc/self/exe").unwrap();
        // The lowest free number is the next to be given: everything below is taken.
        Limit::set(spare.as_raw_fd() as u64)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &self.0) };
    }
}

/// Machines without it have nothing to test.
pub fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

/// See [`alone`].
#[must_use = "dropped at once it counts nothing"]
pub struct Alone {
    before: BTreeSet<(i32, PathBuf)>,
    _turn: MutexGuard<'static, ()>,
    _dog: Watchdog,
}

/// The first line of a test that must leave no descriptor behind: no other such test of this process runs meanwhile, and
/// the descriptors are counted now and when what it returns is dropped, which has to be last. It watches as [`watchdog`]
/// does.
#[track_caller]
pub fn alone(secs: u64) -> Alone {
    let turn = one_at_a_time();
    Alone { before: descriptors(), _turn: turn, _dog: watchdog(secs) }
}

impl Alone {
    /// Waits until there are no more than at first: the threads of a runtime that nobody waited for close theirs when they end.
    pub fn wait(&self) {
        while !descriptors().is_subset(&self.before) {
            std::thread::yield_now();
        }
    }

    /// Are there just so many descriptors more than at first?
    #[track_caller]
    pub fn check(&self, more: usize) {
        let now = descriptors();
        let new: Vec<_> = now.difference(&self.before).collect();
        assert_eq!(now.len(), self.before.len() + more, "open, and not before the test: {new:?}");
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let leaked = std::mem::take(&mut *LEAKED.lock().unwrap());
            drop(leaked);
            self.check(0);
        }
    }
}

pub const NEVER: Option<Instant> = None;

/// A deadline that has passed.
pub fn past() -> Option<Instant> {
    Some(Instant::now())
}

pub fn ahead(millis: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(millis))
}

/// An hour, which no test lasts.
pub fn far() -> Option<Instant> {
    ahead(3_600_000)
}

#[track_caller]
pub fn is_timeout<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("a deadline has passed").kind(), io::ErrorKind::TimedOut);
}

/// Is it what an operation gets on a socket that was closed?
pub fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected && error.get_ref().is_some_and(|e| e.is::<gopark::net::Closed>())
}

/// Ends when every deadline up to this time has taken effect: all of them lie in one heap, and this is one of them. (One that
/// has passed when it is set takes effect at once, before others that are due.)
pub async fn deadlines_until(at: Instant) {
    let (stream, _peer) = pair().await;
    let mut when = at;
    loop {
        stream.set_read_deadline(Some(when)).unwrap();
        let now = Instant::now();
        if now < when {
            break;
        }
        when = now + Duration::from_millis(1);
    }
    is_timeout(stream.read(&mut [0]).await);
    assert!(Instant::now() >= at);
}
