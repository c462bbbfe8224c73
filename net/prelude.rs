//! What most of net/ names. The macros of socket.rs, stream.rs and datagram.rs need all of it where they are called.

pub(super) use super::datagram::datagram;
pub(super) use super::socket::{self, HasFd, both_sides, forward, has_fd, owner, read_side, write_side};
pub(super) use super::stream::{async_read, async_write, listener, reads, stream, writes};
pub(super) use super::sys::{self, Received};
pub(super) use crate::runtime::poll_gate::{Closed, Gate, Side, Start};
pub(super) use futures_core::Stream;
pub(super) use futures_io::{AsyncRead, AsyncWrite};
pub(super) use std::fmt;
pub(super) use std::io::{self, IoSlice, IoSliceMut};
pub(super) use std::net::Shutdown;
pub(super) use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
pub(super) use std::pin::Pin;
pub(super) use std::task::{Context, Poll};
pub(super) use std::time::{Duration, Instant};
