//! The load client: one thread on epoll, and every byte that comes back is compared with the one that went out.
//!
//! To an HTTP server it sends so many requests at once, which count as one message.
//!
//! A closed loop by default: each connection sends its next message when the last one is back. With a rate, messages go
//! out on schedule, one after the other with equal gaps, and a message's latency counts from when it was due.

use crate::Failure;
use crate::hist::Hist;
use crate::http::{ANSWER, REQUEST};
use crate::json::Json;
use crate::pattern::{PIECE, Pattern};
use crate::stall::BLOCK;
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, EventBuf};
use crate::watch::{Phase, Watch};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const MAX_EVENTS: usize = 1024;
const TICKER: u64 = u64::MAX;
/// The first of those that block; connections have lower ones.
const BLOCKER: u64 = 1 << 63;
/// The first of those that are idle.
const IDLE: u64 = 1 << 62;
/// So many connections are made before the first of them must have echoed once: no accept queue overflows.
const BULK: usize = 128;
/// A server that echoes nothing for so long is broken.
const STALL: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) addr: SocketAddr,
    pub(crate) conns: usize,
    pub(crate) bytes: usize,
    /// So many HTTP requests for a message, instead of bytes that come back as they are.
    pub(crate) requests: Option<usize>,
    /// So many further connections that say nothing.
    pub(crate) idle: usize,
    /// Load that is not counted, before the window.
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    /// Messages per second and connection; None: as fast as they come back.
    pub(crate) rate: Option<f64>,
}

pub(crate) struct Report {
    /// How long the window really was.
    secs: f64,
    latency: Hist,
    errors: u64,
    first_error: Option<String>,
}

impl Report {
    pub(crate) fn round_trips(&self) -> u64 {
        self.latency.count()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.round_trips() as f64 / self.secs
    }

    pub(crate) fn latency(&self) -> &Hist {
        &self.latency
    }

    /// Fails where any byte was wrong, any connection broke, or nothing came back at all.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.first_error {
            Some(error) => Err(Failure::run(format!("{} connections failed, the first: {error}", self.errors))),
            None if self.round_trips() == 0 => Err(Failure::run("no message came back within the window")),
            None => Ok(()),
        }
    }

    pub(crate) fn json(&self) -> Json {
        let micros = |ns: u64| Json::Num(ns as f64 / 1e3);
        Json::map([
            ("secs", Json::Num(self.secs)),
            ("round_trips", Json::Int(self.round_trips())),
            ("per_second", Json::Num(self.per_second())),
            ("p50_us", micros(self.latency.at(0.5))),
            ("p99_us", micros(self.latency.at(0.99))),
            ("p999_us", micros(self.latency.at(0.999))),
            ("max_us", micros(self.latency.max())),
            ("errors", Json::Int(self.errors)),
        ])
    }
}

/// Runs a plan. `probe` is called where the window begins and where it ends, and its two answers are returned.
pub(crate) fn run_between<T>(plan: &Plan, mut probe: impl FnMut() -> io::Result<T>) -> Result<(Report, T, T), Failure> {
    let mut client = Client::new(plan)?;
    client.connect()?;
    client.connect_idle()?;
    let mut pace = plan.rate.map(|rate| Pace::start(&client.epoll, plan.conns, rate)).transpose()?;
    if pace.is_none() {
        client.send_on_all(0);
    }
    client.turn_until(sys::now() + plan.warm_up.as_nanos() as u64, pace.as_mut())?;
    let before = probe()?;
    let start = sys::now();
    client.counting = true;
    client.turn_until(start + plan.window.as_nanos() as u64, pace.as_mut())?;
    client.counting = false;
    let end = sys::now();
    let after = probe()?;
    drop(pace);
    client.drain()?;
    let Client { latency, errors, first_error, .. } = client;
    Ok((Report { secs: (end - start) as f64 / 1e9, latency, errors, first_error }, before, after))
}

/// What happens beside a load with a rate, after its warm-up and its window.
#[derive(Clone)]
pub(crate) struct Blocks {
    /// So many further connections send one message each at the same time, and so often.
    pub(crate) conns: usize,
    pub(crate) times: usize,
    /// For how long each keeps a thread, about.
    pub(crate) length: Duration,
    /// Between one time and the next.
    pub(crate) pause: Duration,
    /// Whether their messages ask the server to block.
    pub(crate) told: bool,
}

/// Runs a plan with a rate, and then blocks. `probe` is called where the first window begins and where the last one ends.
pub(crate) fn run_blocked<T>(
    plan: &Plan,
    blocks: &Blocks,
    mut probe: impl FnMut() -> io::Result<T>,
) -> Result<(Watch, T, T), Failure> {
    let rate = plan.rate.ok_or_else(|| Failure::run("who waits for what is blocked sends nothing"))?;
    let mut client = Client::new(plan)?;
    client.connect()?;
    client.connect_blockers(blocks.conns)?;
    let mut pace = Pace::start(&client.epoll, plan.conns, rate)?;
    client.turn_until(sys::now() + plan.warm_up.as_nanos() as u64, Some(&mut pace))?;
    let before = probe()?;
    let start = sys::now();
    client.watch.open(Phase::Calm, start);
    client.turn_until(start + plan.window.as_nanos() as u64, Some(&mut pace))?;
    client.watch.close(sys::now());
    let begin = if blocks.told { BLOCK } else { b"" };
    for _ in 0..blocks.times {
        let start = sys::now();
        client.watch.open(Phase::Blocked, start);
        client.call_blockers(begin)?;
        client.turn_until(start + blocks.length.as_nanos() as u64, Some(&mut pace))?;
        while !client.blockers_are_back() {
            client.turn(STALL.as_nanos() as u64, Some(&mut pace))?;
        }
        client.watch.close(sys::now());
        client.turn_until(sys::now() + blocks.pause.as_nanos() as u64, Some(&mut pace))?;
    }
    let after = probe()?;
    drop(pace);
    client.wait_for_all()?;
    match client.first_error {
        Some(error) => Err(Failure::run(format!("{} connections failed, the first: {error}", client.errors))),
        None => Ok((client.watch, before, after)),
    }
}

/// A connection whose message makes the server block.
struct Blocker {
    stream: TcpStream,
    message: Vec<u8>,
    /// How much of it is back.
    received: usize,
}

struct Conn {
    /// None after an error.
    stream: Option<TcpStream>,
    /// Bytes that should go out in all, and that have; that should come back, and that have.
    goal: u64,
    sent: u64,
    due: u64,
    received: u64,
    /// When the message under way was sent; not used with a rate.
    since: u64,
    wants_out: bool,
}

/// What happens when a message is back.
#[derive(Clone, Copy)]
enum Then {
    /// Nothing.
    Rest,
    /// The next one goes out.
    Again,
    /// Nothing, as its time comes by itself. Message `n` of connection `c` was due at `start + (n * conns + c) * step`.
    Paced { start: u64, step: f64 },
}

struct Client<'a> {
    plan: &'a Plan,
    /// What is sent, and the length of a message; the same of what comes back.
    out: (Pattern, u64),
    back: (Pattern, u64),
    epoll: Epoll,
    events: EventBuf,
    buf: Vec<u8>,
    conns: Vec<Conn>,
    idle: Vec<TcpStream>,
    then: Then,
    counting: bool,
    last_progress: u64,
    latency: Hist,
    errors: u64,
    first_error: Option<String>,
    blockers: Vec<Blocker>,
    watch: Watch,
}

impl<'a> Client<'a> {
    fn new(plan: &'a Plan) -> Result<Self, Failure> {
        let of_http = |text: &[u8], requests: usize| (Pattern::of(text), (text.len() * requests) as u64);
        let echoed = || (Pattern::new(), plan.bytes as u64);
        let out = plan.requests.map_or_else(echoed, |requests| of_http(REQUEST, requests));
        let back = plan.requests.map_or_else(echoed, |requests| of_http(ANSWER, requests));
        Ok(Client {
            plan,
            out,
            back,
            epoll: Epoll::new()?,
            events: EventBuf::new(MAX_EVENTS),
            buf: vec![0; PIECE],
            conns: Vec::with_capacity(plan.conns),
            idle: Vec::with_capacity(plan.idle),
            then: Then::Rest,
            counting: false,
            last_progress: sys::now(),
            latency: Hist::new(),
            errors: 0,
            first_error: None,
            blockers: Vec::new(),
            watch: Watch::new(),
        })
    }

    /// Makes all connections; each has echoed one message when this returns.
    fn connect(&mut self) -> Result<(), Failure> {
        while self.conns.len() < self.plan.conns {
            let first = self.conns.len();
            for index in first..self.plan.conns.min(first + BULK) {
                let stream = self.connect_one(index as u64)?;
                let conn =
                    Conn { stream: Some(stream), goal: 0, sent: 0, due: 0, received: 0, since: 0, wants_out: false };
                self.conns.push(conn);
            }
            self.send_on_all(first);
            self.drain()?;
        }
        Ok(())
    }

    /// Makes the connections that say nothing. As each of the others has echoed by then, and again in between, the server
    /// keeps up.
    fn connect_idle(&mut self) -> Result<(), Failure> {
        while self.idle.len() < self.plan.idle {
            for index in self.idle.len()..self.plan.idle.min(self.idle.len() + BULK) {
                self.idle.push(self.connect_one(IDLE + index as u64)?);
            }
            self.send_on_all(0);
            self.drain()?;
        }
        Ok(())
    }

    fn connect_one(&self, token: u64) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect_timeout(&self.plan.addr, STALL)
            .map_err(|error| Failure::run(format!("connection {} to {}: {error}", token & !BLOCKER, self.plan.addr)))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Closing resets: thousands of connections in TIME_WAIT would be the next round's noise.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        self.epoll.add(&stream, EPOLLIN, token)?;
        Ok(stream)
    }

    /// Makes the connections that will block; each has echoed one message when this returns.
    fn connect_blockers(&mut self, count: usize) -> Result<(), Failure> {
        for index in 0..count {
            let stream = self.connect_one(BLOCKER + index as u64)?;
            self.blockers.push(Blocker { stream, message: Vec::new(), received: 0 });
        }
        self.call_blockers(b"")?;
        while !self.blockers_are_back() {
            self.turn(STALL.as_nanos() as u64, None)?;
        }
        Ok(())
    }

    /// Each sends a message that begins so.
    fn call_blockers(&mut self, begin: &[u8]) -> Result<(), Failure> {
        for (index, blocker) in self.blockers.iter_mut().enumerate() {
            let rest = self.plan.bytes.saturating_sub(begin.len());
            blocker.message = [begin, self.out.0.piece(self.plan.conns + index, 0, rest)].concat();
            blocker.received = 0;
            // Nothing else is under way here, so it takes all.
            blocker.stream.write_all(&blocker.message)?;
        }
        Ok(())
    }

    fn blockers_are_back(&self) -> bool {
        self.blockers.iter().all(|blocker| blocker.received == blocker.message.len())
    }

    fn receive_blocked(&mut self, index: usize) -> Result<(), Failure> {
        let Blocker { stream, message, received } = &mut self.blockers[index];
        match stream.read(&mut self.buf) {
            Ok(0) => return Err(Failure::run("the server closed a connection that blocks")),
            Ok(n) if message[*received..].starts_with(&self.buf[..n]) => *received += n,
            Ok(_) => return Err(Failure::run("something else came back from a handler that blocks")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Failure::run(format!("reading from a handler that blocks: {error}"))),
        }
        self.last_progress = sys::now();
        Ok(())
    }

    fn send_on_all(&mut self, from: usize) {
        let now = sys::now();
        (from..self.conns.len()).for_each(|index| self.send_message(index, now));
    }

    /// Lets load flow until a moment on the clock.
    fn turn_until(&mut self, until: u64, mut pace: Option<&mut Pace>) -> Result<(), Failure> {
        self.then = match &pace {
            Some(pace) => Then::Paced { start: pace.start, step: pace.step },
            None => Then::Again,
        };
        loop {
            let now = sys::now();
            if now >= until {
                return Ok(());
            }
            self.turn(until.saturating_sub(now).min(STALL.as_nanos() as u64), pace.as_deref_mut())?;
        }
    }

    /// Waits for everything that is under way.
    fn drain(&mut self) -> Result<(), Failure> {
        self.then = Then::Rest;
        self.wait_for_all()
    }

    fn wait_for_all(&mut self) -> Result<(), Failure> {
        while self.conns.iter().any(|conn| conn.stream.is_some() && conn.received < conn.due) {
            self.turn(STALL.as_nanos() as u64, None)?;
        }
        Ok(())
    }

    /// One wait and its events.
    fn turn(&mut self, limit: u64, mut pace: Option<&mut Pace>) -> Result<(), Failure> {
        let mut events = std::mem::replace(&mut self.events, EventBuf::new(0));
        for (mask, token) in self.epoll.wait(&mut events, limit.div_ceil(1_000_000) as i32)? {
            if token == TICKER {
                if let Some(pace) = pace.as_deref_mut() {
                    pace.send_due(self);
                }
                continue;
            }
            if token >= BLOCKER {
                self.receive_blocked((token - BLOCKER) as usize)?;
                continue;
            }
            if token >= IDLE {
                return Err(Failure::run("a connection that said nothing was answered or closed"));
            }
            let index = token as usize;
            let outcome = match mask & EPOLLOUT {
                0 => self.receive(index),
                _ => self.send(index).and_then(|()| if mask == EPOLLOUT { Ok(()) } else { self.receive(index) }),
            };
            self.settle(index, outcome);
        }
        self.events = events;
        if sys::now() - self.last_progress > STALL.as_nanos() as u64 {
            let why = self.first_error.take().unwrap_or_else(|| "the server is silent".into());
            return Err(Failure::run(format!("nothing came back for {STALL:?}: {why}")));
        }
        Ok(())
    }

    /// Puts one more message in the stream.
    fn send_message(&mut self, index: usize, now: u64) {
        let conn = &mut self.conns[index];
        conn.goal += self.out.1;
        conn.due += self.back.1;
        conn.since = now;
        let outcome = self.send(index);
        self.settle(index, outcome);
    }

    fn settle(&mut self, index: usize, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            self.errors += 1;
            self.first_error.get_or_insert(error);
            self.conns[index].stream = None;
        }
    }

    /// Sends what the socket takes, and has epoll say when it takes more.
    fn send(&mut self, index: usize) -> Result<(), String> {
        let conn = &mut self.conns[index];
        let Some(stream) = &mut conn.stream else { return Ok(()) };
        let mut full = false;
        while conn.sent < conn.goal && !full {
            let len = (conn.goal - conn.sent).min(PIECE as u64) as usize;
            match stream.write(self.out.0.piece(index, conn.sent, len)) {
                Ok(n) => conn.sent += n as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => full = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("write: {error}")),
            }
        }
        if full != conn.wants_out {
            conn.wants_out = full;
            let mask = if full { EPOLLIN | EPOLLOUT } else { EPOLLIN };
            self.epoll.modify(stream, mask, index as u64).map_err(|error| format!("epoll_ctl: {error}"))?;
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<(), String> {
        let conn = &mut self.conns[index];
        let Some(stream) = &mut conn.stream else { return Ok(()) };
        let count = match stream.read(&mut self.buf) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(n) => n,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => return Ok(()),
            Err(error) => return Err(format!("read: {error}")),
        };
        if conn.received + count as u64 > conn.due {
            return Err("more came back than was asked for".into());
        }
        if self.buf[..count] != *self.back.0.piece(index, conn.received, count) {
            return Err(format!("a wrong byte came back, at {} or up to {count} bytes later", conn.received));
        }
        let bytes = self.back.1;
        let whole_before = conn.received / bytes;
        conn.received += count as u64;
        let whole = conn.received / bytes;
        if whole > whole_before {
            self.completed(index, whole_before..whole);
        }
        Ok(())
    }

    fn completed(&mut self, index: usize, messages: std::ops::Range<u64>) {
        let now = sys::now();
        self.last_progress = now;
        for message in messages {
            let since = match self.then {
                // The first message of each connection was the one that `connect` sends.
                Then::Paced { start, step } => {
                    start + (((message - 1) * self.plan.conns as u64 + index as u64) as f64 * step) as u64
                }
                Then::Rest | Then::Again => self.conns[index].since,
            };
            if self.counting {
                self.latency.record(now.saturating_sub(since));
            }
            self.watch.back(since, now);
        }
        if let Then::Again = self.then {
            self.send_message(index, now);
        }
    }
}

/// The schedule of a load with a rate.
struct Pace {
    ticker: File,
    start: u64,
    /// From one message to the next, of whichever connection, in nanoseconds.
    step: f64,
    due: u64,
}

impl Pace {
    fn start(epoll: &Epoll, conns: usize, rate: f64) -> Result<Self, Failure> {
        let step = 1e9 / (rate * conns as f64);
        let start = sys::now() + 1_000_000;
        let ticker = sys::ticker(start, (step as u64).max(1))?;
        epoll.add(&ticker, EPOLLIN, TICKER)?;
        Ok(Pace { ticker, start, step, due: 0 })
    }

    /// Sends every message whose time has come.
    fn send_due(&mut self, client: &mut Client<'_>) {
        // Only resets the timer's readiness: how many messages are due is told by the clock, without rounding.
        let _ = self.ticker.read(&mut [0; 8]);
        let now = sys::now();
        loop {
            let due = self.start + (self.due as f64 * self.step) as u64;
            if due > now {
                return;
            }
            client.watch.sent(due, now);
            let index = (self.due % client.conns.len() as u64) as usize;
            client.send_message(index, now);
            self.due += 1;
        }
    }
}
