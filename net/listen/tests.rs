use super::*;
use crate::net::fd::Fd;
use crate::runtime::poll_gate::Start;
use crate::runtime::runtime::{Builder, Runtime};
use std::time::Instant;

fn listener() -> (Runtime, Fd<TcpListener>) {
    let runtime = Builder::new().workers(1).build().unwrap();
    let listener = ListenConfig::new().listener("127.0.0.1:0".parse().unwrap()).unwrap();
    let fd = runtime.block_on(async { Fd::new(listener, Start::Try, None) }).unwrap();
    (runtime, fd)
}

fn os_error(code: i32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(code))
}

fn is_would_block(result: io::Result<()>) -> bool {
    result.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn pauses_double_up_to_a_second() {
    let pauses: Vec<_> = std::iter::successors(Some(next_pause(0)), |last| Some(next_pause(*last))).take(10).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

#[test]
fn connections_that_died_in_the_queue_are_passed_over() {
    let (_runtime, fd) = listener();
    let backoff = Backoff::default();
    let mut codes = [libc::ECONNABORTED, libc::ECONNABORTED, 0].into_iter();
    backoff.accept(&fd, || codes.next().filter(|c| *c != 0).map_or(Ok(()), os_error)).unwrap();
    assert_eq!((codes.next(), backoff.pause.into_inner()), (None, 0));
}

/// Trap P16: however often it is asked, and whatever of the four is lacking.
#[test]
fn no_call_is_made_during_a_pause() {
    let (_runtime, fd) = listener();
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        let (backoff, mut calls) = (Backoff::default(), Vec::new());
        while calls.len() < 5 {
            assert!(is_would_block(backoff.accept(&fd, || {
                calls.push(Instant::now());
                os_error(code)
            })));
        }
        for (pause, calls) in [5, 10, 20, 40].into_iter().zip(calls.windows(2)) {
            assert!(calls[1] - calls[0] >= Duration::from_millis(pause), "{code}: {calls:?}");
        }
    }
}

#[test]
fn a_success_ends_the_doubling_and_other_results_do_not() {
    let (_runtime, fd) = listener();
    let backoff = Backoff::default();
    let pause_after = |result: fn() -> io::Result<()>| {
        let mut called = false;
        while !called {
            let _ = backoff.accept(&fd, || {
                called = true;
                result()
            });
        }
        backoff.pause.load(Ordering::Relaxed) & 0xffff
    };
    assert_eq!(pause_after(|| os_error(libc::EMFILE)), 5);
    assert_eq!(pause_after(|| os_error(libc::EAGAIN)), 5);
    assert_eq!(pause_after(|| os_error(libc::EMFILE)), 10);
    assert_eq!(pause_after(|| os_error(libc::EPERM)), 10);
    assert_eq!(pause_after(|| Ok(())), 0);
    assert_eq!(pause_after(|| os_error(libc::EMFILE)), 5);
}

/// Of two that fail at once, one begins the pause.
#[test]
fn two_failures_at_once_and_one_pause() {
    let (_runtime, fd) = listener();
    let backoff = Backoff::default();
    assert!(is_would_block(backoff.accept(&fd, || {
        assert!(is_would_block(backoff.accept(&fd, || os_error(libc::EMFILE))));
        os_error(libc::EMFILE)
    })));
    assert_eq!(backoff.pause.load(Ordering::Relaxed) & 0xffff, 5);
}
