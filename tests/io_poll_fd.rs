//! `PollFd`: every kind of descriptor that epoll takes, each doing what it is for, and those that it refuses.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::io::PollFd;
use gopark::net::{Closed, RuntimeGone};
use net::{alone, is_pending, noop, poll, runtime};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The ends of a pipe: to read from, to write to. They block.
fn std_pipe() -> (File, File) {
    let mut fds = [-1; 2];
    // SAFETY: there is room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    (owned(fds[0]).into(), owned(fds[1]).into())
}

fn pipe() -> (PollFd<File>, PollFd<File>) {
    let (reader, writer) = std_pipe();
    (PollFd::new(reader).unwrap(), PollFd::new(writer).unwrap())
}

/// What a system call that makes a descriptor has returned.
#[track_caller]
fn owned(fd: RawFd) -> OwnedFd {
    assert_ne!(fd, -1, "{}", io::Error::last_os_error());
    // SAFETY: the call that the caller made has just made it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

async fn read(fd: &PollFd<File>) -> Vec<u8> {
    let mut buf = [0; 4096];
    let n = fd.read_with(|mut file| file.read(&mut buf)).await.unwrap();
    buf[..n].to_vec()
}

/// A descriptor as what can be read and written.
fn file(fd: RawFd) -> PollFd<File> {
    PollFd::new(File::from(owned(fd))).unwrap()
}

#[test]
fn pipe_write_and_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        let mut buf = [0; 8];
        let mut read = Box::pin(reader.read_with(|mut pipe| pipe.read(&mut buf)));
        assert!(is_pending(&mut read).await);
        assert_eq!(writer.write_with(|mut pipe| pipe.write(b"through")).await.unwrap(), 7);
        assert_eq!(read.await.unwrap(), 7);
        assert_eq!(&buf[..7], b"through");

        // The end of the stream, also for who waits for it already.
        let mut read = Box::pin(reader.read_with(|mut pipe| pipe.read(&mut buf)));
        assert!(is_pending(&mut read).await);
        drop(writer);
        assert_eq!(read.await.unwrap(), 0);
        reader.readable().await.unwrap();
    });
}

#[test]
fn pipe_is_full_until_read() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        writer.writable().await.unwrap();
        let mut filled = 0;
        while let Ok(n) = writer.try_write_with(|mut pipe| pipe.write(&[1; 4096])) {
            filled += n;
        }
        assert!(is_pending(&mut Box::pin(writer.writable())).await);
        let mut write = Box::pin(writer.write_with(|mut pipe| pipe.write(&[2; 4096])));
        assert!(is_pending(&mut write).await);
        let mut buf = vec![0; filled];
        reader.read_with(|mut pipe| pipe.read(&mut buf)).await.unwrap();
        assert_eq!(write.await.unwrap(), 4096);

        // Nobody reads any more: whoever waits is told.
        while writer.try_write_with(|mut pipe| pipe.write(&[1; 4096])).is_ok() {}
        let mut write = Box::pin(writer.write_with(|mut pipe| pipe.write(&[2; 4096])));
        assert!(is_pending(&mut write).await);
        drop(reader);
        assert_eq!(write.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// Each `read_with` that finds something leaves it to the next to find out whether there is more: no edge is needed.
#[test]
fn one_edge_and_many_reads() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        writer.write_with(|mut pipe| pipe.write(b"abc")).await.unwrap();
        let mut buf = [0; 1];
        for byte in b"abc" {
            reader.readable().await.unwrap();
            // Only observed: it stays so.
            reader.readable().await.unwrap();
            assert_eq!(reader.read_with(|mut pipe| pipe.read(&mut buf)).await.unwrap(), 1);
            assert_eq!(&buf, byte.to_le_bytes().as_ref());
        }
        assert_eq!(reader.try_read_with(|mut pipe| pipe.read(&mut buf)).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(is_pending(&mut Box::pin(reader.readable())).await);
        // It is not called where there is no hope.
        let mut called = false;
        let call = reader.try_read_with(|_| {
            called = true;
            Ok(())
        });
        assert_eq!(call.unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(!called);
    });
}

#[test]
fn closures_result_and_errors_come_through() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        writer.write_with(|mut pipe| pipe.write(b"x")).await.unwrap();
        assert_eq!(reader.read_with(|_| Ok("any type")).await.unwrap(), "any type");
        let error = reader.read_with(|_| Err::<(), _>(io::Error::other("the closure's own"))).await.unwrap_err();
        assert_eq!(error.to_string(), "the closure's own");
        // A signal's interruption reaches nobody (P20).
        let mut calls = 0;
        let interrupted = reader.read_with(|_| {
            calls += 1;
            if calls == 1 { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
        });
        interrupted.await.unwrap();
        assert_eq!(calls, 2);
    });
}

#[test]
fn two_wait_and_two_are_served() {
    let _alone = alone(20);
    runtime(2).run(async {
        let (reader, writer) = pipe();
        let reader = Arc::new(reader);
        let byte = || {
            let reader = reader.clone();
            async move { reader.read_with(|mut pipe| pipe.read(&mut [0; 1])).await.unwrap() }
        };
        let mut chosen = Box::pin(byte());
        assert!(is_pending(&mut chosen).await);
        let mut forgotten = Box::pin(byte());
        assert!(poll(&mut forgotten, &noop()).is_pending());
        let tasks = [gopark::spawn(byte()), gopark::spawn(byte())];
        writer.write_with(|mut pipe| pipe.write(b"ab")).await.unwrap();
        // P22: who was chosen goes away.
        drop(chosen);
        for task in tasks {
            assert_eq!(task.await.unwrap(), 1);
        }
    });
}

#[test]
fn eventfd_signal_and_wait() {
    let _alone = alone(20);
    runtime(1).run(async {
        // SAFETY: it takes no pointer. The descriptor blocks until it is given to `PollFd`.
        let event = file(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
        let mut wait = Box::pin(read(&event));
        assert!(is_pending(&mut wait).await);
        event.write_with(|mut file| file.write(&7_u64.to_ne_bytes())).await.unwrap();
        assert_eq!(wait.await, 7_u64.to_ne_bytes());
        assert!(is_pending(&mut Box::pin(read(&event))).await);
        // Both directions at once: it is full.
        event.write_with(|mut file| file.write(&(u64::MAX - 1).to_ne_bytes())).await.unwrap();
        let mut write = Box::pin(event.write_with(|mut file| file.write(&1_u64.to_ne_bytes())));
        assert!(is_pending(&mut write).await);
        read(&event).await;
        write.await.unwrap();
    });
}

#[test]
fn timerfd_expires() {
    let _alone = alone(20);
    runtime(1).run(async {
        // SAFETY: it takes no pointer.
        let timer = file(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) });
        let mut wait = Box::pin(read(&timer));
        assert!(is_pending(&mut wait).await);
        let begin = Instant::now();
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = libc::itimerspec { it_interval: zero, it_value: libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 } };
        // SAFETY: the kernel reads `spec` during the call only; no old value is asked for.
        let set = unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        assert_eq!(wait.await, 1_u64.to_ne_bytes());
        assert!(begin.elapsed() >= Duration::from_millis(2));
    });
}

#[test]
fn pidfd_process_ends() {
    let _alone = alone(20);
    runtime(1).run(async {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        // SAFETY: it takes no pointer.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
        let process = PollFd::new(owned(fd as RawFd)).unwrap();
        let mut ended = Box::pin(process.readable());
        assert!(is_pending(&mut ended).await);
        drop(child.stdin.take());
        ended.await.unwrap();
        assert!(child.try_wait().unwrap().unwrap().success());
    });
}

#[test]
fn inotify_file_is_made() {
    let _alone = alone(20);
    let dir = std::env::temp_dir().join(format!("gopark-inotify-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let watched = dir.clone();
    runtime(1).run(async move {
        // SAFETY: it takes no pointer.
        let inotify = file(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) });
        let path = std::ffi::CString::new(watched.to_str().unwrap()).unwrap();
        // SAFETY: the path is a string that outlives the call.
        let watch = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), libc::IN_CREATE) };
        assert_ne!(watch, -1);
        let mut wait = Box::pin(read(&inotify));
        assert!(is_pending(&mut wait).await);
        File::create(watched.join("made")).unwrap();
        let event = wait.await;
        assert!(event.windows(4).any(|w| w == b"made"), "{event:?}");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn terminal_both_ends() {
    let _alone = alone(20);
    runtime(1).run(async {
        // SAFETY: they take no pointer but ptsname_r's, to a buffer that is as long as is said.
        let (master, name) = unsafe {
            let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            assert_eq!((libc::grantpt(master), libc::unlockpt(master)), (0, 0));
            let mut name = vec![0_u8; 128];
            assert_eq!(libc::ptsname_r(master, name.as_mut_ptr().cast(), name.len()), 0);
            (file(master), std::ffi::CStr::from_bytes_until_nul(&name).unwrap().to_owned())
        };
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOCTTY);
        let terminal = options.read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let terminal = PollFd::new(terminal).unwrap();
        let mut line = Box::pin(read(&terminal));
        assert!(is_pending(&mut line).await);
        master.write_with(|mut file| file.write(b"typed\n")).await.unwrap();
        assert_eq!(line.await, b"typed\n");
        // The master hears the echo, then what is printed.
        let mut heard = Vec::new();
        terminal.write_with(|mut file| file.write(b"printed")).await.unwrap();
        while !heard.ends_with(b"printed") {
            heard.append(&mut read(&master).await);
        }
        assert!(heard.starts_with(b"typed"));
    });
}

#[test]
fn what_epoll_refuses_is_told_clearly() {
    let _alone = alone(20);
    runtime(1).run(async {
        for path in ["Cargo.toml", "tests", "/dev/null"] {
            let file = File::open(path).unwrap();
            let error = PollFd::new(&file).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{path}: {error}");
            assert!(error.to_string().contains("regular file"), "{error}");
            // Nothing has been done to it.
            assert!(!is_nonblocking(file.as_fd()));
        }
        let (reader, _writer) = std_pipe();
        let once = PollFd::new(reader.as_fd()).unwrap();
        assert_eq!(PollFd::new(reader.as_fd()).unwrap_err().kind(), ErrorKind::AlreadyExists);
        // The failure has taken nothing away from the first, and afterwards there is room.
        assert!(is_pending(&mut Box::pin(once.readable())).await);
        drop(once);
        PollFd::new(reader.as_fd()).unwrap();
    });
}

fn is_nonblocking(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: it takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags & libc::O_NONBLOCK != 0
}

#[test]
fn into_inner_and_get_ref() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = std_pipe();
        let fd = reader.as_raw_fd();
        assert!(!is_nonblocking(reader.as_fd()));
        let reader = PollFd::new(reader).unwrap();
        assert_eq!((reader.get_ref().as_raw_fd(), reader.as_raw_fd(), reader.as_fd().as_raw_fd()), (fd, fd, fd));
        assert!(is_pending(&mut Box::pin(reader.readable())).await);
        let mut reader = reader.into_inner();
        assert!(is_nonblocking(reader.as_fd()));
        assert_eq!(reader.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
        (&writer).write_all(b"x").unwrap();
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 1);
        let reader = PollFd::new(reader).unwrap();
        assert!(is_pending(&mut Box::pin(reader.readable())).await);
    });
}

#[test]
fn close_and_deadlines_wake_whoever_waits() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        while writer.try_write_with(|mut pipe| pipe.write(&[1; 4096])).is_ok() {}
        // A pipe's end cannot read and write, but it can be waited for in both directions.
        let (mut read, mut write) =
            (Box::pin(writer.readable()), Box::pin(writer.write_with(|mut pipe| pipe.write(b"x"))));
        assert!(is_pending(&mut read).await && is_pending(&mut write).await);
        writer.set_write_deadline(Some(Instant::now() + Duration::from_millis(1))).unwrap();
        assert_eq!(write.await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(is_pending(&mut read).await);
        writer.set_read_deadline(Some(Instant::now())).unwrap();
        assert_eq!(read.await.unwrap_err().kind(), ErrorKind::TimedOut);
        writer.set_deadline(None).unwrap();
        let (mut read, mut write) = (Box::pin(writer.readable()), Box::pin(writer.writable()));
        assert!(is_pending(&mut read).await && is_pending(&mut write).await);
        writer.close();
        writer.close();
        for error in [
            read.await.unwrap_err(),
            write.await.unwrap_err(),
            writer.try_write_with(|_| Ok(())).unwrap_err(),
            writer.set_deadline(None).unwrap_err(),
        ] {
            assert!(error.get_ref().unwrap().is::<Closed>(), "{error}");
        }
        // Closed here, but the descriptor lives as long as its owner: the reader sees no end yet.
        let mut buf = vec![0; 1 << 20];
        reader.read_with(|mut pipe| pipe.read(&mut buf)).await.unwrap();
        let mut end = Box::pin(reader.read_with(|mut pipe| pipe.read(&mut buf)));
        assert!(is_pending(&mut end).await);
        drop(writer);
        assert_eq!(end.await.unwrap(), 0);
    });
}

#[test]
fn after_the_runtime() {
    let _alone = alone(20);
    let runtime = runtime(1);
    let (reader, _writer) = runtime.block_on(async { pipe() });
    drop(runtime);
    let error = futures::executor::block_on(reader.readable()).unwrap_err();
    assert!(error.get_ref().unwrap().is::<RuntimeGone>());
    reader.into_inner();
}

/// What an operation that panics has not taken is there for the next one, at once or after a wait.
#[test]
fn panic_in_an_operation_and_the_next_one() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (reader, writer) = pipe();
        let reader = Arc::new(reader);
        let spawn = |panics: bool| {
            let reader = reader.clone();
            gopark::spawn(async move {
                reader.read_with(|mut pipe| if panics { panic!("meant to") } else { pipe.read(&mut [0; 8]) }).await
            })
        };
        writer.write_with(|mut pipe| pipe.write(b"left")).await.unwrap();
        // No further edge will come.
        reader.readable().await.unwrap();
        assert!(spawn(true).await.unwrap_err().is_panic());
        assert_eq!(spawn(false).await.unwrap().unwrap(), 4);

        // Both wait, the one that panics is first.
        let first = spawn(true);
        gopark::yield_now().await;
        let second = spawn(false);
        gopark::yield_now().await;
        writer.write_with(|mut pipe| pipe.write(b"left")).await.unwrap();
        assert!(first.await.unwrap_err().is_panic());
        assert_eq!(second.await.unwrap().unwrap(), 4);
    });
}
