//! may: coroutines with stacks of their own, which is why it has no part in what is written once for futures.

use crate::stall::Stall;
use crate::{BUFFER, sys};
use may::net::{TcpListener, TcpStream};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};

/// In words of 8 bytes. To start a thread, as `Stall::Lock` does, may want more than the default of 32 KiB.
const STACK_WORDS: usize = 0x4000;

/// The echo server: one coroutine per connection.
pub(crate) fn serve(addr: SocketAddr, workers: usize, stall: Option<Stall>) -> io::Result<()> {
    // Nobody else here pins workers to CPUs.
    may::config().set_workers(workers).set_stack_size(STACK_WORDS).set_worker_pin(false);
    let listener = sys::listen(addr, false)?;
    println!("listening on {}", listener.local_addr()?);
    // SAFETY: the number comes from a listener that has just given it away.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    // SAFETY: it calls nothing that keeps its place in a thread-local across a switch of coroutines, and its stack is
    // deep enough; see may's `spawn`.
    let main = unsafe { may::coroutine::spawn(move || accept_loop(&listener, stall)) };
    main.join().unwrap_or_else(|_| Err(io::Error::other("the accept loop panicked")))
}

fn accept_loop(listener: &TcpListener, stall: Option<Stall>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // SAFETY: as above.
        drop(unsafe { may::coroutine::spawn(move || echo(stream, stall)) });
    }
}

fn echo(mut stream: TcpStream, stall: Option<Stall>) {
    let mut buf = vec![0; BUFFER];
    // An end or an error: either way this connection is over.
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        Stall::on_message(stall, &buf[..n]);
        if stream.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}
