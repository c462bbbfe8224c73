//! The halves of a TCP connection, and futures-io's traits on whatever reaches one.

use super::tcp::TcpStream;
use futures_io::{AsyncRead, AsyncWrite};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

impl TcpStream {
    /// Two halves for two branches of one task. Dropping them does nothing.
    pub fn split(&self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf { stream: self }, WriteHalf { stream: self })
    }

    /// Two halves for two tasks. Dropping the write half shuts the write side, and only that (trap P9).
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let stream = Arc::new(self);
        (OwnedReadHalf { stream: stream.clone() }, OwnedWriteHalf { stream, shut_on_drop: true })
    }
}

/// The read half of [`TcpStream::split`].
#[derive(Debug, Clone, Copy)]
pub struct ReadHalf<'a> {
    stream: &'a TcpStream,
}

/// The write half of [`TcpStream::split`].
#[derive(Debug, Clone, Copy)]
pub struct WriteHalf<'a> {
    stream: &'a TcpStream,
}

/// The read half of [`TcpStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf {
    stream: Arc<TcpStream>,
}

/// The write half of [`TcpStream::into_split`]. Dropping it shuts the write side.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Arc<TcpStream>,
    shut_on_drop: bool,
}

impl OwnedReadHalf {
    /// Puts the connection together again.
    ///
    /// # Errors
    /// [`ReuniteError`], with both halves, if they are of two connections.
    pub fn reunite(self, write: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
        reunite(self, write)
    }
}

impl OwnedWriteHalf {
    /// Puts the connection together again.
    ///
    /// # Errors
    /// [`ReuniteError`], with both halves, if they are of two connections.
    pub fn reunite(self, read: OwnedReadHalf) -> Result<TcpStream, ReuniteError> {
        reunite(read, self)
    }

    /// Drops the half without shutting the write side.
    pub fn forget(mut self) {
        self.shut_on_drop = false;
    }
}

fn reunite(read: OwnedReadHalf, mut write: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
    if !Arc::ptr_eq(&read.stream, &write.stream) {
        return Err(ReuniteError(read, write));
    }
    write.shut_on_drop = false;
    drop(write);
    Ok(Arc::into_inner(read.stream).expect("there are two halves, and one is gone"))
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.shut_on_drop {
            // It fails only where the peer is gone already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

/// Two halves that are not of one connection.
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of two connections")
    }
}

impl std::error::Error for ReuniteError {}

/// The stream's methods on a half, and the traits on whatever reaches a stream.
macro_rules! reads {
    ($t:ty, $this:ident => $stream:expr) => {
        impl AsyncRead for $t {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                let $this = &*self;
                $stream.poll_read(cx, buf)
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                let $this = &*self;
                $stream.poll_read_vectored(cx, bufs)
            }
        }
    };
}

macro_rules! writes {
    ($t:ty, $this:ident => $stream:expr) => {
        impl AsyncWrite for $t {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let $this = &*self;
                $stream.poll_write(cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $this = &*self;
                $stream.poll_write_vectored(cx, bufs)
            }

            /// Nothing is kept back that would have to be flushed.
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            /// Shuts the write side.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $this = &*self;
                $stream.poll_close()
            }
        }
    };
}

macro_rules! read_half {
    ($t:ty) => {
        impl $t {
            /// See [`TcpStream::read`].
            ///
            /// # Errors
            /// As there.
            pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.stream.read(buf).await
            }

            /// See [`TcpStream::read_exact`].
            ///
            /// # Errors
            /// As there.
            pub async fn read_exact(&self, buf: &mut [u8]) -> io::Result<()> {
                self.stream.read_exact(buf).await
            }

            /// See [`TcpStream::peek`].
            ///
            /// # Errors
            /// As there.
            pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.stream.peek(buf).await
            }

            /// The whole connection.
            pub fn stream(&self) -> &TcpStream {
                &self.stream
            }
        }
    };
}

macro_rules! write_half {
    ($t:ty) => {
        impl $t {
            /// See [`TcpStream::write`].
            ///
            /// # Errors
            /// As there.
            pub async fn write(&self, buf: &[u8]) -> io::Result<usize> {
                self.stream.write(buf).await
            }

            /// See [`TcpStream::write_all`].
            ///
            /// # Errors
            /// As there.
            pub async fn write_all(&self, buf: &[u8]) -> io::Result<()> {
                self.stream.write_all(buf).await
            }

            /// The whole connection.
            pub fn stream(&self) -> &TcpStream {
                &self.stream
            }
        }
    };
}

reads!(TcpStream, this => this);
reads!(&TcpStream, this => this);
reads!(ReadHalf<'_>, this => this.stream);
reads!(OwnedReadHalf, this => this.stream);
writes!(TcpStream, this => this);
writes!(&TcpStream, this => this);
writes!(WriteHalf<'_>, this => this.stream);
writes!(OwnedWriteHalf, this => this.stream);
read_half!(ReadHalf<'_>);
read_half!(OwnedReadHalf);
write_half!(WriteHalf<'_>);
write_half!(OwnedWriteHalf);
