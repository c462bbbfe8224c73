//! The yardstick of proxies: one thread on epoll that reads and writes.

use crate::child;
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, EventBuf};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

const MAX_EVENTS: usize = 1024;
const LISTENER: u64 = u64::MAX;
const STDIN: u64 = u64::MAX - 1;
const BUFFER: usize = 64 << 10;

pub(crate) fn serve(addr: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let listener = sys::listen(addr, false)?;
    println!("listening on {}", listener.local_addr()?);
    let epoll = Epoll::new()?;
    epoll.add(&listener, EPOLLIN, LISTENER)?;
    child::watch_stdin(&epoll, STDIN)?;
    let mut events = EventBuf::new(MAX_EVENTS);
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut buf = vec![0; BUFFER];
    loop {
        for (_, token) in epoll.wait(&mut events, -1)? {
            match token {
                LISTENER => {
                    accept_all(&epoll, &listener, target, &mut pairs)?;
                    continue;
                }
                STDIN => {
                    child::read_stdin();
                    continue;
                }
                _ => {}
            }
            let slot = &mut pairs[token as usize / 2];
            let Some(pair) = slot else { continue };
            // An error ends both directions, and dropping the pair closes it.
            if !matches!(pair.turn(&epoll, token, &mut buf), Ok(true)) {
                *slot = None;
            }
        }
    }
}

fn accept_all(
    epoll: &Epoll,
    listener: &TcpListener,
    target: SocketAddr,
    pairs: &mut Vec<Option<Pair>>,
) -> io::Result<()> {
    loop {
        let client = match sys::uninterrupted(|| sys::accept(listener)) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let server = TcpStream::connect(target)?;
        server.set_nodelay(true)?;
        server.set_nonblocking(true)?;
        let token = 2 * pairs.len() as u64;
        epoll.add(&client, EPOLLIN, token)?;
        epoll.add(&server, EPOLLIN, token + 1)?;
        pairs.push(Some(Pair { sides: [Side::new(client), Side::new(server)] }));
    }
}

struct Pair {
    sides: [Side; 2],
}

struct Side {
    stream: TcpStream,
    /// What a short write left over; while there is any, the other side is not read.
    unsent: Vec<u8>,
    /// Nothing more is to be read.
    ended: bool,
    mask: i32,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        Side { stream, unsent: Vec::new(), ended: false, mask: EPOLLIN }
    }

    fn wants(&self, other: &Side) -> i32 {
        let read = if !self.ended && other.unsent.is_empty() { EPOLLIN } else { 0 };
        if self.unsent.is_empty() { read } else { read | EPOLLOUT }
    }

    /// How much the socket took, nothing included.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }
}

impl Pair {
    /// One write of what is left over and one read, each as far as it goes; false when both directions have ended.
    fn turn(&mut self, epoll: &Epoll, token: u64, buf: &mut [u8]) -> io::Result<bool> {
        let [this, other] = &mut self.sides;
        let (this, other) = if token & 1 == 0 { (this, other) } else { (other, this) };
        if !this.unsent.is_empty() {
            let unsent = std::mem::take(&mut this.unsent);
            let written = this.write(&unsent)?;
            this.unsent = unsent[written..].to_vec();
            if this.unsent.is_empty() && other.ended {
                this.stream.shutdown(Shutdown::Write)?;
            }
        }
        if other.unsent.is_empty() && !this.ended {
            match this.stream.read(buf) {
                Ok(0) => {
                    this.ended = true;
                    other.stream.shutdown(Shutdown::Write)?;
                }
                Ok(n) => {
                    let written = other.write(&buf[..n])?;
                    other.unsent = buf[written..n].to_vec();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let masks = [this.wants(other), other.wants(this)];
        for ((side, mask), token) in [this, other].into_iter().zip(masks).zip([token, token ^ 1]) {
            if side.mask != mask {
                side.mask = mask;
                epoll.modify(&side.stream, mask, token)?;
            }
        }
        Ok(self.sides.iter().any(|side| !side.ended || !side.unsent.is_empty()))
    }
}
