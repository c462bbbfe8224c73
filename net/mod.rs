//! Sockets on the runtime's netpoller.
//!
//! Every operation borrows its socket: one socket serves any number of tasks, and it cannot be closed under any of
//! them. Errors are `io::Error`s; those of gopark's own making carry [`Closed`] or [`RuntimeGone`] inside
//! ([`io::Error::get_ref`](std::io::Error::get_ref)).
//!
//! What needs a runtime, as making a socket does, panics outside of one.

mod dial;
mod fd;
mod limit;
mod listen;
mod resolve;
mod sys;
mod tcp;
mod tcp_split;

pub use crate::runtime::poll_gate::{Closed, RuntimeGone};
pub use dial::Dialer;
pub use limit::raise_nofile_limit;
pub use listen::ListenConfig;
pub use resolve::{ToSocketAddrs, lookup_host};
pub use tcp::{Incoming, TcpListener, TcpStream};
pub use tcp_split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
