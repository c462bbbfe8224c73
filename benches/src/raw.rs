//! The yardstick: an echo server as one writes it in C, on epoll and nothing else; and an HTTP server.

use crate::BUFFER;
use crate::child;
use crate::http::Heads;
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, EventBuf};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

const MAX_EVENTS: usize = 1024;
const LISTENER: u64 = u64::MAX;
const STDIN: u64 = u64::MAX - 1;

/// One epoll loop per worker; more than one share the port by SO_REUSEPORT.
pub(crate) fn serve(addr: SocketAddr, workers: usize, http: bool) -> io::Result<()> {
    let shared = workers > 1;
    let first = sys::listen(addr, shared)?;
    let addr = first.local_addr()?;
    for _ in 1..workers {
        let next = sys::listen(addr, shared)?;
        thread::Builder::new().name("raw".into()).spawn(move || {
            if let Err(error) = Epoll::new().and_then(|epoll| serve_loop(&epoll, &next, http)) {
                eprintln!("raw: {error}");
                std::process::exit(1);
            }
        })?;
    }
    println!("listening on {addr}");
    let epoll = Epoll::new()?;
    child::watch_stdin(&epoll, STDIN)?;
    serve_loop(&epoll, &first, http)
}

struct Conn {
    stream: TcpStream,
    /// What a short write left over; while there is any, the connection is not read.
    unsent: Vec<u8>,
    heads: Heads,
}

fn serve_loop(epoll: &Epoll, listener: &TcpListener, http: bool) -> io::Result<()> {
    epoll.add(listener, EPOLLIN, LISTENER)?;
    let mut events = EventBuf::new(MAX_EVENTS);
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut buf = [0; BUFFER];
    loop {
        for (_, token) in epoll.wait(&mut events, -1)? {
            match token {
                LISTENER => {
                    accept_all(epoll, listener, &mut conns, &mut free)?;
                    continue;
                }
                STDIN => {
                    child::read_stdin();
                    continue;
                }
                _ => {}
            }
            let slot = &mut conns[token as usize];
            let Some(conn) = slot else { continue };
            let outcome = match conn.unsent.is_empty() {
                true => answer(epoll, conn, token, &mut buf, http),
                false => flush(epoll, conn, token),
            };
            // An end or an error: either way this connection is over, and dropping it closes it.
            if !matches!(outcome, Ok(true)) {
                *slot = None;
                free.push(token as usize);
            }
        }
    }
}

fn accept_all(
    epoll: &Epoll,
    listener: &TcpListener,
    conns: &mut Vec<Option<Conn>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let stream = match sys::uninterrupted(|| sys::accept(listener)) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let slot = free.pop().unwrap_or_else(|| {
            conns.push(None);
            conns.len() - 1
        });
        epoll.add(&stream, EPOLLIN, slot as u64)?;
        conns[slot] = Some(Conn { stream, unsent: Vec::new(), heads: Heads::default() });
    }
}

/// One read and one write; false at the end of the stream.
fn answer(epoll: &Epoll, conn: &mut Conn, token: u64, buf: &mut [u8], http: bool) -> io::Result<bool> {
    let read = match conn.stream.read(buf) {
        Ok(0) => return Ok(false),
        Ok(n) => n,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    let bytes = if http { conn.heads.answers(&buf[..read]) } else { &buf[..read] };
    let written = if bytes.is_empty() { 0 } else { write(&conn.stream, bytes)? };
    if written < bytes.len() {
        conn.unsent.extend_from_slice(&bytes[written..]);
        epoll.modify(&conn.stream, EPOLLOUT, token)?;
    }
    Ok(true)
}

fn flush(epoll: &Epoll, conn: &mut Conn, token: u64) -> io::Result<bool> {
    let written = write(&conn.stream, &conn.unsent)?;
    conn.unsent.drain(..written);
    if conn.unsent.is_empty() {
        epoll.modify(&conn.stream, EPOLLIN, token)?;
    }
    Ok(true)
}

/// How much the socket took, nothing included.
fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}
