//! What TCP and Unix streams do alike, whole or in halves, and what their listeners do. Macros, as in socket.rs.

/// Reading, for whatever reaches a stream.
macro_rules! reads {
    (impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> $t {
            /// Reads what is there, waiting until something is. 0 is the end of the stream (or an empty buffer).
            ///
            /// # Errors
            /// What recv(2) says; `TimedOut` after the deadline; `NotConnected` with [`Closed`](crate::net::Closed)
            /// inside after `close`.
            ///
            /// # Cancel safety
            /// Safe: no byte is lost.
            pub fn read(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
                self.fd().io_op(Side::Read, buf.len(), |s| sys::recv(s, buf, 0))
            }

            /// Reads into several buffers, one after the other. Otherwise as [`read`](Self::read).
            ///
            /// # Errors
            /// As [`read`](Self::read).
            pub fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> impl Future<Output = io::Result<usize>> {
                self.fd().io_op(Side::Read, sys::one_call(bufs).1, |s| sys::recv_vectored(s, bufs))
            }

            /// Reads without taking: the next read sees the same bytes. Otherwise as [`read`](Self::read).
            ///
            /// # Errors
            /// As [`read`](Self::read).
            pub fn peek(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
                // It drains nothing, so it is never short.
                self.fd().io_op(Side::Read, buf.len().min(sys::WHOLE), |s| sys::recv(s, buf, libc::MSG_PEEK))
            }

            /// Fills the buffer.
            ///
            /// # Errors
            /// `UnexpectedEof` if the stream ends before; otherwise as [`read`](Self::read). What was read before is in
            /// `buf`.
            ///
            /// # Cancel safety
            /// None: how much was read before the drop is lost.
            pub async fn read_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
                while !buf.is_empty() {
                    match self.read(buf).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => buf = &mut buf[n..],
                    }
                }
                Ok(())
            }

            /// Reads what is there.
            ///
            /// # Errors
            /// `WouldBlock` if nothing is; otherwise as [`read`](Self::read).
            pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.fd().try_io(Side::Read, buf.len(), |s| sys::recv(s, buf, 0))
            }

            /// As [`try_read`](Self::try_read), into several buffers.
            ///
            /// # Errors
            /// As [`try_read`](Self::try_read).
            pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                self.fd().try_io(Side::Read, sys::one_call(bufs).1, |s| sys::recv_vectored(s, bufs))
            }

            read_side!();
        }

        async_read!(impl[$($g)*] $t);
    };
}

/// Writing, likewise.
macro_rules! writes {
    (impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> $t {
            /// Writes as much as fits, waiting until something does.
            ///
            /// # Errors
            /// What send(2) says: `BrokenPipe` or `ConnectionReset` if the peer is gone; never a SIGPIPE.
            /// `TimedOut` after the deadline; `NotConnected` with [`Closed`](crate::net::Closed) inside after `close`.
            ///
            /// # Cancel safety
            /// Safe: if the future is dropped before it is ready, nothing was written.
            pub fn write(&self, buf: &[u8]) -> impl Future<Output = io::Result<usize>> {
                self.fd().io_op(Side::Write, buf.len(), |s| sys::send(s, buf))
            }

            /// Writes several buffers, one after the other. Otherwise as [`write`](Self::write).
            ///
            /// # Errors
            /// As [`write`](Self::write).
            pub fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> impl Future<Output = io::Result<usize>> {
                let (bufs, asked) = sys::one_call(bufs);
                self.fd().io_op(Side::Write, asked, |s| sys::send_vectored(s, bufs))
            }

            /// Writes all of it. No other `write_all` of this connection writes in between, from the first byte to the
            /// last.
            ///
            /// # Errors
            /// As [`write`](Self::write); what was written before is not told.
            ///
            /// # Cancel safety
            /// None: how much was written before the drop is lost. A future that is neither polled nor dropped keeps
            /// every other `write_all` of this connection waiting.
            pub fn write_all(&self, buf: &[u8]) -> impl Future<Output = io::Result<()>> {
                self.fd().write_all(buf)
            }

            /// Writes what fits.
            ///
            /// # Errors
            /// `WouldBlock` if nothing does; otherwise as [`write`](Self::write).
            pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.fd().try_io(Side::Write, buf.len(), |s| sys::send(s, buf))
            }

            /// As [`try_write`](Self::try_write), from several buffers.
            ///
            /// # Errors
            /// As [`try_write`](Self::try_write).
            pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                let (bufs, asked) = sys::one_call(bufs);
                self.fd().try_io(Side::Write, asked, |s| sys::send_vectored(s, bufs))
            }

            write_side!();
        }

        async_write!(impl[$($g)*] $t);
    };
}

/// futures-io's trait, also for a reference.
macro_rules! async_read {
    (impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> AsyncRead for $t {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
                self.fd().poll_io(Side::Read, cx, None, buf.len(), |s| sys::recv(s, buf, 0))
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                self.fd().poll_io(Side::Read, cx, None, sys::one_call(bufs).1, |s| sys::recv_vectored(s, bufs))
            }
        }
    };
}

/// futures-io's trait, also for a reference.
macro_rules! async_write {
    (impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> AsyncWrite for $t {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.fd().poll_io(Side::Write, cx, None, buf.len(), |s| sys::send(s, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let (bufs, asked) = sys::one_call(bufs);
                self.fd().poll_io(Side::Write, cx, None, asked, |s| sys::send_vectored(s, bufs))
            }

            /// Nothing is kept back that would have to be flushed.
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            /// Shuts the write side.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                match socket::shutdown(self.fd(), Shutdown::Write) {
                    // The peer was faster.
                    Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                    result => Poll::Ready(result),
                }
            }
        }
    };
}

/// A whole connection: both directions, its ends, its end.
macro_rules! stream {
    ($t:ident, $addr:ty) => {
        reads!(impl[] $t);
        writes!(impl[] $t);
        async_read!(impl[] &$t);
        async_write!(impl[] &$t);

        impl $t {
            both_sides!();

            forward! {
                /// This end's address.
                fn local_addr() -> $addr;
                /// The other end's address.
                fn peer_addr() -> $addr;
                /// The error that the socket has pending, which this clears.
                fn take_error() -> Option<io::Error>;
            }

            /// Ends one direction or both. The peer reads to the end of what was written, then 0.
            ///
            /// # Errors
            /// What the system says.
            pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                socket::shutdown(&self.fd, how)
            }

            /// Shuts the connection down and wakes everything that waits on it; later operations are refused. Calling it
            /// again does nothing. The descriptor is released when the stream is dropped.
            pub fn close(&self) {
                socket::close(&self.fd);
            }
        }
    };
}

/// A listener: how it accepts.
macro_rules! listener {
    ($t:ident, $stream:ident, $addr:ty, $incoming:ident) => {
        impl $t {
            /// Takes the next connection. Any number of tasks may wait here at once.
            ///
            /// Where the process or the system has no descriptor or memory left (`EMFILE`, `ENFILE`, `ENOBUFS`,
            /// `ENOMEM`), it waits too: it tries again after 5 ms, doubling to 1 s, and goes on by itself when there is
            /// some again. The first time a line on stderr says so. A connection that died in the queue is passed over.
            ///
            /// The connection belongs to the current runtime, or, outside of one, to the listener's.
            ///
            /// # Errors
            /// What else accept(2) says, and what registering the connection says: those took one connection with them, and the
            /// next call may succeed. `NotConnected` with [`Closed`](crate::net::Closed) inside after [`close`](Self::close);
            /// `TimedOut` after the deadline; [`RuntimeGone`](crate::net::RuntimeGone) inside when the runtime has been shut
            /// down.
            ///
            /// # Cancel safety
            /// Safe: no connection is lost.
            pub fn accept(&self) -> impl Future<Output = io::Result<($stream, $addr)>> {
                self.fd.io_op(Side::Read, sys::WHOLE, |l| self.accept_from(l))
            }

            /// The same, to be polled; every waker that polls is woken.
            pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<($stream, $addr)>> {
                self.fd.poll_io(Side::Read, cx, None, sys::WHOLE, |l| self.accept_from(l))
            }

            fn accept_from(&self, listener: BorrowedFd<'_>) -> io::Result<($stream, $addr)> {
                let (stream, addr) = self.backoff.accept(&self.fd, || sys::accept(listener))?;
                // Outside of that: what registering lacks is no reason for the listener to pause.
                Ok(($stream::register(stream, Some(&self.fd))?, addr))
            }

            /// The connections as a stream. It ends after [`close`](Self::close).
            pub fn incoming(&self) -> $incoming<'_> {
                $incoming { listener: self }
            }

            /// Until when [`accept`](Self::accept) may wait; it then fails with `TimedOut`, until the deadline is set
            /// anew. `None` for as long as it takes. One that has passed takes effect before this returns, also on who
            /// is waiting, unless it is set anew before those have run.
            ///
            /// # Errors
            /// After [`close`](Self::close), and when the runtime is gone.
            pub fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
                self.fd.set_deadline(Side::Read, at)
            }

            forward! {
                /// The address it listens on.
                fn local_addr() -> $addr;
            }
        }

        #[doc = concat!("See [`", stringify!($t), "::incoming`].")]
        #[derive(Debug)]
        #[must_use = "a stream does nothing unless it is polled"]
        pub struct $incoming<'a> {
            listener: &'a $t,
        }

        impl Stream for $incoming<'_> {
            type Item = io::Result<$stream>;

            fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                self.listener.poll_accept(cx).map(|result| match result {
                    Err(error) if error.get_ref().is_some_and(|e| e.is::<Closed>()) => None,
                    result => Some(result.map(|(stream, _)| stream)),
                })
            }
        }
    };
}

pub(crate) use {async_read, async_write, listener, reads, stream, writes};
