//! Copying from one descriptor to another: Go's `io.Copy`, with the shortcuts of net/splice_linux.go and
//! net/sendfile.go.
//!
//! Go splices whatever it can. For short messages that is dear: two splices and a pipe for a read and a write. Here a
//! copy begins with a buffer, goes over to splice(2) when much comes several times in a row, and back when it is little.
//!
//! ```text
//!             ┌────────── much, IN_A_ROW times: splice ──────────┐
//!             │                                                  ▼
//!   sockets: Buffer ◀─── little, IN_A_ROW times; no pipe ───── Splice        files: SendFile
//!             │                                                  │                    │
//!             └── no streams ──▶ Plain ◀── the kernel refuses ───┴────────────────────┘
//! ```

use super::poll_fd::PollFd;
use super::prelude::*;
use super::splice::{self, Pipe, Pool};
use super::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use super::tcp::TcpStream;
use super::unix::UnixStream;
use crate::runtime::budget;
use crate::runtime::poll_gate::Ticket;
use std::cell::Cell;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::task::ready;

/// What a buffer holds.
const BUFFER: usize = 64 << 10;
/// So much at once is much.
const MUCH: usize = 16 << 10;
const IN_A_ROW: i8 = 3;
/// Where there was no pipe: so many more times must come before there is another try.
const NO_PIPE: i8 = -100;
/// What one unit of the budget moves.
const UNIT: usize = 64 << 10;

/// Copies everything from `reader` to `writer`, to the end of the stream or the file, and says how much that was.
///
/// Bulk goes through the kernel without being looked at: by splice(2) between stream sockets and pipes, by sendfile(2)
/// from files. Short messages, and whatever these calls refuse, go through a buffer, which nothing holds while it waits
/// for the reader. The writer is not shut at the end.
///
/// A [`File`] is read from its position, which moves on (see [`Copy::offset`]). As everywhere, this blocks the thread
/// while the disk works; a file that may block for ever, such as a FIFO, belongs into a [`PollFd`].
///
/// # Errors
/// What the reader or the writer says, deadlines and `close` included; never a SIGPIPE. Where
/// [`in_flight`](Copy::in_flight) is 0 the error is the reader's, otherwise the writer's; from a file it may be either's.
/// While it waits for the reader it does not look at the writer, and learns of what has come to that when there is something to
/// write.
/// After an error that passes, as `TimedOut` does when the deadline is set anew, the same future can be polled again, and
/// goes on where it was.
///
/// # Cancel safety
/// The writer has got [`copied`](Copy::copied) bytes. The next [`in_flight`](Copy::in_flight) bytes have left the reader,
/// and are lost if the future is dropped.
///
/// # Examples
/// ```
/// use gopark::net::{TcpListener, TcpStream};
/// gopark::run(async {
///     let listener = TcpListener::bind("127.0.0.1:0").await?;
///     let client = TcpStream::connect(listener.local_addr()?).await?;
///     let (server, _) = listener.accept().await?;
///     let file = std::fs::File::open("Cargo.toml")?;
///     let sent = gopark::io::copy(&file, &server).await?;
///     assert_eq!(sent, file.metadata()?.len());
///     # drop(client);
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub fn copy<'a>(reader: &'a impl CopyFrom, writer: &'a impl CopyTo) -> Copy<'a> {
    Copy { flow: Flow::new(reader, writer) }
}

/// Copies in both directions at once, until both have ended, and says how much went from `a` to `b` and from `b` to
/// `a`. Where one side's stream ends, the other side's is shut for writing, if it is a socket, and the other direction goes
/// on.
///
/// # Errors
/// As [`copy`]; an error in one direction ends both. It shuts nothing.
///
/// # Cancel safety
/// As [`copy`], in each direction.
///
/// # Examples
/// ```
/// use gopark::net::{TcpListener, TcpStream};
/// /// Passes one connection on.
/// async fn proxy(listener: TcpListener, target: &str) -> std::io::Result<()> {
///     let (client, _) = listener.accept().await?;
///     let server = TcpStream::connect(target).await?;
///     let (up, down) = gopark::io::copy_bidirectional(&client, &server).await?;
///     println!("{up} bytes up, {down} bytes down");
///     Ok(())
/// }
/// ```
pub fn copy_bidirectional<'a, A: CopyFrom + CopyTo, B: CopyFrom + CopyTo>(a: &'a A, b: &'a B) -> CopyBidirectional<'a> {
    CopyBidirectional { flows: [Flow::new(a, b), Flow::new(b, a)], first: 0 }
}

/// See [`copy()`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Copy<'a> {
    flow: Flow<'a>,
}

impl Copy<'_> {
    /// Takes no more than so many bytes from the reader. The rest stays there.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.flow.remain = bytes;
        self
    }

    /// Reads a file from that offset on, and leaves the file's own position alone.
    ///
    /// # Panics
    /// If the reader is no file.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn f(stream: &gopark::net::TcpStream) -> std::io::Result<()> {
    /// let file = std::fs::File::open("video.mp4")?;
    /// gopark::io::copy(&file, stream).offset(4096).limit(1024).await?;
    /// # Ok(()) }
    /// ```
    pub fn offset(mut self, offset: u64) -> Self {
        match &mut self.flow.from {
            // No file is longer than that, and the kernel reads nothing that would reach beyond the last number.
            Reader::File(_, at) => *at = Some(offset.min(i64::MAX as u64 - splice::PIPE_SIZE as u64) as i64),
            Reader::Fd(_) => panic!("gopark: `Copy::offset` is for files; a stream has no offset"),
        }
        self
    }

    /// How many bytes the writer has got.
    pub fn copied(&self) -> u64 {
        self.flow.copied
    }

    /// How many bytes the reader has given and the writer has not got.
    pub fn in_flight(&self) -> u64 {
        self.flow.in_flight() as u64
    }
}

impl Future for Copy<'_> {
    type Output = io::Result<u64>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        ready!(self.flow.poll(cx))?;
        Poll::Ready(Ok(self.copied()))
    }
}

/// See [`copy_bidirectional`].
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct CopyBidirectional<'a> {
    flows: [Flow<'a>; 2],
    /// Which goes first: it may leave no budget for the other.
    first: usize,
}

impl CopyBidirectional<'_> {
    /// How many bytes `b` has got of `a`, and `a` of `b`.
    pub fn copied(&self) -> (u64, u64) {
        self.flows.each_ref().map(|flow| flow.copied).into()
    }

    /// How many bytes `a` has given and `b` has not got, and the other way round.
    pub fn in_flight(&self) -> (u64, u64) {
        self.flows.each_ref().map(|flow| flow.in_flight() as u64).into()
    }
}

impl Future for CopyBidirectional<'_> {
    type Output = io::Result<(u64, u64)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<(u64, u64)>> {
        self.first ^= 1;
        for which in [self.first, self.first ^ 1] {
            let flow = &mut self.flows[which];
            if flow.poll(cx)?.is_ready() && !std::mem::replace(&mut flow.is_shut, true) {
                // It fails where the other end is gone already, and for what knows no half-close.
                let _ = socket::shutdown(flow.to, Shutdown::Write);
            }
        }
        let ended = self.flows.iter().all(|flow| flow.is_shut);
        if ended { Poll::Ready(Ok(self.copied())) } else { Poll::Pending }
    }
}

/// What [`copy()`] can read from: connections, their read halves, [`PollFd`]s and files. It is used, not implemented.
pub trait CopyFrom {
    #[doc(hidden)]
    fn reader(&self) -> Reader<'_>;
}

/// What [`copy()`] can write to: connections, their write halves and [`PollFd`]s. It is used, not implemented.
pub trait CopyTo: HasFd {}

#[doc(hidden)]
#[allow(missing_debug_implementations, reason = "nobody can name it")]
pub enum Reader<'a> {
    Fd(&'a Gate),
    /// With the offset to read at; without one the file's position counts.
    File(&'a File, Option<i64>),
}

impl CopyFrom for File {
    fn reader(&self) -> Reader<'_> {
        Reader::File(self, None)
    }
}

macro_rules! copies {
    ($(impl[$($g:tt)*] $from:ty, $to:ty;)*) => {$(
        impl<$($g)*> CopyFrom for $from {
            fn reader(&self) -> Reader<'_> {
                Reader::Fd(self.fd())
            }
        }

        impl<$($g)*> CopyTo for $to {}
    )*};
}

copies! {
    impl[] TcpStream, TcpStream;
    impl[] UnixStream, UnixStream;
    impl[S: HasFd] ReadHalf<'_, S>, WriteHalf<'_, S>;
    impl[S: HasFd] OwnedReadHalf<S>, OwnedWriteHalf<S>;
    impl[T: AsFd] PollFd<T>, PollFd<T>;
}

/// One direction.
struct Flow<'a> {
    from: Reader<'a>,
    to: &'a Gate,
    /// Of the wait for the writer while anything is in flight or a file is sent, else of that for the reader.
    ticket: Ticket,
    way: Way,
    /// So many times in a row, what was taken spoke for another way.
    run: i8,
    held: Held,
    /// How much more may be taken from the reader; 0 after its end.
    remain: u64,
    copied: u64,
    is_shut: bool,
}

/// How bytes are taken from the reader.
enum Way {
    /// Through the buffer.
    Buffer,
    /// By splice(2).
    Splice(Arc<Mutex<Pool>>),
    /// By sendfile(2), which gives them to the writer, too.
    SendFile,
    /// Through the buffer for good.
    Plain,
}

/// Where the bytes in flight are.
enum Held {
    Buffer(Buffer),
    Pipe(Pipe),
}

/// A buffer without memory.
const NOTHING: Held = Held::Buffer(Buffer(Vec::new()));

impl<'a> Flow<'a> {
    fn new(reader: &'a impl CopyFrom, writer: &'a impl CopyTo) -> Self {
        let (from, to) = (reader.reader(), writer.fd());
        let way = if let Reader::File(..) = from { Way::SendFile } else { Way::Buffer };
        Flow { from, to, ticket: 0, way, run: 0, held: NOTHING, remain: u64::MAX, copied: 0, is_shut: false }
    }

    fn in_flight(&self) -> usize {
        match &self.held {
            Held::Buffer(Buffer(buf)) => buf.len(),
            Held::Pipe(pipe) => pipe.held,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.in_flight() > 0 {
                match ready!(self.deliver(cx))? {
                    0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                    n => self.delivered(n, cx),
                }
            }
            self.held = NOTHING;
            if self.remain == 0 {
                if self.copied == 0 {
                    // No call was made that would have taken any (trap S22).
                    ready!(budget::poll_take(cx));
                }
                return Poll::Ready(Ok(()));
            }
            let max = self.remain.min(splice::PIPE_SIZE as u64) as usize;
            let taken = match self.way {
                Way::Splice(_) => self.splice(cx, max),
                Way::SendFile => self.send_file(cx, max),
                Way::Buffer | Way::Plain => self.read(cx, max),
            };
            match ready!(taken) {
                Ok(0) => self.remain = 0,
                Ok(n) => self.remain -= n as u64,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if splice::is_refusal(&e) && matches!(self.way, Way::Splice(_) | Way::SendFile) => {
                    self.way = Way::Plain;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Writes some of what is in flight.
    fn deliver(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.held {
            Held::Buffer(Buffer(buf)) => {
                let polled =
                    self.to.poll_io(Side::Write, cx, Some(&mut self.ticket), buf.len(), |fd| splice::write(fd, buf));
                match polled {
                    Poll::Ready(Ok(n)) => drop(buf.drain(..n)),
                    // Who waits for the writer keeps no more memory than it needs.
                    Poll::Pending if buf.len() < BUFFER / 2 => buf.shrink_to_fit(),
                    _ => {}
                }
                polled
            }
            Held::Pipe(pipe) => self.to.poll_io(Side::Write, cx, Some(&mut self.ticket), 0, |fd| pipe.drain(fd)),
        }
    }

    /// Bulk takes more of the budget than messages do.
    fn delivered(&mut self, n: usize, cx: &mut Context<'_>) {
        self.copied += n as u64;
        let _ = (0..n / UNIT).find(|_| budget::poll_take(cx).is_pending());
    }

    fn read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<usize>> {
        let mut buf = Buffer::take();
        let polled = match &mut self.from {
            Reader::Fd(from) => from.poll_io(Side::Read, cx, Some(&mut self.ticket), max.min(BUFFER), |fd| {
                splice::read(fd, None, &mut buf.0, max)
            }),
            Reader::File(file, at) => Poll::Ready(splice::read(file.as_fd(), at.as_mut(), &mut buf.0, max)),
        };
        let n = ready!(polled)?;
        self.hold(Held::Buffer(buf), n);
        Poll::Ready(Ok(n))
    }

    fn splice(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<usize>> {
        let (Way::Splice(pool), Reader::Fd(from)) = (&self.way, &self.from) else { unreachable!("only for streams") };
        let Ok(mut pipe) = Pipe::take(pool) else {
            (self.way, self.run) = (Way::Buffer, NO_PIPE);
            return self.read(cx, max);
        };
        let mut buf = Buffer::take();
        let polled = from.poll_io(Side::Read, cx, Some(&mut self.ticket), sys::WHOLE, |fd| match pipe.fill(fd, max) {
            Ok(n @ 1..) => Ok(n),
            Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
            // At an urgent mark, too, splice(2) sees nothing or the end, and never gets past it (trap P25). A read does.
            _ => splice::read(fd, None, &mut buf.0, max),
        });
        let n = ready!(polled)?;
        self.hold(if buf.0.is_empty() { Held::Pipe(pipe) } else { Held::Buffer(buf) }, n);
        Poll::Ready(Ok(n))
    }

    fn send_file(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<usize>> {
        let Reader::File(file, at) = &mut self.from else { unreachable!("only files are sent") };
        let send = |fd: BorrowedFd<'_>| splice::send_file(fd, file, at.as_mut(), max);
        let n = ready!(self.to.poll_io(Side::Write, cx, Some(&mut self.ticket), 0, send))?;
        self.delivered(n, cx);
        Poll::Ready(Ok(n))
    }

    /// Has taken `n` bytes, and learns from their number how to go on.
    fn hold(&mut self, held: Held, n: usize) {
        self.held = held;
        let speaks_against = match self.way {
            Way::Buffer => n >= MUCH,
            Way::Splice(_) => n < MUCH,
            Way::SendFile | Way::Plain => return,
        };
        self.run = if speaks_against { self.run + 1 } else { self.run.min(0) };
        if self.run == IN_A_ROW {
            self.run = 0;
            self.way = match (&self.way, &self.from) {
                (Way::Splice(_), _) => Way::Buffer,
                (_, Reader::Fd(from)) if [from.as_fd(), self.to.as_fd()].into_iter().all(splice::is_spliced) => {
                    Way::Splice(splice::pool())
                }
                _ => Way::Plain,
            };
        }
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        match self.from {
            Reader::Fd(from) if self.in_flight() == 0 => from.leave(Side::Read, &mut self.ticket, true),
            _ => self.to.leave(Side::Write, &mut self.ticket, true),
        }
    }
}

impl fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("copied", &self.copied).field("in_flight", &self.in_flight()).finish()
    }
}

/// Room for BUFFER bytes. When it is dropped, the thread keeps it for whoever comes next.
struct Buffer(Vec<u8>);

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Buffer {
    fn take() -> Buffer {
        let mut spare = SPARE.try_with(Cell::take).unwrap_or_default();
        spare.clear();
        spare.reserve_exact(BUFFER);
        Buffer(spare)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() == BUFFER {
            // At the thread's end it goes.
            let _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.0)));
        }
    }
}
