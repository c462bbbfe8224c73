//! What Go's nettest.TestConn asks of a connection, of whatever kind (`cargo test --test net_conformance tcp::ping_pong`);
//! and at the end what Go's net/tcpsock_test.go asks of TCP.
//!
//! Each row takes both ends, c1 and c2, and is run on one worker and on two.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::future::join_all;
use futures::join;
use gopark::JoinHandle;
use gopark::io::copy_bidirectional;
use gopark::net::{TcpListener, TcpStream, UnixStream};
use net::*;
use std::collections::HashSet;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

/// An end of a connection.
trait Conn: Send + Sync + 'static {
    fn read(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
    fn read_exact(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<()>> + Send;
    fn write(&self, buf: &[u8]) -> impl Future<Output = io::Result<usize>> + Send;
    fn write_all(&self, buf: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
    fn set_deadline(&self, at: Option<Instant>) -> io::Result<()>;
    fn set_read_deadline(&self, at: Option<Instant>) -> io::Result<()>;
    fn set_write_deadline(&self, at: Option<Instant>) -> io::Result<()>;
    fn addresses(&self) -> io::Result<()>;
    fn close(&self);
}

macro_rules! conn {
    ($($t:ty)*) => {$(
        impl Conn for $t {
            async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.read(buf).await
            }

            async fn read_exact(&self, buf: &mut [u8]) -> io::Result<()> {
                self.read_exact(buf).await
            }

            async fn write(&self, buf: &[u8]) -> io::Result<usize> {
                self.write(buf).await
            }

            async fn write_all(&self, buf: &[u8]) -> io::Result<()> {
                self.write_all(buf).await
            }

            fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
                self.set_deadline(at)
            }

            fn set_read_deadline(&self, at: Option<Instant>) -> io::Result<()> {
                self.set_read_deadline(at)
            }

            fn set_write_deadline(&self, at: Option<Instant>) -> io::Result<()> {
                self.set_write_deadline(at)
            }

            fn addresses(&self) -> io::Result<()> {
                self.local_addr()?;
                self.peer_addr()?;
                Ok(())
            }

            fn close(&self) {
                self.close();
            }
        }
    )*};
}

conn! { TcpStream UnixStream }

/// How each kind of connection is made: Go's `MakePipe`.
mod make_pipe {
    use super::*;

    pub(super) async fn tcp() -> (TcpStream, TcpStream) {
        pair().await
    }

    pub(super) async fn unix() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    /// Two TCP connections, and between them a task that copies.
    pub(super) async fn proxy() -> (TcpStream, TcpStream) {
        let ((c1, near), (far, c2)) = (pair().await, pair().await);
        gopark::spawn(async move { copy_bidirectional(&near, &far).await });
        (c1, c2)
    }
}

macro_rules! conformance {
    ($($transport:ident)*) => {$(
        mod $transport {
            conformance! { @rows $transport
                basic_io ping_pong racy_read racy_write read_timeout write_timeout past_timeout present_timeout
                future_timeout close_timeout concurrent_methods
            }
        }
    )*};
    (@rows $transport:ident $($row:ident)*) => {$(
        #[test]
        fn $row() {
            let _alone = super::alone(60);
            for workers in [1, 2] {
                super::runtime(workers).run(async {
                    let (c1, c2) = super::make_pipe::$transport().await;
                    super::$row(c1.into(), c2.into()).await;
                });
            }
        }
    )*};
}

conformance! { tcp unix proxy }

/// Sends a pattern for as long as it is taken.
fn pour<C: Conn>(to: &Arc<C>) -> JoinHandle<()> {
    let to = to.clone();
    gopark::spawn(async move {
        let mut pattern = Pattern::new(1);
        while let Ok(n) = to.write(pattern.peek(1024)).await {
            pattern.take(n);
        }
    })
}

/// Reads to the end, for nobody.
fn discard<C: Conn>(from: &Arc<C>) -> JoinHandle<()> {
    let from = from.clone();
    gopark::spawn(async move { while let Ok(1..) = from.read(&mut [0; 1024]).await {} })
}

/// Sends back what comes.
fn echo<C: Conn>(on: &Arc<C>) -> JoinHandle<()> {
    let on = on.clone();
    gopark::spawn(async move {
        let mut buf = [0; 1024];
        while let Ok(n @ 1..) = on.read(&mut buf).await {
            if on.write_all(&buf[..n]).await.is_err() {
                break;
            }
        }
    })
}

/// Something goes out and, echoed by the other end, comes back.
async fn round_trip<C: Conn>(c: &C) {
    c.set_deadline(NEVER).unwrap();
    let (text, mut back) = (b"Hello, world!", [0; 13]);
    c.write_all(text).await.unwrap();
    c.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, text);
}

/// Reads away what is under way, if the other end echoes and there is no 0xff in it.
async fn resync<C: Conn>(c: &C) {
    c.set_deadline(NEVER).unwrap();
    let (sent, ()) = join!(c.write_all(&[0xff]), async {
        let mut buf = [0; 1024];
        loop {
            let n = c.read(&mut buf).await.unwrap();
            assert!(n > 0, "the end, before the mark");
            if buf[..n].contains(&0xff) {
                assert_eq!(buf[n - 1], 0xff, "the mark is the last that was sent");
                return;
            }
        }
    });
    sent.unwrap();
}

/// BasicIO: what c1 sends is what c2 reads, to the end that c1's close makes.
async fn basic_io<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    const TOTAL: usize = 1 << 20;
    let sender = gopark::spawn(async move {
        for chunk in Pattern::new(7).bytes(TOTAL).chunks(1024) {
            c1.write_all(chunk).await.unwrap();
        }
        c1.close();
    });
    let (mut pattern, mut buf) = (Pattern::new(7), [0; 1024]);
    loop {
        match c2.read(&mut buf).await.unwrap() {
            0 => break,
            n => pattern.check(&buf[..n]),
        }
    }
    assert_eq!(pattern.taken(), TOTAL);
    c2.close();
    sender.await.unwrap();
}

/// PingPong: a number goes back and forth, and is raised by one each time.
async fn ping_pong<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    const LAST: u64 = 1000;
    async fn player<C: Conn>(c: Arc<C>) -> u64 {
        let (mut buf, mut seen) = ([0; 8], None);
        while let Ok(()) = c.read_exact(&mut buf).await {
            let v = u64::from_le_bytes(buf);
            assert!(seen.is_none_or(|seen| v == seen + 2), "{v} after {seen:?}");
            seen = Some(v);
            if v == LAST {
                break;
            }
            c.write_all(&(v + 1).to_le_bytes()).await.unwrap();
        }
        c.close();
        seen.unwrap()
    }
    let (p1, p2) = (gopark::spawn(player(c1.clone())), gopark::spawn(player(c2)));
    c1.write_all(&[0; 8]).await.unwrap();
    let (last1, last2) = join!(p1, p2);
    assert_eq!(last1.unwrap().max(last2.unwrap()), LAST);
}

/// RacyRead: many tasks read from one connection while its deadline passes again and again. Each may use its buffer as soon
/// as a read is over, be it by a timeout or because it was dropped.
async fn racy_read<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let poured = pour(&c2);
    c1.set_read_deadline(ahead(1)).unwrap();
    let readers = (0..10).map(|_| {
        let c1 = c1.clone();
        gopark::spawn(async move {
            let mut buf = [0; 1024];
            for i in 0..100 {
                if i % 10 == 0 {
                    let _ = futures::poll!(pin!(c1.read(&mut buf)));
                } else if let Err(error) = c1.read(&mut buf).await {
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    c1.set_read_deadline(ahead(1)).unwrap();
                }
                buf.fill(i);
            }
        })
    });
    join_all(readers.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
    c1.close();
    c2.close();
    poured.await.unwrap();
}

/// RacyWrite: the same with writes.
async fn racy_write<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let discarded = discard(&c2);
    c1.set_write_deadline(ahead(1)).unwrap();
    let writers = (0..10).map(|_| {
        let c1 = c1.clone();
        gopark::spawn(async move {
            let mut buf = [0; 1024];
            for i in 0..100 {
                if i % 10 == 0 {
                    let _ = futures::poll!(pin!(c1.write(&buf)));
                } else if let Err(error) = c1.write(&buf).await {
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    c1.set_write_deadline(ahead(1)).unwrap();
                }
                buf.fill(i);
            }
        })
    });
    join_all(writers.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
    c1.close();
    discarded.await.unwrap();
}

/// ReadTimeout: a read's deadline is none of a write's affair.
async fn read_timeout<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let discarded = discard(&c2);
    c1.set_read_deadline(past()).unwrap();
    is_timeout(c1.read(&mut [0; 1024]).await);
    c1.write_all(&[0; 1024]).await.unwrap();
    c1.close();
    discarded.await.unwrap();
}

/// WriteTimeout: and the other way round.
async fn write_timeout<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let poured = pour(&c2);
    c1.set_write_deadline(past()).unwrap();
    is_timeout(c1.write(&[0; 1024]).await);
    is_timeout(c1.write_all(&[0; 1024]).await);
    c1.read_exact(&mut [0; 1024]).await.unwrap();
    c1.close();
    c2.close();
    poured.await.unwrap();
}

/// PastTimeout: a deadline in the past ends reads and writes at once, until it is set anew.
async fn past_timeout<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let echoed = echo(&c2);
    round_trip(&*c1).await;
    c1.set_deadline(past()).unwrap();
    is_timeout(c1.write(&[0; 1024]).await);
    is_timeout(c1.read(&mut [0; 1024]).await);
    round_trip(&*c1).await;
    c1.close();
    echoed.await.unwrap();
}

/// Reads, and writes until nothing fits, while the other end does nothing; tells by `waiting` that both wait. Ends with what
/// ended them.
async fn stuck<C: Conn>(c: Arc<C>, waiting: Arc<AtomicUsize>) -> (io::Error, io::Error) {
    let reader = gopark::spawn({
        let (c, waiting) = (c.clone(), waiting.clone());
        async move {
            let mut buf = [0; 1024];
            let mut read = Box::pin(c.read(&mut buf));
            // A deadline may pass before the first poll.
            if is_pending(&mut read).await {
                waiting.fetch_add(1, SeqCst);
                return read.await.expect_err("nothing is sent");
            }
            c.read(&mut [0]).await.expect_err("nothing is sent")
        }
    });
    let writer = gopark::spawn(async move {
        let mut told = false;
        loop {
            let mut write = Box::pin(c.write(&[0; 1024]));
            if let std::task::Poll::Ready(result) = futures::poll!(&mut write) {
                match result {
                    Ok(n) => assert!(n > 0),
                    Err(error) => return error,
                }
                continue;
            }
            waiting.fetch_add(usize::from(!told), SeqCst);
            told = true;
            match write.await {
                Ok(n) => assert!(n > 0),
                Err(error) => return error,
            }
        }
    });
    let (read, write) = join!(reader, writer);
    (read.unwrap(), write.unwrap())
}

/// PresentTimeout: a deadline in the past ends what waits, and nothing ends it before.
async fn present_timeout<C: Conn>(c1: Arc<C>, _c2: Arc<C>) {
    let waiting = Arc::default();
    let set = AtomicBool::new(false);
    let (ended, ()) = join!(
        async {
            let ended = gopark::spawn(stuck(c1.clone(), Arc::clone(&waiting))).await;
            assert!(set.load(SeqCst), "ended before the deadline was set");
            ended.unwrap()
        },
        async {
            while waiting.load(SeqCst) < 2 {
                gopark::yield_now().await;
            }
            set.store(true, SeqCst);
            c1.set_read_deadline(past()).unwrap();
            c1.set_write_deadline(past()).unwrap();
        }
    );
    assert_eq!((ended.0.kind(), ended.1.kind()), (ErrorKind::TimedOut, ErrorKind::TimedOut));
}

/// FutureTimeout: a deadline ahead ends what waits, not before its time; then the connection is as good as ever.
async fn future_timeout<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let at = ahead(100);
    c1.set_deadline(at).unwrap();
    let ended = stuck(c1.clone(), Arc::default()).await;
    assert!(Some(Instant::now()) >= at);
    assert_eq!((ended.0.kind(), ended.1.kind()), (ErrorKind::TimedOut, ErrorKind::TimedOut));
    let echoed = echo(&c2);
    resync(&*c1).await;
    round_trip(&*c1).await;
    c1.close();
    echoed.await.unwrap();
}

/// CloseTimeout: close ends reads and writes that are under way.
async fn close_timeout<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let echoed = echo(&c2);
    c1.set_deadline(NEVER).unwrap();
    let (read, written) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let reader = gopark::spawn({
        let (c1, read) = (c1.clone(), read.clone());
        async move {
            let mut buf = [0; 1024];
            loop {
                // 0 by a call that met the shutdown: the next is refused.
                match c1.read(&mut buf).await {
                    Ok(n) => read.fetch_add(n, SeqCst),
                    Err(error) => return error,
                };
            }
        }
    });
    let writer = gopark::spawn({
        let (c1, written) = (c1.clone(), written.clone());
        async move {
            loop {
                match c1.write(&[0; 1024]).await {
                    Ok(n) => written.fetch_add(n, SeqCst),
                    Err(error) => return error,
                };
            }
        }
    });
    while read.load(SeqCst) < 100_000 || written.load(SeqCst) < 100_000 {
        gopark::yield_now().await;
    }
    c1.close();
    // A call that meets the shutdown has the kernel's word for it; what the echo still sends makes it a reset.
    for error in [reader.await.unwrap(), writer.await.unwrap()] {
        let met = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        assert!(is_closed(&error) || met, "{error}");
    }
    assert!(is_closed(&c1.read(&mut [0]).await.unwrap_err()));
    assert!(is_closed(&c1.write(&[0]).await.unwrap_err()));
    assert!(is_closed(&c1.set_deadline(NEVER).unwrap_err()));
    c2.close();
    echoed.await.unwrap();
}

/// ConcurrentMethods: everything at once, with whatever results; then the connection is as good as ever.
async fn concurrent_methods<C: Conn>(c1: Arc<C>, c2: Arc<C>) {
    let echoed = echo(&c2);
    let mut tasks = Vec::new();
    for _ in 0..100 {
        for what in 0..7 {
            let c1 = c1.clone();
            tasks.push(gopark::spawn(async move {
                match what {
                    0 => drop(c1.read(&mut [0; 1024]).await),
                    1 => drop(c1.write(&[0; 1024]).await),
                    2 => c1.set_deadline(ahead(10)).unwrap(),
                    3 => c1.set_read_deadline(past()).unwrap(),
                    4 => c1.set_write_deadline(past()).unwrap(),
                    5 => c1.addresses().unwrap(),
                    _ => drop(c1.write_all(&[0; 1024]).await),
                }
            }));
        }
    }
    // At worst they wait until the last deadline, or for each other: every read has a deadline before it or an echo.
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    resync(&*c1).await;
    round_trip(&*c1).await;
    c1.close();
    echoed.await.unwrap();
}

/// Go's TCPConcurrentAccept: ten tasks accept from one listener; each connection is one task's, and the listener's close
/// ends them all.
#[test]
fn tcp_concurrent_accept() {
    const N: usize = 10;
    let _alone = alone(60);
    for workers in [1, 4] {
        runtime(workers).run(async {
            let listener = Arc::new(TcpListener::bind(ANY).await.unwrap());
            let acceptors = (0..N).map(|_| {
                let listener = listener.clone();
                gopark::spawn(async move {
                    let mut accepted = Vec::new();
                    loop {
                        match listener.accept().await {
                            Ok((_, addr)) => accepted.push(addr),
                            Err(error) => return (accepted, error),
                        }
                    }
                })
            });
            let acceptors: Vec<_> = acceptors.collect();
            let mut dialed = HashSet::new();
            for _ in 0..10 * N {
                let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                dialed.insert(stream.local_addr().unwrap());
                // Until it is accepted; what the close finds in the queue is reset.
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            }
            listener.close();
            let mut total = 0;
            for acceptor in acceptors {
                let (accepted, error) = acceptor.await.unwrap();
                assert!(is_closed(&error));
                total += accepted.len();
                accepted.iter().for_each(|addr| assert!(dialed.contains(addr)));
            }
            assert_eq!(total, 10 * N);
        });
    }
}

/// Go's TCPStress: messages of 512 bytes go to and fro on two connections.
#[test]
fn tcp_stress() {
    const CONNS: usize = 2;
    const MSGS: usize = 3000;
    let _alone = alone(60);
    for workers in [1, 2] {
        runtime(workers).run(async {
            let listener = TcpListener::bind(ANY).await.unwrap();
            let addr = listener.local_addr().unwrap();
            let server = gopark::spawn(async move {
                let mut servers = Vec::new();
                for _ in 0..CONNS {
                    let (stream, _) = listener.accept().await.unwrap();
                    servers.push(gopark::spawn(async move {
                        let mut buf = [0; 512];
                        while let Ok(()) = stream.read_exact(&mut buf).await {
                            stream.write_all(&buf).await.unwrap();
                        }
                    }));
                }
                join_all(servers).await.into_iter().for_each(Result::unwrap);
            });
            let clients = (0..CONNS).map(|i| {
                gopark::spawn(async move {
                    let stream = TcpStream::connect(addr).await.unwrap();
                    let (mut sent, mut received) = (Pattern::new(i as u32), Pattern::new(i as u32));
                    let mut buf = [0; 512];
                    for _ in 0..MSGS {
                        stream.write_all(&sent.bytes(512)).await.unwrap();
                        sent.take(512);
                        stream.read_exact(&mut buf).await.unwrap();
                        received.check(&buf);
                    }
                })
            });
            join_all(clients.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
            server.await.unwrap();
        });
    }
}

/// More zeros than 31 bits can count, which cost no memory until they are written to.
struct Zeros(*mut libc::c_void);

impl Zeros {
    const LEN: usize = (1 << 31) + (1 << 20);

    fn new() -> Zeros {
        let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a fresh mapping, wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Self::LEN, access, kind, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Zeros(at)
    }
}

impl std::ops::Deref for Zeros {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, readable, never written, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.0.cast(), Self::LEN) }
    }
}

impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and nobody borrows it any more.
        unsafe { libc::munmap(self.0, Self::LEN) };
    }
}

/// Go's TCPBig: one write of more than 2 GiB, plain and vectored, of which the peer takes `limit` bytes before it leaves.
fn big(limit: usize) {
    let _alone = alone(120);
    let runtime = runtime(2);
    for vectored in [false, true] {
        runtime.block_on(async {
            let (stream, peer) = pair().await;
            let reader = gopark::spawn(async move {
                let (mut total, mut buf, zeros) = (0, vec![1; 1 << 20], vec![0; 1 << 20]);
                while total < limit {
                    match peer.read(&mut buf).await.unwrap() {
                        0 => break,
                        n => {
                            assert!(buf[..n] == zeros[..n]);
                            total += n;
                        }
                    }
                }
                total
            });
            let zeros = Zeros::new();
            let mut written = 0;
            let result = if vectored {
                let bufs = [IoSlice::new(&zeros), IoSlice::new(&zeros)];
                loop {
                    match stream.write_vectored(&bufs).await {
                        Ok(n) => written += n,
                        Err(error) => break Err(error),
                    }
                    if written >= Zeros::LEN {
                        break Ok(());
                    }
                }
            } else {
                stream.write_all(&zeros).await
            };
            if limit < Zeros::LEN {
                let kind = result.unwrap_err().kind();
                assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind}");
                assert!(reader.await.unwrap() >= limit);
            } else {
                result.unwrap();
                drop(stream);
                assert!(reader.await.unwrap() >= Zeros::LEN);
            }
        });
    }
}

#[test]
fn tcp_big() {
    big(64 << 20);
}

/// To the last byte. (The sanitizers' steps leave it out: the shadow would need as much memory as it is long.)
#[test]
fn tcp_big_to_the_last_byte() {
    big(Zeros::LEN);
}
