//! Sockets on the runtime's netpoller.
//!
//! Every operation borrows its socket: one socket serves any number of tasks, and it cannot be closed under any of
//! them. Errors are `io::Error`s; those of gopark's own making carry [`Closed`] or [`RuntimeGone`] inside
//! ([`io::Error::get_ref`](std::io::Error::get_ref)).
//!
//! What needs a runtime, as making a socket does, panics outside of one.

pub(crate) mod copy;
mod datagram;
mod dial;
mod fd;
mod listen;
pub(crate) mod poll_fd;
mod prelude;
mod resolve;
mod socket;
mod splice;
mod split;
mod stream;
mod sys;
mod tcp;
mod udp;
mod unix;

pub use crate::runtime::poll_gate::{Closed, RuntimeGone};
pub use dial::Dialer;
pub use listen::ListenConfig;
pub use resolve::{ToSocketAddrs, lookup_host};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use sys::{Received, raise_nofile_limit};
pub use tcp::{Incoming, TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UCred, UnixDatagram, UnixIncoming, UnixListener, UnixStream};
