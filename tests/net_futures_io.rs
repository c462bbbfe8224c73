//! The traits of futures-io, on whatever reaches a connection.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy};
use futures::{AsyncBufReadExt, StreamExt};
use net::*;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::pin::Pin;

const TOTAL: usize = 3 << 20;

/// Sends a pattern by the traits, then closes.
async fn send(mut to: impl AsyncWrite + Unpin) {
    let mut pattern = Pattern::new(11);
    while pattern.taken() < TOTAL {
        let n = to.write(pattern.peek((TOTAL - pattern.taken()).min(10_007))).await.unwrap();
        pattern.take(n);
    }
    to.flush().await.unwrap();
    to.close().await.unwrap();
    // Closing again does no harm.
    to.close().await.unwrap();
}

async fn receive(mut from: impl AsyncRead + Unpin) {
    let mut pattern = Pattern::new(11);
    let mut buf = vec![0; 7919];
    loop {
        match from.read(&mut buf).await.unwrap() {
            0 => return assert_eq!(pattern.taken(), TOTAL),
            n => pattern.check(&buf[..n]),
        }
    }
}

#[test]
fn streams() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (a, b) = pair().await;
        futures::join!(send(a), receive(b));
    });
}

#[test]
fn references() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (a, b) = pair().await;
        futures::join!(send(&a), receive(&b), receive(&a), send(&b));
    });
}

#[test]
fn borrowed_halves() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let ((ar, aw), (br, bw)) = (a.split(), b.split());
        futures::join!(send(aw), receive(br), receive(ar), send(bw));
    });
}

#[test]
fn owned_halves() {
    let _alone = alone(30);
    runtime(2).run(async {
        let (a, b) = pair().await;
        let ((ar, aw), (br, bw)) = (a.into_split(), b.into_split());
        let there = gopark::spawn(async move { futures::join!(receive(br), send(bw)) });
        futures::join!(send(aw), receive(ar));
        there.await.unwrap();
    });
}

/// The split of futures (a lock around both halves), and an echo by its `copy`.
#[test]
fn split_and_copy_of_futures() {
    let _alone = alone(30);
    runtime(2).run(async {
        let (a, b) = pair().await;
        let echo = gopark::spawn(async move {
            let (read, mut write) = b.split_in_two();
            let n = copy(read, &mut write).await.unwrap();
            write.close().await.unwrap();
            n
        });
        let (read, write) = a.split_in_two();
        futures::join!(send(write), receive(read));
        assert_eq!(echo.await.unwrap(), TOTAL as u64);
    });
}

/// `AsyncReadExt::split`, which the stream's own method hides.
trait SplitInTwo: AsyncRead + AsyncWrite + Sized {
    fn split_in_two(self) -> (futures::io::ReadHalf<Self>, futures::io::WriteHalf<Self>) {
        AsyncReadExt::split(self)
    }
}

impl<T: AsyncRead + AsyncWrite> SplitInTwo for T {}

#[test]
fn lines() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let writer = gopark::spawn(async move {
            for part in ["one\ntw", "o\n", "thr", "ee\nend"] {
                a.write_all(part.as_bytes()).await.unwrap();
                gopark::yield_now().await;
            }
        });
        let lines: Vec<_> = BufReader::new(b).lines().map(Result::unwrap).collect().await;
        assert_eq!(lines, ["one", "two", "three", "end"]);
        writer.await.unwrap();
    });
}

#[test]
fn vectored() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (a, b) = pair().await;
        let (mut aw, mut br) = (&a, &b);
        let (mut x, mut y) = ([0; 2], [0; 8]);
        let mut bufs = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        let mut read = Box::pin(AsyncReadExt::read_vectored(&mut br, &mut bufs));
        assert!(is_pending(&mut read).await);
        let n = AsyncWriteExt::write_vectored(&mut aw, &[IoSlice::new(b"abc"), IoSlice::new(b"de")]).await.unwrap();
        assert_eq!((n, read.await.unwrap()), (5, 5));
        assert_eq!((&x, &y[..3]), (b"ab", &b"cde"[..]));
    });
}

/// An empty read is ready at once; errors come through; a poll that is pending is woken.
#[test]
fn edges_of_the_contract() {
    let _alone = alone(30);
    runtime(1).run(async {
        let (mut a, mut b) = pair().await;
        assert_eq!(AsyncReadExt::read(&mut b, &mut []).await.unwrap(), 0);
        assert_eq!(AsyncWriteExt::write(&mut a, &[]).await.unwrap(), 0);
        a.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(a);
        let error = AsyncReadExt::read(&mut b, &mut [0; 4]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The peer is gone: there is nothing left to shut, and that is no error.
        AsyncWriteExt::close(&mut b).await.unwrap();
        let write = std::future::poll_fn(|cx| Pin::new(&mut b).poll_write(cx, b"x"));
        assert_eq!(write.await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}
