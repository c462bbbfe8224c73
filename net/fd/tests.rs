use super::*;
use crate::net::socket;
use crate::runtime::runtime::Builder;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Waker;

/// What a `close` makes of a call that is under way is no end of the stream, nor an error of its own.
#[test]
fn close_during_a_call() {
    let runtime = Builder::new().workers(1).build().unwrap();
    let _inside = runtime.enter();
    let reset = || io::Error::from_raw_os_error(libc::ECONNRESET);
    let results: [fn() -> io::Result<usize>; 3] = [|| Ok(0), || Ok(1), || Err(io::ErrorKind::BrokenPipe.into())];
    for side in [Side::Read, Side::Write] {
        let ended = results.map(|result| {
            let (socket, _peer) = UnixStream::pair().unwrap();
            let fd = Fd::new(socket, Start::Try, None).unwrap();
            fd.try_io(side, 8, |_| {
                socket::close(&fd);
                result()
            })
            .map_err(|error| error.kind())
        });
        assert_eq!(ended, [Err(io::ErrorKind::NotConnected), Ok(1), Err(io::ErrorKind::NotConnected)]);
    }
    // What was there before it is told as it is.
    let (socket, _peer) = UnixStream::pair().unwrap();
    let fd = Fd::new(socket, Start::Try, None).unwrap();
    let refused = fd.try_io(Side::Read, 8, |_| Err::<usize, _>(reset()));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(fd.try_io(Side::Read, 8, |_| Ok(0)).unwrap(), 0);
}

/// Trap P14: as much as the kernel moves in one call does not show that there was no more.
#[test]
fn short_calls() {
    let asked = [1, 2, 4096, 0x7fff_f000, usize::MAX];
    let short = |bytes| asked.map(|asked| is_short(bytes, asked));
    assert_eq!(short(0), [false; 5]);
    assert_eq!(short(1), [false, true, true, true, true]);
    assert_eq!(short(4095), [false, false, true, true, true]);
    assert_eq!(short(0x7fff_0000), [false; 5]);
    assert_eq!(short(0x7fff_f000), [false; 5]);
}

/// An operation that has ended takes nothing more, and no other's place: who polls it again hears of it.
#[test]
fn polled_after_its_end() {
    let runtime = Builder::new().workers(1).build().unwrap();
    let _inside = runtime.enter();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let fd = Fd::new(socket, Start::Try, None).unwrap();
    fn polls(op: impl Future) -> [Option<bool>; 2] {
        let mut op = pin!(op);
        [(); 2].map(|()| {
            let poll = || op.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            catch_unwind(AssertUnwindSafe(poll)).ok()
        })
    }
    assert_eq!(polls(fd.io_op(Side::Read, 1, |_| Ok(1))), [Some(true), None]);
    assert_eq!(polls(fd.write_all(b"all")), [Some(true), None]);
    assert_eq!(polls(fd.write_all(b"")), [Some(true), None]);
    // Nor does one that has ended in a panic; and it has left its turn to the next.
    let mut calls = 0;
    let panics = |_: BorrowedFd<'_>| -> io::Result<usize> {
        calls += 1;
        panic!("in the call")
    };
    assert_eq!(polls(fd.io_op(Side::Read, 1, panics)), [None, None]);
    assert_eq!(calls, 1);
    assert_eq!(polls(fd.io_op(Side::Read, 1, |_| Ok(1))), [Some(true), None]);
}
