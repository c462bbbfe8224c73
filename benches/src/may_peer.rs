//! may: coroutines with stacks of their own, which is why it has no part in what is written once for futures.

use crate::http::Heads;
use crate::stall::Stall;
use crate::{BUFFER, sys};
use may::net::{TcpListener, TcpStream};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};

/// In words of 8 bytes. To start a thread, as `Stall::Lock` does, may want more than the default of 32 KiB.
const STACK_WORDS: usize = 0x4000;

/// One coroutine per connection, which does this.
pub(crate) fn serve(
    addr: SocketAddr,
    workers: usize,
    handler: impl Fn(TcpStream) + Clone + Send + 'static,
) -> io::Result<()> {
    // Nobody else here pins workers to CPUs.
    may::config().set_workers(workers).set_stack_size(STACK_WORDS).set_worker_pin(false);
    let listener = sys::listen(addr, false)?;
    println!("listening on {}", listener.local_addr()?);
    // SAFETY: the number comes from a listener that has just given it away.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    // SAFETY: it calls nothing that keeps its place in a thread-local across a switch of coroutines, and its stack is
    // deep enough; see may's `spawn`.
    let main = unsafe { may::coroutine::spawn(move || accept_loop(&listener, handler)) };
    main.join().unwrap_or_else(|_| Err(io::Error::other("the accept loop panicked")))
}

fn accept_loop(listener: &TcpListener, handler: impl Fn(TcpStream) + Clone + Send + 'static) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        let handler = handler.clone();
        // SAFETY: as above.
        drop(unsafe { may::coroutine::spawn(move || handler(stream)) });
    }
}

pub(crate) fn http(mut stream: TcpStream) {
    let (mut buf, mut heads) = (vec![0; BUFFER], Heads::default());
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        let answers = heads.answers(&buf[..n]);
        if !answers.is_empty() && stream.write_all(answers).is_err() {
            return;
        }
    }
}

pub(crate) fn echo(mut stream: TcpStream, stall: Option<Stall>) {
    let mut buf = vec![0; BUFFER];
    // An end or an error: either way this connection is over.
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        Stall::on_message(stall, &buf[..n]);
        if stream.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}
