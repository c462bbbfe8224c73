//! gopark is a minimal async runtime for Linux, made as the Go runtime is made.
//!
//! Tasks (G) run on threads (M) that hold one of a few rights to run (P); a task that waits for a socket parks on its
//! `PollDesc`, and whoever harvests epoll next makes it runnable again.
//!
//! ```no_run
//! use gopark::net::TcpListener;
//!
//! fn main() -> std::io::Result<()> {
//!     gopark::run(async {
//!         let listener = TcpListener::bind("127.0.0.1:7000").await?;
//!         loop {
//!             let (stream, _) = listener.accept().await?;
//!             gopark::spawn(async move {
//!                 let mut buf = [0; 4096];
//!                 while let Ok(n @ 1..) = stream.read(&mut buf).await {
//!                     if stream.write_all(&buf[..n]).await.is_err() {
//!                         break;
//!                     }
//!                 }
//!             });
//!         }
//!     })
//! }
//! ```
//!
//! # What blocks
//!
//! A task may block its thread, by a system call, a lock or a long computation: after some milliseconds, 10 to 20 where it
//! computes, its right to run goes to another thread, and the other tasks go on. [`Builder::on_stuck_task`] names such a task, and with the feature
//! `backtrace` says where it is. [`spawn_blocking`] and [`block_in_place`] spare the others even those milliseconds. Of such
//! threads there are at most [`Builder::max_threads`] (512) more than workers, whose number is that of the CPUs, or what
//! `GOPARK_PROCS` or [`Builder::workers`] says. A [`Runtime`] that is dropped waits for what is under way;
//! [`Runtime::shutdown_timeout`] waits only so long, and says what still runs.
//!
//! # How a server ends
//!
//! A listener that is closed accepts no more. Those that are being served find the end of the stream behind what they have still
//! to read, as if the peer had said so, and may have some time for their answers; the runtime has a little more for what still
//! blocks then; what is left is dropped.
//!
//! ```
//! use gopark::net::{Closed, TcpListener, TcpStream};
//! use gopark::time::{Duration, timeout};
//! use std::net::Shutdown;
//! use std::sync::{Arc, Weak};
//!
//! async fn serve(stream: Arc<TcpStream>) {
//!     let mut buf = [0; 4096];
//!     while let Ok(n @ 1..) = stream.read(&mut buf).await {
//!         if stream.write_all(&buf[..n]).await.is_err() {
//!             break;
//!         }
//!     }
//! }
//!
//! let runtime = gopark::Runtime::new()?;
//! runtime.run(async {
//!     let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await?);
//!     let there = listener.clone();
//!     // What ends the server, on whatever thread; with the crate `ctrlc` it is `ctrlc::set_handler(move || there.close())`.
//!     std::thread::spawn(move || there.close());
//!     let mut served: Vec<(gopark::JoinHandle<()>, Weak<TcpStream>)> = Vec::new();
//!     loop {
//!         match listener.accept().await {
//!             Ok((stream, _)) => {
//!                 let stream = Arc::new(stream);
//!                 let weak = Arc::downgrade(&stream);
//!                 served.push((gopark::spawn(serve(stream)), weak));
//!             }
//!             Err(error) if error.get_ref().is_some_and(|e| e.is::<Closed>()) => break,
//!             Err(error) => eprintln!("a connection is lost: {error}"),
//!         }
//!         served.retain(|(task, _)| !task.is_finished());
//!     }
//!     for stream in served.iter().filter_map(|(_, stream)| stream.upgrade()) {
//!         let _ = stream.shutdown(Shutdown::Read);
//!     }
//!     let _ = timeout(Duration::from_secs(10), async {
//!         for (task, _) in served {
//!             let _ = task.await;
//!         }
//!     })
//!     .await;
//!     std::io::Result::Ok(())
//! })?;
//! if let Err(still) = runtime.shutdown_timeout(Duration::from_secs(1)) {
//!     eprintln!("{still}");
//! }
//! # std::io::Result::Ok(())
//! ```
//!
//! # Reading order
//!
//! For whoever wants to know how it works, an afternoon's walk from the bottom up:
//!
//! 1. `runtime/task/`: what a task is: its state word, its one allocation, how it is woken.
//! 2. `runtime/queue.rs`, `runtime/idle.rs`, `runtime/park.rs`: where tasks and threads wait; `runtime/hold.rs`: who has a P.
//! 3. `runtime/netpoll/`: the slot that a task parks on, its deadline, the descriptor, epoll, the break.
//! 4. `runtime/timer.rs`: a P's timers.
//! 5. `runtime/proc/`: the scheduler: how an M finds its next task, how Ms and Ps come together.
//! 6. `runtime/sysmon.rs`, `runtime/watchdog.rs`, `runtime/stuck.rs`, `runtime/blocking.rs`, `runtime/time.rs`, `runtime/runtime.rs`: what is built on it.
//! 7. `net/fd.rs`, `net/socket.rs`, `net/stream.rs`, then the sockets; `net/dial.rs`, `net/listen.rs`, `net/copy.rs`.

// The models build the floors below the scheduler, and little of that is used without it.
#![cfg_attr(gopark_loom, allow(dead_code, unused_imports, unreachable_pub))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "gopark is made for Linux: it stands on epoll, eventfd and futex. On other systems, use another runtime."
);

#[cfg(all(target_os = "linux", not(target_pointer_width = "64")))]
compile_error!("gopark is made for 64-bit Linux: on 32 bits the kernel's time has another layout.");

/// A builder's setters, each of one field.
#[cfg(not(gopark_loom))]
macro_rules! setters {
    ($($(#[$doc:meta])* fn $name:ident($arg:ident: $t:ty) { $($field:ident).+ = $value:expr })*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $arg: $t) -> Self {
            self.$($field).+ = $value;
            self
        }
    )*};
}

/// An error that is nothing but its text.
#[cfg(not(gopark_loom))]
macro_rules! plain_error {
    ($t:ident, $text:literal) => {
        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($text)
            }
        }

        impl std::error::Error for $t {}
    };
}

#[cfg(not(gopark_loom))]
pub mod net;
mod runtime;

#[cfg(not(gopark_loom))]
pub use runtime::task::{AbortHandle, JoinError, JoinHandle, TaskId, TaskInfo};
#[cfg(not(gopark_loom))]
pub use runtime::{
    blocking::block_in_place,
    runtime::{Builder, EnterGuard, Handle, Runtime, StillRunning, block_on, run, spawn, spawn_blocking, yield_now},
    stuck::StuckTask,
};

/// Sleeps, timeouts and intervals.
#[cfg(not(gopark_loom))]
pub mod time {
    pub use crate::runtime::time::*;
    pub use std::time::{Duration, Instant};
}

/// Copying from one descriptor to another, and descriptors that are not sockets.
#[cfg(not(gopark_loom))]
pub mod io {
    pub use crate::net::copy::{Copy, CopyBidirectional, CopyFrom, CopyTo, copy, copy_bidirectional};
    pub use crate::net::poll_fd::PollFd;
}
