//! An HTTP/1.1 server that says "Hello, world". Run it, and ask it from another terminal:
//!
//! ```text
//! cargo run --release --example http_hello
//!
//! curl -i http://127.0.0.1:8000/
//! wrk -t2 -c64 -d5 http://127.0.0.1:8000/
//! ```
//!
//! It keeps connections alive, answers pipelined requests in order, and answers as many at once as one read has brought.
//! What it leaves out: it looks at no path, and reads no request body. A request that announces one is answered like any
//! other, and the connection is closed after that answer, as the body's bytes must not be taken for the next request.
//! No `Date` is sent, and an idle connection is kept for ever.

mod args;
mod server;

use gopark::net::TcpStream;
use gopark::time::{Duration, timeout};
use std::net::Shutdown;

const HELP: &str = "\
An HTTP/1.1 server that says \"Hello, world\".

  --addr HOST:PORT   where to listen; port 0 lets the system choose (default: 127.0.0.1:8000)
  --workers N        how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help             this text

Its first line on stdout is `listening on HOST:PORT`.
";

/// The longest request head, with the empty line at its end.
const MAX_HEAD: usize = 16 << 10;
/// Answers are sent when there are so many bytes of them, or nothing more to answer.
const BATCH: usize = 64 << 10;
/// What a client that is told to stop may still send.
const MAX_DRAIN: usize = 4 << 20;
const MAX_LINGER: Duration = Duration::from_secs(5);

const BODY: &[u8] = b"Hello, world";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const HEAD_TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn main() {
    server::run(HELP, "127.0.0.1:8000", hello)
}

/// A connection's task.
async fn hello(stream: TcpStream) {
    let mut input = Input { buf: vec![0; MAX_HEAD].into(), start: 0, scanned: 0, end: 0 };
    let mut answers = Vec::new();
    loop {
        let mut close = false;
        while !close && answers.len() < BATCH {
            match input.next_head() {
                Ok(Some(head)) => close = answer(head, &mut answers),
                Ok(None) => break,
                Err(TooLarge) => {
                    answers.extend_from_slice(HEAD_TOO_LARGE);
                    close = true;
                }
            }
        }
        if !answers.is_empty() {
            if stream.write_all(&answers).await.is_err() {
                return;
            }
            answers.clear();
            if close {
                return linger(stream, input.buf).await;
            }
            // There may be more of the burst.
            continue;
        }
        match stream.read(input.room()).await {
            Ok(n @ 1..) => input.end += n,
            _ => return,
        }
    }
}

/// What has been read and not yet answered: `buf[start..end]`. It holds the longest head that is allowed, and no more.
struct Input {
    buf: Box<[u8]>,
    start: usize,
    /// Up to here nothing ends a head; so however a head is cut up, each byte is looked at a few times at most.
    scanned: usize,
    end: usize,
}

/// The buffer is full, and the head has no end.
struct TooLarge;

impl Input {
    /// Takes the next head, with its empty line; `None` if it is not all there.
    fn next_head(&mut self) -> Result<Option<&[u8]>, TooLarge> {
        // RFC 9112, section 2.2: a server should overlook empty lines before a request.
        while self.scanned == self.start && self.buf[self.start..self.end].starts_with(b"\r\n") {
            self.start += 2;
            self.scanned = self.start;
        }
        match self.buf[self.scanned..self.end].windows(4).position(|w| w == b"\r\n\r\n") {
            Some(at) => {
                let head = self.start..self.scanned + at + 4;
                self.start = head.end;
                self.scanned = head.end;
                Ok(Some(&self.buf[head]))
            }
            None if self.start == 0 && self.end == self.buf.len() => Err(TooLarge),
            None => {
                self.scanned = self.scanned.max(self.end.saturating_sub(3));
                Ok(None)
            }
        }
    }

    /// Where to read to. What is left of the last read moves to the front: once, as it is there then.
    fn room(&mut self) -> &mut [u8] {
        self.buf.copy_within(self.start..self.end, 0);
        self.scanned -= self.start;
        self.end -= self.start;
        self.start = 0;
        &mut self.buf[self.end..]
    }
}

/// Appends the answer to a request. True if it is the connection's last.
fn answer(head: &[u8], answers: &mut Vec<u8>) -> bool {
    let mut lines = head.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
    let mut words = lines.next().unwrap_or_default().split(|&b| b == b' ');
    let (method, _path, version) = (words.next(), words.next(), words.next());
    let is_1_0 = match version {
        Some(b"HTTP/1.0") => true,
        Some(version) if version.starts_with(b"HTTP/1.") => false,
        _ => {
            answers.extend_from_slice(BAD_REQUEST);
            return true;
        }
    };
    let (mut close, mut keep_alive, mut body) = (false, false, false);
    for line in lines {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"connection") {
            for option in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                close |= option.eq_ignore_ascii_case(b"close");
                keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            body |= value != b"0";
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            body = true;
        }
    }
    let last = close || body || (is_1_0 && !keep_alive);
    answers.extend_from_slice(OK);
    if last {
        answers.extend_from_slice(b"Connection: close\r\n");
    } else if is_1_0 {
        answers.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    answers.extend_from_slice(b"\r\n");
    if method != Some(b"HEAD") {
        answers.extend_from_slice(BODY);
    }
    last
}

/// Closes so that the client can read the last answer. Closed with input unread, the system would reset the connection,
/// and the client's might throw the answer away: so end the write side, and read on until the client is done, but not
/// for ever. (RFC 9112, section 9.6.)
async fn linger(stream: TcpStream, mut buf: Box<[u8]>) {
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    // Late or not, the connection is closed now.
    let _ = timeout(MAX_LINGER, async {
        let mut left = MAX_DRAIN;
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            left = left.saturating_sub(n);
            if left == 0 {
                break;
            }
        }
    })
    .await;
}
