//! The halves of a connection, which is a TCP one unless said otherwise.

use super::prelude::*;
use super::tcp::TcpStream;
use super::unix::UnixStream;
use std::sync::Arc;

/// The read half of [`TcpStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a, S = TcpStream> {
    stream: &'a S,
}

/// The write half of [`TcpStream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a, S = TcpStream> {
    stream: &'a S,
}

/// The read half of [`TcpStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf<S = TcpStream> {
    stream: Arc<S>,
}

/// The write half of [`TcpStream::into_split`]. Dropping it shuts the write side.
#[derive(Debug)]
pub struct OwnedWriteHalf<S: HasFd = TcpStream> {
    stream: Arc<S>,
    shut_on_drop: bool,
}

/// What a half has, of whatever kind. `stream` is a field of it.
macro_rules! half {
    ($reads_or_writes:ident: impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> HasFd for $t {
            fn fd(&self) -> &Gate {
                self.stream.fd()
            }
        }

        impl<$($g)*> $t {
            /// The whole connection.
            pub fn stream(&self) -> &S {
                &self.stream
            }
        }

        $reads_or_writes!(impl[$($g)*] $t);
    };
}

half!(reads: impl['a, S: HasFd] ReadHalf<'a, S>);
half!(writes: impl['a, S: HasFd] WriteHalf<'a, S>);
half!(reads: impl[S: HasFd] OwnedReadHalf<S>);
half!(writes: impl[S: HasFd] OwnedWriteHalf<S>);

macro_rules! split {
    ($($t:ty)*) => {$(
        impl $t {
            /// Two halves for two branches of one task. Dropping them does nothing. What is not of one direction, such as a
            /// deadline or a close, is the whole connection's, `half.stream().close()`: to close by `futures::AsyncWriteExt` is to
            /// shut the write side. (Where `futures::AsyncReadExt` is in scope, `stream.split()` is that one's: `TcpStream::split(&stream)`,
            /// or likewise.)
            pub fn split(&self) -> (ReadHalf<'_, Self>, WriteHalf<'_, Self>) {
                (ReadHalf { stream: self }, WriteHalf { stream: self })
            }

            /// Two halves for two tasks. Dropping the write half shuts the write side, and only that. As with `split`, the
            /// whole connection's are `half.stream()`'s.
            pub fn into_split(self) -> (OwnedReadHalf<Self>, OwnedWriteHalf<Self>) {
                let stream = Arc::new(self);
                (OwnedReadHalf { stream: stream.clone() }, OwnedWriteHalf { stream, shut_on_drop: true })
            }
        }
    )*};
}

split! { TcpStream UnixStream }

impl<S: HasFd> OwnedReadHalf<S> {
    /// Puts the connection together again.
    ///
    /// # Errors
    /// [`ReuniteError`], with both halves, if they are of two connections.
    pub fn reunite(self, write: OwnedWriteHalf<S>) -> Result<S, ReuniteError<S>> {
        if !Arc::ptr_eq(&self.stream, &write.stream) {
            return Err(ReuniteError(self, write));
        }
        write.forget();
        // There are two halves, and one is gone.
        Ok(Arc::into_inner(self.stream).expect("a connection has one read half"))
    }
}

impl<S: HasFd> OwnedWriteHalf<S> {
    /// Puts the connection together again.
    ///
    /// # Errors
    /// [`ReuniteError`], with both halves, if they are of two connections.
    pub fn reunite(self, read: OwnedReadHalf<S>) -> Result<S, ReuniteError<S>> {
        read.reunite(self)
    }

    /// Drops the half without shutting the write side.
    pub fn forget(mut self) {
        self.shut_on_drop = false;
    }
}

impl<S: HasFd> Drop for OwnedWriteHalf<S> {
    fn drop(&mut self) {
        if self.shut_on_drop {
            // It fails only where the peer is gone already.
            let _ = socket::shutdown(self.stream.fd(), Shutdown::Write);
        }
    }
}

/// Two halves that are not of one connection.
#[derive(Debug)]
pub struct ReuniteError<S: HasFd = TcpStream>(pub OwnedReadHalf<S>, pub OwnedWriteHalf<S>);

impl<S: HasFd> fmt::Display for ReuniteError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of two connections")
    }
}

impl<S: HasFd + fmt::Debug> std::error::Error for ReuniteError<S> {}
