//! Copying: splice(2), sendfile(2), the buffer, and what is left where a copy ends in the middle. Where Go has a test of
//! the same (net/splice_test.go, net/sendfile_test.go), the name is Go's.
//!
//! Descriptors are counted, and limits are the process's, so one test runs at a time.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::io::{Copy, CopyBidirectional, CopyFrom, CopyTo, PollFd, copy, copy_bidirectional};
use gopark::net::{Closed, TcpStream, UnixStream};
use net::*;
use socket2::{Domain, SockRef, Socket, Type};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use support::{child, is_child, watchdog};

type StdTcp = std::net::TcpStream;
type StdUnix = std::os::unix::net::UnixStream;

/// Enough to leave the buffer, to fill every kernel buffer on the way, and to take a pipe many times.
const BIG: usize = 24 << 20;

/// How many pipes of copies there are: they hold 1 MiB, and no pipe of a test does.
fn pipes() -> usize {
    let is_large = |fd: i32| {
        // SAFETY: takes no pointers.
        (unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) }) == 1 << 20
    };
    let ends = std::fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        is_large(name.to_str().unwrap().parse().unwrap())
    });
    let ends = ends.count();
    assert_eq!(ends % 2, 0);
    ends / 2
}

/// Writes so much of a pattern, from a thread.
fn feed(mut to: impl Write + Send + 'static, len: usize, chunk: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut pattern = Pattern::new(7);
        while pattern.taken() < len {
            let n = pattern.peek(chunk.min(len - pattern.taken())).len();
            to.write_all(pattern.peek(n)).unwrap();
            pattern.take(n);
        }
    })
}

/// Reads the pattern from `at` on, to the end, and says how much came.
fn drain(mut from: impl Read + Send + 'static, at: usize) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut pattern = Pattern::new(7);
        pattern.take(at);
        let mut buf = vec![0; 100_000];
        loop {
            match from.read(&mut buf).unwrap() {
                0 => return pattern.taken() - at,
                n => pattern.check(&buf[..n]),
            }
        }
    })
}

/// Each makes a gopark's end and a std's end.
async fn tcp() -> (TcpStream, StdTcp) {
    std_pair().await
}

async fn unix() -> (UnixStream, StdUnix) {
    let (ours, theirs) = StdUnix::pair().unwrap();
    (UnixStream::from_std(ours).unwrap(), theirs)
}

/// Where to read and where to write.
fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: there is room for both descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: they are new, and nobody else's.
    Ok(fds.map(|fd| unsafe { File::from_raw_fd(fd) }).into())
}

async fn pipe_from() -> (PollFd<File>, File) {
    let (reader, writer) = pipe().unwrap();
    (PollFd::new(reader).unwrap(), writer)
}

async fn pipe_to() -> (PollFd<File>, File) {
    let (reader, writer) = pipe().unwrap();
    (PollFd::new(writer).unwrap(), reader)
}

/// `len` bytes go through a copy, written `chunk` at a time; then the writer is dropped, and so ends.
async fn through<R: CopyFrom, W: CopyTo>(
    (reader, source): (R, impl Write + Send + 'static),
    (writer, sink): (W, impl Read + Send + 'static),
    len: usize,
    chunk: usize,
) {
    let (feed, drain) = (feed(source, len, chunk), drain(sink, 0));
    assert_eq!(copy(&reader, &writer).await.unwrap(), len as u64);
    drop(writer);
    feed.join().unwrap();
    assert_eq!(drain.join().unwrap(), len);
}

async fn everywhere(len: usize, chunk: usize) {
    through(tcp().await, tcp().await, len, chunk).await;
    through(tcp().await, unix().await, len, chunk).await;
    through(tcp().await, pipe_to().await, len, chunk).await;
    through(unix().await, tcp().await, len, chunk).await;
    through(unix().await, unix().await, len, chunk).await;
    through(unix().await, pipe_to().await, len, chunk).await;
    through(pipe_from().await, tcp().await, len, chunk).await;
    through(pipe_from().await, unix().await, len, chunk).await;
    through(pipe_from().await, pipe_to().await, len, chunk).await;
}

/// A file with the pattern in it, gone from the disk already.
fn file(len: usize) -> File {
    let path = std::env::temp_dir().join(format!("gopark-copy-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&Pattern::new(7).bytes(len)).unwrap();
    file.rewind().unwrap();
    file
}

/// Polls a copy that cannot end until it is `so` and stays so, though everything that was under way has arrived.
async fn until<F: Future<Output: std::fmt::Debug> + Unpin>(copy: &mut F, so: impl Fn(&F) -> bool) {
    let pulse = Pulse::new().await;
    let mut beats = 0;
    while beats < 20 {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *copy).poll(cx))).await;
        assert!(polled.is_pending(), "{polled:?}");
        pulse.beat().await;
        beats = if so(copy) { beats + 1 } else { 0 };
    }
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn futures_are_send_sync_and_unpin() {
    fn all<T: Send + Sync + Unpin>() {}
    all::<Copy<'static>>();
    all::<CopyBidirectional<'static>>();
}

#[test]
fn splice_small() {
    let _alone = alone(60);
    runtime(2).run(everywhere(1234, 5));
}

#[test]
fn splice_big() {
    let _alone = alone(60);
    runtime(2).run(everywhere(BIG, 200_000));
    assert_eq!(pipes(), 0, "the last copy leaves no pipe behind");
}

/// Both sides block, now one and now the other, at sizes around what a copy takes for much.
#[test]
fn splice_odd_sizes() {
    let _alone = alone(60);
    runtime(2).run(async {
        for chunk in [16_383, 16_385, 65_537, 1_000_003] {
            everywhere(3_000_017, chunk).await;
        }
    });
}

#[test]
fn splice_honours_limit() {
    let _alone = alone(60);
    runtime(2).run(async {
        // Exactly so many are taken, and the next copy finds the rest.
        let (reader, source) = tcp().await;
        let (writer, sink) = tcp().await;
        let limits = [0, 1, 1000, 65_536, 5_000_001, 1 << 20, 3];
        let rest = 2_000_000;
        let all = limits.iter().sum::<u64>() as usize + rest;
        let (feed, drain) = (feed(source, all, 65_536), drain(sink, 0));
        for limit in limits {
            let mut copy = copy(&reader, &writer).limit(limit);
            assert_eq!((&mut copy).await.unwrap(), limit);
            assert_eq!((copy.copied(), copy.in_flight()), (limit, 0));
        }
        assert_eq!(copy(&reader, &writer).limit(u64::MAX).await.unwrap(), rest as u64);
        drop(writer);
        feed.join().unwrap();
        assert_eq!(drain.join().unwrap(), all);
    });
}

#[test]
fn splice_reader_at_eof() {
    let _alone = alone(60);
    runtime(2).run(async {
        let (reader, source) = tcp().await;
        let (writer, mut sink) = tcp().await;
        drop(source);
        let mut copying = copy(&reader, &writer);
        for _ in 0..2 {
            assert_eq!((&mut copying).await.unwrap(), 0);
        }
        // The writer is as it was.
        writer.write_all(b"still open").await.unwrap();
        drop(copying);
        drop(writer);
        let mut rest = String::new();
        sink.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "still open");
    });
}

/// Go's issue 25985: a proxy whose copies in both directions wait while either end goes away.
#[test]
fn splice_issue_25985() {
    let _alone = alone(60);
    runtime(2).run(async {
        for client_first in [true, false] {
            let (front, mut client) = tcp().await;
            let (back, mut server) = tcp().await;
            let proxy = gopark::spawn(async move { copy_bidirectional(&front, &back).await });
            let mut byte = [0];
            client.write_all(b"x").unwrap();
            server.read_exact(&mut byte).unwrap();
            server.write_all(b"y").unwrap();
            client.read_exact(&mut byte).unwrap();
            let (first, second) = if client_first { (&client, &server) } else { (&server, &client) };
            // A half-close travels through, and the other direction lives on.
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&*second).read(&mut byte).unwrap(), 0);
            (&*second).write_all(b"z").unwrap();
            (&*first).read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"z");
            second.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&*first).read(&mut byte).unwrap(), 0);
            let copied = proxy.await.unwrap().unwrap();
            assert_eq!(copied, if client_first { (1, 2) } else { (2, 1) });
        }
    });
}

/// Messages stay messages: sockets that have such are not spliced.
#[test]
fn splice_no_unixpacket() {
    let _alone = alone(60);
    runtime(2).run(async {
        let seqpacket = || {
            let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
            (PollFd::new(OwnedFd::from(ours)).unwrap(), theirs)
        };
        let ((reader, source), (writer, sink)) = (seqpacket(), seqpacket());
        let task = gopark::spawn(async move { copy(&reader, &writer).await });
        let peer = thread::spawn(move || {
            let data = Pattern::new(7).bytes(60_000);
            let mut buf = vec![0; 70_000];
            for len in [60_000; 20].into_iter().chain([1, 17, 50_000]) {
                // Two at once, which a stream would join.
                for _ in 0..2 {
                    assert_eq!(source.send(&data[..len]).unwrap(), len);
                }
                for _ in 0..2 {
                    assert_eq!((&sink).read(&mut buf).unwrap(), len);
                    assert!(buf[..len] == data[..len]);
                    assert_eq!(pipes(), 0);
                }
            }
        });
        assert_eq!(task.await.unwrap().unwrap(), 2 * (20 * 60_000 + 50_018));
        peer.join().unwrap();
    });
}

/// Of a socket that does not stream, and one end that is no socket at all.
#[test]
fn what_splice_refuses_is_copied() {
    let _alone = alone(60);
    runtime(2).run(async {
        // sendfile(2) wants a file that can be sought.
        let (reader, source) = pipe().unwrap();
        let (writer, sink) = tcp().await;
        let (feed, drain) = (feed(source, 3 << 20, 65_536), drain(sink, 0));
        assert_eq!(copy(&reader, &writer).await.unwrap(), 3 << 20);
        drop(writer);
        feed.join().unwrap();
        assert_eq!(drain.join().unwrap(), 3 << 20);
        // A file of the kernel's making, which has no length.
        let (writer, mut sink) = tcp().await;
        let copied = copy(&File::open("/proc/filesystems").unwrap(), &writer).await.unwrap();
        drop(writer);
        let mut got = Vec::new();
        sink.read_to_end(&mut got).unwrap();
        assert!(got == std::fs::read("/proc/filesystems").unwrap() && copied == got.len() as u64);
    });
}

/// The process's own memory is a file that can be read at offsets, and that sendfile(2) does not know.
#[test]
fn what_sendfile_refuses_is_copied() {
    let _alone = alone(60);
    runtime(2).run(async {
        let data = Pattern::new(7).bytes(300_000);
        let at = data.as_ptr() as u64;
        let mut memory = File::open("/proc/self/mem").unwrap();
        let (writer, sink) = tcp().await;
        let drain = drain(sink, 0);
        assert_eq!(copy(&memory, &writer).offset(at).limit(200_000).await.unwrap(), 200_000);
        memory.seek(SeekFrom::Start(at + 200_000)).unwrap();
        assert_eq!(copy(&memory, &writer).limit(100_000).await.unwrap(), 100_000);
        assert_eq!(memory.stream_position().unwrap(), at + 300_000);
        drop(writer);
        assert_eq!(drain.join().unwrap(), 300_000);
    });
}

#[test]
fn sendfile() {
    let _alone = alone(60);
    runtime(2).run(async {
        let file = file(BIG);
        let (to_tcp, tcp_sink) = tcp().await;
        let (to_unix, unix_sink) = unix().await;
        let (to_pipe, pipe_sink) = pipe_to().await;
        let drains = [drain(tcp_sink, 0), drain(unix_sink, 0), drain(pipe_sink, 0)];
        assert_eq!(copy(&file, &to_tcp).await.unwrap(), BIG as u64);
        // The position has moved on, and `offset` does not mind.
        assert_eq!(copy(&file, &to_unix).await.unwrap(), 0);
        assert_eq!(copy(&file, &to_unix).offset(0).await.unwrap(), BIG as u64);
        assert_eq!(copy(&file, &to_pipe).offset(0).await.unwrap(), BIG as u64);
        drop((to_tcp, to_unix, to_pipe));
        assert!(drains.into_iter().all(|drain| drain.join().unwrap() == BIG));
    });
}

#[test]
fn sendfile_parts() {
    let _alone = alone(60);
    runtime(2).run(async {
        let (mut file, len) = (file(1 << 20), 1u64 << 20);
        let (writer, sink) = tcp().await;
        let drain = drain(sink, 0);
        // By position.
        for _ in 0..3 {
            assert_eq!(copy(&file, &writer).limit(3).await.unwrap(), 3);
        }
        assert_eq!(file.stream_position().unwrap(), 9);
        // By offset, which leaves the position alone.
        assert_eq!(copy(&file, &writer).offset(9).limit(100_000).await.unwrap(), 100_000);
        assert_eq!(file.stream_position().unwrap(), 9);
        // To the end, and past it.
        assert_eq!(copy(&file, &writer).offset(100_009).limit(u64::MAX).await.unwrap(), len - 100_009);
        for offset in [len, len + 1, 1 << 40] {
            assert_eq!(copy(&file, &writer).offset(offset).await.unwrap(), 0);
        }
        drop(writer);
        assert_eq!(drain.join().unwrap(), 1 << 20);
    });
}

#[test]
fn sendfile_seeked() {
    let _alone = alone(60);
    runtime(2).run(async {
        let mut file = file(100_000);
        let (writer, sink) = tcp().await;
        let drain = drain(sink, 70_000);
        file.seek(SeekFrom::Start(70_000)).unwrap();
        assert_eq!(copy(&file, &writer).await.unwrap(), 30_000);
        assert_eq!(file.stream_position().unwrap(), 100_000);
        drop(writer);
        assert_eq!(drain.join().unwrap(), 30_000);
    });
}

#[test]
fn sendfile_pipe() {
    let _alone = alone(60);
    runtime(2).run(async {
        // A pipe is no file: what comes later is waited for.
        let (reader, mut source) = pipe_from().await;
        let (writer, mut sink) = tcp().await;
        let task = gopark::spawn(async move { copy(&reader, &writer).limit(2).await });
        for byte in [b"a", b"b"] {
            let mut got = [0];
            source.write_all(byte).unwrap();
            sink.read_exact(&mut got).unwrap();
            assert_eq!(&got, byte);
        }
        assert_eq!(task.await.unwrap().unwrap(), 2);
    });
}

#[test]
#[should_panic(expected = "`Copy::offset` is for files")]
fn offset_of_a_stream() {
    runtime(1).run(async {
        let (stream, _peer) = tcp().await;
        drop(copy(&stream, &stream).offset(1));
    });
}

#[test]
fn sendfile_on_write_timeout_exceeded() {
    let _alone = alone(60);
    runtime(2).run(async {
        let file = file(BIG);
        let (writer, sink) = tcp().await;
        let mut copy = copy(&file, &writer).offset(0);
        writer.set_write_deadline(Some(Instant::now())).unwrap();
        assert_eq!(kind((&mut copy).await), ErrorKind::TimedOut);
        assert_eq!((copy.copied(), copy.in_flight()), (0, 0));
        writer.set_write_deadline(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        // Nobody reads, and it is more than fits.
        assert_eq!(kind((&mut copy).await), ErrorKind::TimedOut);
        let before = copy.copied();
        assert!(0 < before && before < BIG as u64 && copy.in_flight() == 0);
        let drain = drain(sink, 0);
        writer.set_write_deadline(None).unwrap();
        assert_eq!(copy.await.unwrap(), BIG as u64);
        drop(writer);
        assert_eq!(drain.join().unwrap(), BIG);
    });
}

/// What a copy says after it was stopped in the middle is what the peers see, whatever way the bytes went.
#[test]
fn cancel_in_the_middle_is_byte_exact() {
    async fn cancel<R: CopyFrom, W: CopyTo>(
        (reader, source): (R, impl Write + Send + 'static),
        (writer, sink): (W, impl Read + Send + 'static),
        chunk: usize,
        rest: impl AsyncFnOnce(R) -> Vec<u8>,
    ) {
        let feed = feed(source, BIG, chunk);
        let (copied, lost) = {
            let mut copy = copy(&reader, &writer);
            until(&mut copy, |copy| copy.in_flight() > 0).await;
            (copy.copied() as usize, copy.in_flight() as usize)
        };
        // It waits for the writer, so something is in flight.
        assert!(copied > 0 && lost > 0 && copied + lost < BIG);
        drop(writer);
        assert_eq!(drain(sink, 0).join().unwrap(), copied);
        let mut pattern = Pattern::new(7);
        pattern.take(copied + lost);
        pattern.check(&rest(reader).await);
        assert_eq!(pattern.taken(), BIG);
        feed.join().unwrap();
    }
    let _alone = alone(60);
    runtime(2).run(async {
        for chunk in [1000, 1_000_000] {
            let rest = async |reader: TcpStream| {
                let mut all = Vec::new();
                let mut buf = vec![0; 1 << 20];
                while let n @ 1.. = reader.read(&mut buf).await.unwrap() {
                    all.extend_from_slice(&buf[..n]);
                }
                all
            };
            cancel(tcp().await, tcp().await, chunk, rest).await;
            cancel(tcp().await, pipe_to().await, chunk, rest).await;
            let rest = async |reader: PollFd<File>| {
                let mut all = Vec::new();
                let mut reader = reader.into_inner();
                SockRef::from(&reader).set_nonblocking(false).unwrap();
                reader.read_to_end(&mut all).unwrap();
                all
            };
            cancel(pipe_from().await, unix().await, chunk, rest).await;
        }
    });
    assert_eq!(pipes(), 0);
}

/// A deadline stops the copy; set anew, the same future goes on, and nothing is lost.
#[test]
fn deadline_in_the_middle_and_on() {
    let _alone = alone(60);
    runtime(2).run(async {
        for chunk in [1000, 1_000_000] {
            let (reader, source) = tcp().await;
            let (writer, sink) = tcp().await;
            let feed = feed(source.try_clone().unwrap(), BIG, chunk);
            let mut copy = copy(&reader, &writer);
            until(&mut copy, |copy| copy.in_flight() > 0).await;
            let before = (copy.copied(), copy.in_flight());
            writer.set_write_deadline(Some(Instant::now())).unwrap();
            for _ in 0..2 {
                // The writer's error, as something is in flight.
                assert_eq!(kind((&mut copy).await), ErrorKind::TimedOut);
                assert_eq!((copy.copied(), copy.in_flight()), before);
                assert!(copy.in_flight() > 0);
            }
            let drain = drain(sink, 0);
            writer.set_write_deadline(None).unwrap();
            // The reader's, as nothing is.
            reader.set_read_deadline(Some(Instant::now())).unwrap();
            assert_eq!(kind((&mut copy).await), ErrorKind::TimedOut);
            assert_eq!((copy.copied(), copy.in_flight()), (before.0 + before.1, 0));
            reader.set_read_deadline(None).unwrap();
            drop(source);
            assert_eq!((&mut copy).await.unwrap(), BIG as u64);
            feed.join().unwrap();
            drop(copy);
            drop(writer);
            assert_eq!(drain.join().unwrap(), BIG);
        }
    });
}

#[test]
fn close_of_either_end_wakes_the_copy() {
    let _alone = alone(60);
    runtime(2).run(async {
        // Bulk waits for the writer alone; messages wait for both, in one direction each.
        for (bulk, closes) in [(false, &[false, true][..]), (true, &[false])] {
            for &close_reader in closes {
                let (reader, source) = tcp().await;
                let (writer, sink) = tcp().await;
                let feed = bulk.then(|| {
                    thread::spawn({
                        let mut source = source.try_clone().unwrap();
                        move || while source.write_all(&[0; 100_000]).is_ok() {}
                    })
                });
                let mut copy = copy_bidirectional(&reader, &writer);
                until(&mut copy, |copy| bulk == (copy.in_flight().0 > 0)).await;
                if close_reader {
                    reader.close()
                } else {
                    writer.close()
                }
                let error = copy.await.unwrap_err();
                assert!(error.get_ref().is_some_and(|e| e.is::<Closed>()), "{error}");
                drop((reader, writer, sink, source));
                feed.into_iter().for_each(|feed| feed.join().unwrap());
            }
        }
    });
}

/// Half-closes travel through, in both directions, and the bulk before them.
#[test]
fn bidirectional_bulk_with_half_closes() {
    let _alone = alone(60);
    runtime(2).run(async {
        let (front, client) = tcp().await;
        let (back, server) = unix().await;
        let proxy = gopark::spawn(async move {
            let mut copy = copy_bidirectional(&front, &back);
            let result = (&mut copy).await.unwrap();
            assert_eq!((copy.copied(), copy.in_flight()), (result, (0, 0)));
            result
        });
        let up = feed(client.try_clone().unwrap(), BIG, 300_000);
        let received = drain(server.try_clone().unwrap(), 0);
        up.join().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(received.join().unwrap(), BIG);
        let down = feed(server.try_clone().unwrap(), BIG + 5, 300_000);
        let received = drain(client.try_clone().unwrap(), 0);
        down.join().unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(received.join().unwrap(), BIG + 5);
        assert_eq!(proxy.await.unwrap(), (BIG as u64, BIG as u64 + 5));
    });
    assert_eq!(pipes(), 0);
}

/// A Unix socket makes no edge of a shutdown for a write that waits for room: whoever waits there is told.
#[test]
fn half_close_and_a_write_that_waits() {
    let _alone = alone(20);
    runtime(1).run(async {
        let ((front, client), (back, _server)) = (unix().await, unix().await);
        while back.try_write(&[0; 65536]).is_ok() {}
        let mut write = Box::pin(back.write_all(b"x"));
        assert!(is_pending(&mut write).await);
        drop(client);
        let mut copy = Box::pin(copy_bidirectional(&front, &back));
        assert!(is_pending(&mut copy).await);
        assert_eq!(kind(write.await), ErrorKind::BrokenPipe);
    });
}

/// A direction that never waits leaves the other its turns.
#[test]
fn endless_one_way_and_a_word_the_other() {
    let _alone = alone(60);
    runtime(1).run(async {
        let pair = || Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        for swap in [false, true] {
            let ((front, client), (back, server)) = (pair(), pair());
            let (front, back) = (PollFd::new(OwnedFd::from(front)).unwrap(), PollFd::new(OwnedFd::from(back)).unwrap());
            // Each message is a read of its own. They are all there, and there is room for them.
            (0..200).for_each(|_| assert_eq!(client.send(b".").unwrap(), 1));
            server.send(b"a word").unwrap();
            let mut copy = if swap { copy_bidirectional(&back, &front) } else { copy_bidirectional(&front, &back) };
            for _ in 0..2 {
                // Each poll has a budget of its own.
                gopark::yield_now().await;
                assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut copy).poll(cx))).await.is_pending());
            }
            let (forth, back) = copy.copied();
            let (dots, word) = if swap { (back, forth) } else { (forth, back) };
            assert!(word == 6 && (1..200).contains(&dots), "{dots} and {word} bytes");
        }
    });
}

/// Short messages take no pipe; bulk does, until it is short again.
#[test]
fn bulk_takes_a_pipe_and_messages_take_none() {
    let _alone = alone(60);
    runtime(2).run(async {
        let (reader, mut source) = tcp().await;
        let (writer, mut sink) = tcp().await;
        let task = gopark::spawn(async move { copy(&reader, &writer).await });
        let mut pass = |len: usize| {
            let data = Pattern::new(7).bytes(len);
            let mut got = vec![0; len];
            let mut source = source.try_clone().unwrap();
            let sent = data.clone();
            let feed = thread::spawn(move || source.write_all(&sent).unwrap());
            sink.read_exact(&mut got).unwrap();
            assert!(got == data);
            feed.join().unwrap();
        };
        for _ in 0..2 {
            (0..100).for_each(|_| pass(64));
            assert_eq!(pipes(), 0);
            // The kernel decides how much comes at once.
            while pipes() == 0 {
                pass(4 << 20);
            }
            assert!(pipes() <= 1);
        }
        source.write_all(b"the end").unwrap();
        drop(source);
        task.await.unwrap().unwrap();
        assert_eq!(pipes(), 0);
    });
}

/// So many copies, all stuck in the middle of bulk.
async fn stuck(n: usize) -> Vec<(UnixStream, UnixStream, StdUnix, StdUnix)> {
    let mut all = Vec::new();
    for _ in 0..n {
        let ((reader, source), (writer, sink)) = (unix().await, unix().await);
        all.push((reader, writer, source, sink));
    }
    all
}

/// However many copies wait for their writers: there are 64 pipes at most, and the others go on without.
#[test]
fn more_stuck_copies_than_pipes() {
    const MANY: usize = 80;
    const LEN: usize = 2 << 20;
    let _alone = alone(60);
    runtime(2).run(async {
        let ends = stuck(MANY).await;
        let mut feeds = Vec::new();
        let mut copies = Vec::new();
        for (reader, writer, source, _) in &ends {
            let source = source.try_clone().unwrap();
            feeds.push(feed(source, LEN, LEN));
            copies.push(copy(reader, writer));
        }
        let mut all = futures::future::join_all(copies);
        let pulse = Pulse::new().await;
        let mut most = 0;
        for _ in 0..200 {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut all).poll(cx))).await.is_pending());
            pulse.beat().await;
            most = most.max(pipes());
        }
        assert!((1..=64).contains(&most), "{most} pipes");
        let drains: Vec<_> = ends.iter().map(|end| drain(end.3.try_clone().unwrap(), 0)).collect();
        let shut = async {
            for feed in feeds {
                gopark::spawn_blocking(|| feed.join().unwrap()).await.unwrap();
            }
            // All arrives, and few pipes wait for more.
            while pipes() > 16 {
                gopark::yield_now().await;
            }
            ends.iter().for_each(|end| end.2.shutdown(Shutdown::Write).unwrap());
        };
        for result in futures::join!(all, shut).0 {
            assert_eq!(result.unwrap(), LEN as u64);
        }
        drop(ends);
        assert!(drains.into_iter().all(|drain| drain.join().unwrap() == LEN));
    });
    assert_eq!(pipes(), 0);
}

/// A pipe that has bytes in it is closed, and never the next copy's.
#[test]
fn cancelled_copy_and_next_one() {
    let _alone = alone(60);
    runtime(2).run(async {
        // It keeps the pool in use.
        let (reader, mut source) = unix().await;
        let (writer, mut sink) = unix().await;
        let keeper = gopark::spawn(async move { copy(&reader, &writer).await });
        while pipes() == 0 {
            let feed = feed(source.try_clone().unwrap(), 4 << 20, 1 << 20);
            sink.read_exact(&mut vec![0; 4 << 20]).unwrap();
            feed.join().unwrap();
        }
        for _ in 0..10 {
            let (reader, mut source) = unix().await;
            let (writer, sink) = unix().await;
            let poison = thread::spawn(move || while source.write_all(&[0xEE; 100_000]).is_ok() {});
            let mut stuck = copy(&reader, &writer);
            until(&mut stuck, |copy| copy.in_flight() > 0).await;
            assert!(pipes() > 0);
            drop(stuck);
            drop((reader, writer, sink));
            poison.join().unwrap();
            through(unix().await, unix().await, 2 << 20, 1 << 20).await;
        }
        source.write_all(b"the end").unwrap();
        drop(source);
        keeper.await.unwrap().unwrap();
    });
    assert_eq!(pipes(), 0);
}

/// However many copies are idle after bulk, they hold no pipe each.
#[test]
fn idle_after_bulk() {
    const MANY: usize = 30;
    let _alone = alone(60);
    runtime(2).run(async {
        let mut idle = Vec::new();
        for _ in 0..MANY {
            let ((reader, source), (writer, mut sink)) = (tcp().await, tcp().await);
            let task = gopark::spawn(async move { copy(&reader, &writer).await });
            let before = pipes();
            for _ in 0..20 {
                let feed = feed(source.try_clone().unwrap(), 1 << 20, 1 << 20);
                sink.read_exact(&mut vec![0; 1 << 20]).unwrap();
                feed.join().unwrap();
            }
            assert!(pipes() <= before + 2, "{} pipes after {before}", pipes());
            idle.push((source, sink, task));
        }
        // Copies that ran one after the other had the same one.
        assert!(pipes() <= 4, "{} pipes", pipes());
        for (source, _sink, task) in idle {
            drop(source);
            assert_eq!(task.await.unwrap().unwrap(), 20 << 20);
        }
    });
    assert_eq!(pipes(), 0);
}

/// Trap P25: urgent data, at whose mark splice(2) stops for good.
#[test]
fn urgent_data_in_the_middle() {
    let _alone = alone(60);
    runtime(2).run(async {
        for (before, after) in [(0, 100), (100, 100), (8 << 20, 8 << 20), (8 << 20, 100), (8 << 20, 0)] {
            let (reader, mut source) = tcp().await;
            let (writer, sink) = tcp().await;
            let data = Pattern::new(7).bytes(before + after);
            let drain = drain(sink, 0);
            let feed = thread::spawn(move || {
                source.write_all(&data[..before]).unwrap();
                SockRef::from(&source).send_out_of_band(b"!").unwrap();
                source.write_all(&data[before..]).unwrap();
            });
            assert_eq!(copy(&reader, &writer).await.unwrap(), (before + after) as u64);
            drop(writer);
            feed.join().unwrap();
            assert_eq!(drain.join().unwrap(), before + after);
        }
    });
}

/// Trap P25: descriptors that are passed along cut a read short. They get lost, and no byte does.
#[test]
fn descriptors_passed_in_the_middle() {
    let _alone = alone(60);
    let open = open_fds();
    runtime(2).run(async {
        let (reader, source) = unix().await;
        let (writer, sink) = unix().await;
        let len = 4_000_000;
        let drain = drain(sink, 0);
        let feed = thread::spawn(move || {
            let mut pattern = Pattern::new(7);
            while pattern.taken() < len {
                let n = send_with_descriptor(&source, pattern.peek((len - pattern.taken()).min(50_000)));
                pattern.take(n);
            }
        });
        assert_eq!(copy(&reader, &writer).await.unwrap(), len as u64);
        drop(writer);
        feed.join().unwrap();
        assert_eq!(drain.join().unwrap(), len);
    });
    assert_eq!(open_fds(), open);
}

/// Sends bytes, and the socket's own descriptor with the first of them.
fn send_with_descriptor(socket: &StdUnix, bytes: &[u8]) -> usize {
    let mut control = [0u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes are a valid msghdr; what it points to outlives the call, and there is room for one descriptor.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&message);
        ((*head).cmsg_level, (*head).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<libc::c_int>().write_unaligned(socket.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &message, 0)
    };
    usize::try_from(sent).unwrap()
}

/// In a process of its own, since it changes what is the process's.
fn in_a_child(test: &str, body: impl FnOnce()) {
    if is_child(test) {
        let _dog = watchdog(60);
        return body();
    }
    // Its pipes are no leak of another test.
    let _turn = one_at_a_time();
    let output = child(test, &[]);
    assert!(output.status.success(), "{:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Trap P26: whoever has SIGPIPE end the program is not ended by a copy.
#[test]
fn no_sigpipe() {
    in_a_child("no_sigpipe", || {
        // SAFETY: the default action is a valid one.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        async fn to_nobody<R: CopyFrom, W: CopyTo>(
            (reader, source): (R, impl Write + Send + 'static),
            (writer, sink): (W, impl Read + Send),
            chunk: usize,
        ) {
            // Its own writes raise none: the reader lives as long as it.
            let feed = feed(source, 8 << 20, chunk);
            let mut copying = copy(&reader, &writer);
            until(&mut copying, |copy| copy.in_flight() > 0).await;
            drop(sink);
            let error = (&mut copying).await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
            // A second time, now that the socket knows: this is where a signal comes.
            assert_eq!(kind((&mut copying).await), ErrorKind::BrokenPipe);
            drop(copying);
            let (rest, mut taker) = unix().await;
            let taker = thread::spawn(move || io::copy(&mut taker, &mut io::sink()).unwrap());
            copy(&reader, &rest).await.unwrap();
            drop(rest);
            taker.join().unwrap();
            feed.join().unwrap();
        }
        runtime(2).run(async {
            for chunk in [1000, 1 << 20] {
                to_nobody(tcp().await, tcp().await, chunk).await;
                to_nobody(tcp().await, unix().await, chunk).await;
                to_nobody(pipe_from().await, pipe_to().await, chunk).await;
            }
            let file = file(BIG);
            for _ in 0..2 {
                let (writer, sink) = unix().await;
                drop(sink);
                assert_eq!(kind(copy(&file, &writer).await), ErrorKind::BrokenPipe);
                let (writer, sink) = pipe_to().await;
                drop(sink);
                assert_eq!(kind(copy(&file, &writer).await), ErrorKind::BrokenPipe);
            }
        });
        // It still ends the program where it should: in nobody's name but the program's.
        let mut pending = std::mem::MaybeUninit::uninit();
        // SAFETY: sigpending writes the set.
        let pending = unsafe {
            libc::sigpending(pending.as_mut_ptr());
            libc::sigismember(pending.as_ptr(), libc::SIGPIPE)
        };
        assert_eq!(pending, 0);
    });
}

/// The user's pipes hold enough already, so that there is none of 1 MiB: bulk goes through the buffer.
#[test]
fn refused_pipe_size() {
    in_a_child("refused_pipe_size", || {
        let large = || {
            let (reader, writer) = pipe().unwrap();
            // SAFETY: takes no pointers.
            let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) };
            (size > 0).then_some((reader, writer))
        };
        // Who is root is above that limit; and another process of this test is another user.
        let user = 1_000_000_000 + std::process::id();
        // SAFETY: takes no pointers.
        unsafe { libc::setresuid(user, user, user) };
        let all: Vec<_> = std::iter::from_fn(large).take(400).collect();
        assert!(all.len() < 400, "nothing limits this user's pipes");
        runtime(2).run(async move {
            let open = open_fds();
            everywhere(BIG, 1 << 20).await;
            assert_eq!(open_fds(), open);
            assert_eq!(gets_a_pipe(|| drop(all)).await, (false, true));
        });
    });
}

/// There are no descriptors for pipes, and then there are.
#[test]
fn no_descriptors_for_a_pipe() {
    in_a_child("no_descriptors_for_a_pipe", || {
        // To look at a stuck thread, sysmon needs a descriptor for a moment.
        gopark::Builder::new().workers(2).retake(false).build().unwrap().run(async {
            let limit = |soft: u64| {
                let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: both use the limit while they run.
                unsafe {
                    libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
                    limit.rlim_cur = soft.min(limit.rlim_max);
                    assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
                }
            };
            let (from, to) = (unix().await, unix().await);
            // One descriptor is free, a pipe has two.
            let mut taken: Vec<_> = Vec::new();
            limit(200);
            while let Ok(file) = File::open("/dev/null") {
                taken.push(file);
            }
            taken.pop();
            // Each failure is forgotten: there may be more of them than there may be pipes.
            through(from, to, 1 << 29, 1 << 20).await;
            // Its sockets take the place of those.
            assert_eq!(gets_a_pipe(|| taken.clear()).await, (false, true));
        });
        assert_eq!(pipes(), 0);
    });
}

/// Whether a copy of bulk, stuck again and again, comes to have a pipe of any size; and whether it does after `relief`.
async fn gets_a_pipe(relief: impl FnOnce()) -> (bool, bool) {
    let ((reader, mut source), (writer, sink)) = (unix().await, unix().await);
    let feed = thread::spawn(move || while source.write_all(&[0; 1 << 20]).is_ok() {});
    sink.set_nonblocking(true).unwrap();
    let mut stuck = copy(&reader, &writer);
    let mut has_one = async || {
        let (before, mut most, goal) = (open_fds(), 0, stuck.copied() + (64 << 20));
        while stuck.copied() < goal {
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut stuck).poll(cx))).await.is_pending());
            most = most.max(open_fds());
            let _ = (&sink).read(&mut [0; 1 << 16]);
            gopark::yield_now().await;
        }
        most > before
    };
    let before = has_one().await;
    relief();
    let after = has_one().await;
    drop(stuck);
    drop((reader, writer, sink));
    feed.join().unwrap();
    (before, after)
}

/// splice(2) writes to no descriptor that is to append, be it a socket.
#[test]
fn socket_that_appends() {
    let _alone = alone(60);
    runtime(1).run(async {
        let ((a, b), (c, d)) = (StdUnix::pair().unwrap(), StdUnix::pair().unwrap());
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::fcntl(c.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) }, 0);
        let (fed, drained) = (feed(a, BIG, 1 << 20), drain(d, 0));
        let (from, to) = (UnixStream::from_std(b).unwrap(), UnixStream::from_std(c).unwrap());
        assert_eq!(copy(&from, &to).await.unwrap(), BIG as u64);
        drop(to);
        fed.join().unwrap();
        assert_eq!(drained.join().unwrap(), BIG);
    });
}
