//! What UDP and Unix datagram sockets do alike. A macro, as in socket.rs.

/// Datagrams, to and from the peer if there is one, or from anybody.
macro_rules! datagram {
    ($t:ident, $addr:ty) => {
        impl $t {
            /// Receives the next datagram: from the peer if the socket is connected, else from anybody. What does not fit
            /// into the buffer is lost; [`recv_msg`](Self::recv_msg) tells. A datagram may be empty, so 0 is no end.
            ///
            /// # Errors
            /// What recv(2) says, such as `ConnectionRefused` if an earlier datagram found nobody; `TimedOut` after the
            /// deadline; `NotConnected` with [`Closed`](crate::net::Closed) inside after [`close`](Self::close).
            ///
            /// # Cancel safety
            /// Safe: no datagram is lost.
            pub fn recv(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
                self.fd.io_op(Side::Read, sys::WHOLE, |s| sys::recv(s, buf, 0))
            }

            /// As [`recv`](Self::recv); also tells who sent it.
            ///
            /// # Errors
            /// As [`recv`](Self::recv).
            pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.recv_msg(&mut [IoSliceMut::new(buf)]).await.map(|got| (got.len, got.addr))
            }

            /// As [`recv_from`](Self::recv_from), into several buffers, one after the other; also tells whether some of
            /// the datagram was lost.
            ///
            /// # Errors
            /// As [`recv`](Self::recv).
            pub fn recv_msg(&self, bufs: &mut [IoSliceMut<'_>]) -> impl Future<Output = io::Result<Received<$addr>>> {
                self.fd.io_op(Side::Read, sys::WHOLE, |s| sys::recv_msg(s, bufs, 0))
            }

            /// As [`recv`](Self::recv), but the datagram stays where it is.
            ///
            /// # Errors
            /// As [`recv`](Self::recv).
            pub fn peek(&self, buf: &mut [u8]) -> impl Future<Output = io::Result<usize>> {
                self.fd.io_op(Side::Read, sys::WHOLE, |s| sys::recv(s, buf, libc::MSG_PEEK))
            }

            /// As [`recv_from`](Self::recv_from), but the datagram stays where it is.
            ///
            /// # Errors
            /// As [`recv`](Self::recv).
            pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                let bufs = &mut [IoSliceMut::new(buf)];
                let got = self.fd.io_op(Side::Read, sys::WHOLE, |s| sys::recv_msg(s, bufs, libc::MSG_PEEK)).await?;
                Ok((got.len, got.addr))
            }

            /// Receives a datagram that is there.
            ///
            /// # Errors
            /// `WouldBlock` if none is; otherwise as [`recv`](Self::recv).
            pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.fd.try_io(Side::Read, sys::WHOLE, |s| sys::recv(s, buf, 0))
            }

            /// As [`try_recv`](Self::try_recv); also tells who sent it.
            ///
            /// # Errors
            /// As [`try_recv`](Self::try_recv).
            pub fn try_recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.try_recv_msg(&mut [IoSliceMut::new(buf)]).map(|got| (got.len, got.addr))
            }

            /// As [`recv_msg`](Self::recv_msg), if a datagram is there.
            ///
            /// # Errors
            /// As [`try_recv`](Self::try_recv).
            pub fn try_recv_msg(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<Received<$addr>> {
                self.fd.try_io(Side::Read, sys::WHOLE, |s| sys::recv_msg(s, bufs, 0))
            }

            /// Sends a datagram, which may be empty, to the peer.
            ///
            /// # Errors
            /// What send(2) says: `NotConnected` or `InvalidInput` if there is no peer, `ConnectionRefused` if an earlier
            /// datagram found nobody, EMSGSIZE if it is too long. `TimedOut` after the deadline; `NotConnected` with
            /// [`Closed`](crate::net::Closed) inside after [`close`](Self::close).
            ///
            /// # Cancel safety
            /// Safe: if the future is dropped before it is ready, nothing was sent.
            pub fn send(&self, buf: &[u8]) -> impl Future<Output = io::Result<usize>> {
                self.fd.io_op(Side::Write, buf.len(), |s| sys::send(s, buf))
            }

            /// As [`send`](Self::send), one datagram from several buffers.
            ///
            /// # Errors
            /// As [`send`](Self::send).
            pub fn send_vectored(&self, bufs: &[IoSlice<'_>]) -> impl Future<Output = io::Result<usize>> {
                self.fd.io_op(Side::Write, 0, |s| sys::send_vectored(s, bufs))
            }

            /// Sends a datagram to the peer, if there is room.
            ///
            /// # Errors
            /// `WouldBlock` if there is none; otherwise as [`send`](Self::send).
            pub fn try_send(&self, buf: &[u8]) -> io::Result<usize> {
                self.fd.try_io(Side::Write, buf.len(), |s| sys::send(s, buf))
            }

            read_side!();
            write_side!();
            both_sides!();

            /// Wakes everything that waits on the socket; later operations are refused. Calling it again does nothing. The
            /// descriptor is released when the socket is dropped.
            pub fn close(&self) {
                socket::close(&self.fd);
            }

            forward! {
                /// This end's address.
                fn local_addr() -> $addr;
                /// The peer's address, if the socket is connected.
                fn peer_addr() -> $addr;
                /// The error that the socket has pending, which this clears.
                fn take_error() -> Option<io::Error>;
            }
        }
    };
}

pub(crate) use datagram;
