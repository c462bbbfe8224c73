//! What all sockets share. Macros where it is public: to the outside, each socket is a type of its own.

use crate::runtime::poll_gate::{Gate, Side};
use socket2::SockRef;
use std::io;
use std::net::Shutdown;

/// Whatever reaches a registered descriptor: a socket, half of one, a `PollFd`. Nobody else can implement it.
pub trait HasFd {
    /// The descriptor, registered.
    #[doc(hidden)]
    fn fd(&self) -> &Gate;
}

/// Refuses operations from now on, wakes whoever waits, and tells the kernel, so that the peer hears of it at once.
pub(crate) fn close(fd: &Gate) {
    fd.unblock();
    // It fails only where the socket is shut down already, or has no peer.
    let _ = SockRef::from(fd).shutdown(Shutdown::Both);
}

/// Ends one direction or both. Unix sockets make no edge of it for a write that waits for room, so this does.
pub(crate) fn shutdown(fd: &Gate, how: Shutdown) -> io::Result<()> {
    SockRef::from(fd).shutdown(how)?;
    fd.finish(Side::Write, true);
    Ok(())
}

/// An `Fd` in a field of that name.
macro_rules! has_fd {
    (impl[$($g:tt)*] $t:ty) => {
        impl<$($g)*> HasFd for $t {
            fn fd(&self) -> &Gate {
                &self.fd
            }
        }

        impl<$($g)*> AsFd for $t {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.fd.io().as_fd()
            }
        }

        impl<$($g)*> AsRawFd for $t {
            fn as_raw_fd(&self) -> RawFd {
                self.as_fd().as_raw_fd()
            }
        }
    };
}

/// What a socket has because it owns an `Fd` of std's type: its other fields begin as their defaults.
macro_rules! owner {
    ($t:ident $({ $($field:ident),* })?: $std:ty, $start:expr $(, before into_std: $($release:tt)+)?) => {
        has_fd!(impl[] $t);

        /// As std's type: the addresses and the descriptor.
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.fd, f)
            }
        }

        impl $t {
            /// Takes over a socket of std's.
            ///
            /// # Errors
            /// If it cannot be set to not block, or cannot be registered.
            ///
            /// # Panics
            /// Outside a runtime.
            #[track_caller]
            pub fn from_std(socket: $std) -> io::Result<Self> {
                socket.set_nonblocking(true)?;
                Self::register(socket, None)
            }

            /// One that does not block already, where [`Gate::open`] says.
            #[track_caller]
            fn register(socket: $std, by: Option<&Gate>) -> io::Result<Self> {
                Ok($t { fd: Fd::new(socket, $start, by)? $($(, $field: Default::default())*)? })
            }

            /// Gives the socket to std, in non-blocking mode.
            ///
            /// # Errors
            /// None today.
            pub fn into_std(self) -> io::Result<$std> {
                $(self.$($release)+;)?
                Ok(self.fd.into_inner())
            }
        }
    };
}

/// Calls that std makes as they are needed.
macro_rules! forward {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// What the system says.
        pub fn $name(&self, $($arg: $t),*) -> io::Result<$r> {
            self.fd.io().$name($($arg),*)
        }
    )*};
}

/// `readable` and the deadline of reading, for whatever has an `Fd`.
macro_rules! read_side {
    () => {
        /// Waits until a read is worth trying: data, the end, or an error. Only observes, so that waiting needs no
        /// buffer. Rarely it is wrong, and trying ends in `WouldBlock`. Only the methods here try: whoever reads the descriptor
        /// itself finds this ready at once from then on.
        ///
        /// # Errors
        /// After `close`, after the deadline, and when the runtime is gone.
        ///
        /// # Cancel safety
        /// Safe.
        pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
            self.fd().ready(Side::Read)
        }

        /// Until when reading may wait; it then fails with `TimedOut`, until the deadline is set anew. `None` for as
        /// long as it takes. One that has passed takes effect before this returns, also on who is waiting, unless it is set
        /// anew before those have run. To move a deadline further into the future, as a server does before each request,
        /// costs some nanoseconds and no timer.
        ///
        /// # Errors
        /// After `close`, and when the runtime is gone.
        pub fn set_read_deadline(&self, at: Option<Instant>) -> io::Result<()> {
            self.fd().set_deadline(Side::Read, at)
        }
    };
}

/// `writable` and the deadline of writing.
macro_rules! write_side {
    () => {
        /// Waits until a write is worth trying: there is room, or an error. Only observes. Rarely it is wrong, and
        /// trying, by the methods here, ends in `WouldBlock`.
        ///
        /// # Errors
        /// After `close`, after the deadline, and when the runtime is gone.
        ///
        /// # Cancel safety
        /// Safe.
        pub fn writable(&self) -> impl Future<Output = io::Result<()>> {
            self.fd().ready(Side::Write)
        }

        /// Until when writing may wait. Otherwise as `set_read_deadline`.
        ///
        /// # Errors
        /// After `close`, and when the runtime is gone.
        pub fn set_write_deadline(&self, at: Option<Instant>) -> io::Result<()> {
            self.fd().set_deadline(Side::Write, at)
        }
    };
}

/// Both directions at once.
macro_rules! both_sides {
    () => {
        /// Until when operations may wait: [`set_read_deadline`](Self::set_read_deadline) and
        /// [`set_write_deadline`](Self::set_write_deadline) in one.
        ///
        /// # Errors
        /// After [`close`](Self::close), and when the runtime is gone.
        pub fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
            self.fd().set_deadline(Side::Read, at)?;
            self.fd().set_deadline(Side::Write, at)
        }
    };
}

pub(crate) use {both_sides, forward, has_fd, owner, read_side, write_side};
