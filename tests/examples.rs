//! The examples as their users meet them: as programs, over sockets of std's.

mod support;

use std::fs::DirEntry;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use support::watchdog;

const SERVERS: [&str; 5] = ["blocking", "echo", "http_hello", "idle", "proxy"];
const ALL: [&str; 6] = ["blocking", "echo", "http_hello", "proxy", "idle", "echo_load"];

/// An example, ready to be started. It does not outlive the test, even if that is aborted.
fn example(name: &str, args: &[&str]) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    // From target/debug/deps/examples-0123 to target/debug/examples.
    path.pop();
    path.set_file_name("examples");
    path.push(name);
    assert!(path.exists(), "{} is not built: `cargo test` or `cargo build --examples` does that", path.display());
    let mut command = Command::new(path);
    command.args(args).env_remove("GOPARK_PROCS").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: prctl(2) is async-signal-safe, and takes no pointer here.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    command
}

/// A server, killed and reaped when it is dropped.
struct Server {
    child: Child,
    addr: String,
}

impl Server {
    /// On a port that the system chooses, and known by the first line of its output.
    fn start(name: &str, args: &[&str]) -> Server {
        Server::of(example(name, &[&["--addr", "127.0.0.1:0"], args].concat()))
    }

    fn of(mut command: Command) -> Server {
        let mut server = Server { child: command.spawn().unwrap(), addr: String::new() };
        let mut line = String::new();
        BufReader::new(server.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.strip_prefix("listening on ").and_then(|rest| rest.strip_suffix('\n'));
        server.addr = addr.unwrap_or_else(|| panic!("the first line is {line:?}")).to_owned();
        server
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn threads(&self) -> usize {
        self.entries("task").count()
    }

    /// Its open sockets: ThreadSanitizer opens descriptors of its own when it first looks up a name.
    fn sockets(&self) -> usize {
        let target = |entry: DirEntry| std::fs::read_link(entry.path()).ok();
        self.entries("fd").filter_map(target).filter(|to| to.to_string_lossy().starts_with("socket:")).count()
    }

    fn entries(&self, what: &str) -> impl Iterator<Item = DirEntry> {
        std::fs::read_dir(format!("/proc/{}/{what}", self.child.id())).unwrap().map(Result::unwrap)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, says: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.contains(says) && stderr.lines().count() == 1, "{stderr:?} is no sentence with {says:?}");
}

#[test]
fn help_says_what_the_options_are() {
    let _watchdog = watchdog(60);
    for name in ALL {
        for arg in [&["--help"][..], &["--workers", "1", "-h"]] {
            let output = example(name, arg).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty());
            for option in ["--addr HOST:PORT", "--workers N", "--help"] {
                assert!(text(&output.stdout).contains(option), "{name} has {option}");
            }
        }
    }
}

#[test]
fn a_bad_argument_is_named_and_ends_with_status_2() {
    let _watchdog = watchdog(60);
    for name in ALL {
        for (args, says) in [
            (&["--addr", "127.0.0.1"][..], "127.0.0.1"),
            (&["--addr=:7000"], "HOST:PORT"),
            (&["--addr", "127.0.0.1:65536"], "65536"),
            (&["--addr"], "--addr"),
            (&["--workers", "0"], "--workers"),
            (&["--workers=many"], "many"),
            (&["--workers", "-1"], "-1"),
            (&["--workers", "1", "--workers=2"], "--workers=2"),
            (&["--worker", "1"], "\"--worker\""),
            (&["--addresses=127.0.0.1:0"], "--addresses"),
            (&["7000"], "7000"),
        ] {
            assert_refused(&example(name, args).output().unwrap(), says);
        }
        assert_refused(&example(name, &[]).env("GOPARK_PROCS", "none").output().unwrap(), "GOPARK_PROCS");
    }
    for (args, says) in [
        (&["--conns", "0"][..], "--conns"),
        (&["--secs", "soon"], "soon"),
        (&["--secs", "NaN"], "NaN"),
        (&["--bytes=0"], "--bytes"),
        (&["--addr", "127.0.0.1:0"], "port"),
    ] {
        assert_refused(&example("echo_load", args).output().unwrap(), says);
    }
    for (args, says) in [(&["--target", "127.0.0.1"][..], "127.0.0.1"), (&["--target=:7000"], "--target")] {
        assert_refused(&example("proxy", args).output().unwrap(), says);
    }
}

#[test]
fn an_address_in_use_is_named_and_ends_with_status_2() {
    let _watchdog = watchdog(60);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for name in SERVERS {
        assert_refused(&example(name, &["--addr", &addr]).output().unwrap(), &addr);
    }
}

#[test]
fn the_first_line_says_where_it_listens() {
    let _watchdog = watchdog(60);
    for name in SERVERS {
        for workers in [&[][..], &["--workers", "1"], &["--workers=3"]] {
            let server = Server::start(name, workers);
            let port = server.addr.strip_prefix("127.0.0.1:").and_then(|port| port.parse::<u16>().ok());
            assert!(port.is_some_and(|port| port > 0), "{}", server.addr);
            drop(server.connect());
        }
    }
}

/// Noise that differs by `seed`.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed).wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}

#[test]
fn echo_sends_back_every_byte_of_every_connection_and_closes_after_the_last() {
    let _watchdog = watchdog(60);
    let server = Server::start("echo", &["--workers", "2"]);
    thread::scope(|scope| {
        for seed in 0..8 {
            let stream = server.connect();
            scope.spawn(move || {
                let sent = noise(seed, (1 << 20) + seed);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        (&stream).write_all(&sent).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::new();
                    (&stream).read_to_end(&mut back).unwrap();
                    assert!(back == sent, "connection {seed}");
                });
            });
        }
    });
}

/// With both workers blocked for a second, somebody else's longest round trip takes that second, unless their Ps are taken.
#[test]
fn handlers_block_and_another_connection_goes_on() {
    let _watchdog = watchdog(60);
    let server = Server::start("blocking", &["--workers", "2"]);
    let (blockers, mut other) = ([server.connect(), server.connect()], server.connect());
    let mut longest_trip = || {
        blockers.iter().for_each(|mut stream| stream.write_all(b"BLOCK it").unwrap());
        thread::scope(|scope| {
            let answers = blockers.each_ref().map(|mut stream| {
                scope.spawn(move || {
                    let mut back = [0; 8];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(&back, b"BLOCK it");
                })
            });
            let mut longest = Duration::ZERO;
            while !answers.iter().all(|answer| answer.is_finished()) {
                let start = Instant::now();
                let mut back = [0; 8];
                other.write_all(b"no BLOCK").unwrap();
                other.read_exact(&mut back).unwrap();
                assert_eq!(&back, b"no BLOCK");
                longest = longest.max(start.elapsed());
            }
            longest
        })
    };
    // On a machine that is busy otherwise it may not show at once.
    while longest_trip() > Duration::from_millis(500) {}
}

#[test]
fn proxy_passes_on_every_byte_and_each_end_by_itself() {
    let _watchdog = watchdog(60);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Server::start("proxy", &["--target", &target.local_addr().unwrap().to_string(), "--workers", "2"]);
    let open = proxy.sockets();
    thread::scope(|scope| {
        for seed in 0..4 {
            let client = proxy.connect();
            let server = target.accept().unwrap().0;
            scope.spawn(move || {
                let all = noise(seed, (8 << 20) + seed);
                let passes = |from: &TcpStream, to: &TcpStream| {
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            let mut from = from;
                            // Small pieces first, as long as nothing waits, and then all of it.
                            all[..1000].chunks(10).for_each(|some| from.write_all(some).unwrap());
                            from.write_all(&all[1000..]).unwrap();
                            from.shutdown(Shutdown::Write).unwrap();
                        });
                        let (mut to, mut got) = (to, Vec::new());
                        to.read_to_end(&mut got).unwrap();
                        assert!(got == all, "connection {seed}");
                    });
                };
                // The second direction works when the first has ended.
                if seed % 2 == 0 {
                    passes(&client, &server);
                    passes(&server, &client);
                } else {
                    passes(&server, &client);
                    passes(&client, &server);
                }
            });
        }
    });
    // It closes once it has seen both ends; that may take a moment, and the watchdog's patience at most.
    while proxy.sockets() > open {
        thread::yield_now();
    }
}

#[test]
fn proxy_without_a_target_says_so_and_goes_on() {
    let _watchdog = watchdog(60);
    let target = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut proxy = Server::start("proxy", &["--target", &target]);
    let mut complaints = BufReader::new(proxy.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    for _ in 0..3 {
        // An end or a reset: both tell the client.
        assert!(matches!(proxy.connect().read(&mut [0]), Ok(0) | Err(_)));
        let line = complaints.next().unwrap();
        assert!(line.contains("cannot pass") && line.contains(&target), "{line}");
    }
}

#[test]
fn out_of_descriptors_and_some_come_free() {
    let _watchdog = watchdog(60);
    let mut command = example("echo", &["--addr", "127.0.0.1:0", "--workers", "1"]);
    // SAFETY: setrlimit(2) is a system call and nothing else; `few` outlives it.
    unsafe {
        command.pre_exec(|| {
            let few = libc::rlimit { rlim_cur: 24, rlim_max: 24 };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &few) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    let server = Server::of(command);
    // Not all of them can be open at the same time; half of them can.
    let streams: Vec<_> = (0..30).map(|_| server.connect()).collect();
    let (first, last) = streams.split_at(15);
    let is_served = |mut stream: &TcpStream| {
        let mut back = [0; 5];
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    };
    is_served(&first[0]);
    for stream in first {
        stream.shutdown(Shutdown::Both).unwrap();
    }
    last.iter().for_each(is_served);
}

/// A client that reads answers one by one.
struct Http {
    stream: BufReader<TcpStream>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

impl Http {
    fn connect(server: &Server) -> Http {
        Http { stream: BufReader::new(server.connect()) }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n").unwrap_or_else(|| panic!("{line:?} has no end")).to_owned()
    }

    fn answer_to(&mut self, method: &str) -> Answer {
        let line = self.line();
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
        let status = status.unwrap_or_else(|| panic!("the status line is {line:?}"));
        let mut headers = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => break,
                line => {
                    let (name, value) = line.split_once(": ").unwrap();
                    headers.push((name.to_lowercase(), value.to_owned()));
                }
            }
        }
        let mut answer = Answer { status, headers, body: String::new() };
        if method != "HEAD" {
            let mut body = vec![0; answer.header("content-length").unwrap().parse().unwrap()];
            self.stream.read_exact(&mut body).unwrap();
            answer.body = text(&body).to_owned();
        }
        answer
    }

    #[track_caller]
    fn expect_hello(&mut self) -> Answer {
        let answer = self.answer_to("GET");
        let length = answer.header("content-length");
        assert_eq!((answer.status, length, &answer.body[..]), (200, Some("12"), "Hello, world"));
        answer
    }

    /// The server closes, with nothing more to say and without a reset.
    #[track_caller]
    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        assert_eq!(text(&rest), "");
    }
}

#[test]
fn a_head_in_any_fragments_gets_one_answer() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "1"]);
    let (mut http, mut other) = (Http::connect(&server), Http::connect(&server));
    for head in [GET, "\r\n\r\nGET / HTTP/1.1\r\n\r\n", "GET /\r/\n HTTP/1.1\r\nX:\r\n\r\r\n\r\n"] {
        for byte in head.as_bytes() {
            http.send([*byte]);
            // One worker: while it serves another connection, it has come to this one too.
            other.send(GET);
            other.expect_hello();
        }
        http.answer_to("GET");
        if head == GET {
            for cut in 1..head.len() {
                http.send(&head[..cut]);
                other.send(GET);
                other.expect_hello();
                http.send(head[cut..].to_owned() + &head[..cut]);
                http.expect_hello();
                http.send(&head[cut..]);
                http.expect_hello();
            }
        }
    }
}

#[test]
fn a_thousand_requests_in_one_write_get_a_thousand_answers() {
    // A hundred thousand answers: under a sanitizer that takes a while.
    let _watchdog = watchdog(240);
    let server = Server::start("http_hello", &["--workers", "2"]);
    let mut http = Http::connect(&server);
    for _ in 0..3 {
        http.send(GET.repeat(1000));
        (0..1000).for_each(|_| drop(http.expect_hello()));
    }
    // Nobody reads at first, and then everything is there.
    let mut writer = http.stream.get_ref().try_clone().unwrap();
    let written = Arc::new(Barrier::new(2));
    let all = thread::spawn({
        let written = written.clone();
        move || {
            writer.write_all(GET.repeat(100).as_bytes()).unwrap();
            written.wait();
            writer.write_all(GET.repeat(100_000).as_bytes()).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }
    });
    written.wait();
    (0..100_100).for_each(|_| drop(http.expect_hello()));
    all.join().unwrap();
    http.expect_end();
}

/// A head of so many bytes.
fn head_of(len: usize) -> String {
    let (start, end) = ("GET / HTTP/1.1\r\nX-Long: ", "\r\n\r\n");
    start.to_owned() + &"x".repeat(len - start.len() - end.len()) + end
}

#[test]
fn a_head_over_16_kib_gets_431_and_a_close() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "2"]);
    let mut http = Http::connect(&server);
    http.send(head_of(16 << 10) + GET + &head_of(16 << 10));
    (0..3).for_each(|_| drop(http.expect_hello()));
    for too_long in [(16 << 10) + 1, 17 << 10, 1 << 20] {
        for before in [0, 3] {
            let mut http = Http::connect(&server);
            // All of it, before anything of the answer is read; it must not be lost.
            http.send(GET.repeat(before) + &head_of(too_long) + GET);
            (0..before).for_each(|_| drop(http.expect_hello()));
            let answer = http.answer_to("GET");
            assert_eq!((answer.status, answer.header("connection")), (431, Some("close")));
            http.expect_end();
        }
    }
}

#[test]
fn a_head_without_end_is_not_read_for_ever() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "1"]);
    let mut http = Http::connect(&server);
    http.send("GET / HTTP/1.1\r\n");
    let line = "X-More: ".to_owned() + &"x".repeat(8 << 10) + "\r\n";
    let error = loop {
        if let Err(error) = http.stream.get_mut().write_all(line.as_bytes()) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn a_connection_is_kept_until_either_side_says_close() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "2"]);
    let mut http = Http::connect(&server);
    for _ in 0..3 {
        http.send(GET);
        assert_eq!(http.expect_hello().header("connection"), None);
    }
    for close in ["Connection: close", "connection:CLOSE", "Connection: keep-alive , Close"] {
        let mut http = Http::connect(&server);
        http.send(format!("{GET}GET / HTTP/1.1\r\n{close}\r\n\r\n{GET}{GET}"));
        assert_eq!(http.expect_hello().header("connection"), None);
        assert_eq!(http.expect_hello().header("connection"), Some("close"), "{close}");
        http.expect_end();
    }
    // The client has said all that it will, and waits for the answers.
    http.send(GET.repeat(2));
    http.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    http.expect_hello();
    http.expect_hello();
    http.expect_end();
}

#[test]
fn http_1_0_closes_unless_asked_to_keep_alive() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "2"]);
    let mut http = Http::connect(&server);
    http.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(http.expect_hello().header("connection"), Some("keep-alive"));
    http.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(http.expect_hello().header("connection"), Some("close"));
    http.expect_end();
}

#[test]
fn a_body_is_no_request() {
    let _watchdog = watchdog(60);
    let server = Server::start("http_hello", &["--workers", "2"]);
    for body in [format!("Content-Length: {}\r\n\r\n{GET}", GET.len()), "Transfer-Encoding: chunked\r\n\r\n".into()] {
        let mut http = Http::connect(&server);
        http.send(format!("POST / HTTP/1.1\r\n{body}"));
        assert_eq!(http.expect_hello().header("connection"), Some("close"));
        http.expect_end();
    }
    let mut http = Http::connect(&server);
    http.send(format!("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nHEAD / HTTP/1.1\r\n\r\n{GET}"));
    http.expect_hello();
    assert_eq!(http.answer_to("HEAD").header("content-length"), Some("12"));
    http.expect_hello();
    for nonsense in ["nonsense\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n"] {
        let mut http = Http::connect(&server);
        http.send(nonsense);
        assert_eq!(http.answer_to("GET").status, 400);
        http.expect_end();
    }
}

#[test]
fn echo_load_measures_echo_and_leaves_nothing_open() {
    let _watchdog = watchdog(60);
    let server = Server::start("echo", &["--workers", "2"]);
    let load = |args: &[&str]| example("echo_load", &[&["--addr", &server.addr], args].concat()).output().unwrap();
    let open = server.sockets();
    for args in [
        &["--secs", "0.2", "--conns", "200", "--workers", "1"][..],
        &["--secs", "0.2", "--conns=3", "--bytes=1"],
        &["--secs", "0.2", "--conns", "2", "--bytes", "3000000"],
        &["--secs", "1.1"],
    ] {
        let output = load(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        let report = text(&output.stdout);
        let trips: u64 = report.lines().nth(1).and_then(|l| l.split(' ').next()).unwrap().parse().unwrap();
        assert!(trips > 0, "{report}");
        for name in ["round trips/s", "p50 ", "p99 ", "p99.9 "] {
            assert!(report.contains(name), "{report}");
        }
        // One line per second, where stderr is no terminal.
        assert_eq!(text(&output.stderr).contains("round trips/s"), args == ["--secs", "1.1"]);
    }
    // It closes once it has read the end; that may take a moment, and the watchdog's patience at most.
    while server.sockets() > open {
        thread::yield_now();
    }
    // Two workers, two of their deputies at most, sysmon, and main.
    assert!(server.threads() <= 6, "{} threads", server.threads());
}

#[test]
fn idle_says_what_a_connection_takes_and_that_all_echo() {
    let _watchdog = watchdog(60);
    for workers in ["1", "2"] {
        let output = example("idle", &["--conns", "50", "--workers", workers]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let [_, took, echo] = text(&output.stdout).lines().collect::<Vec<_>>()[..] else { panic!("three lines") };
        assert!(took.starts_with("50 idle connections took ") && took.ends_with(" bytes each"), "{took}");
        assert_eq!(echo, "all of them echo");
    }
    assert_refused(&example("idle", &["--conns", "999999"]).output().unwrap(), "999999 connections");
}

/// An echo server that does something to what it sends back.
fn liar(mut lie: impl FnMut(&mut Vec<u8>) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf) {
            let mut back = buf[..n].to_vec();
            lie(&mut back);
            if back.is_empty() || stream.write_all(&back).is_err() {
                return;
            }
        }
    });
    addr
}

#[test]
fn echo_load_finds_every_lie() {
    let _watchdog = watchdog(60);
    let mut first = true;
    let addrs = [
        (liar(|back| back[17] ^= 1), "byte 17 came back as"),
        (liar(Vec::clear), "reading: "),
        (liar(move |back| back.truncate(if std::mem::take(&mut first) { 64 } else { 0 })), "reading: "),
        // One byte too many.
        (liar(|back| back.push(0)), " came back "),
    ];
    for (addr, says) in addrs {
        let args = ["--addr", &addr, "--conns", "1", "--secs", "0.2"];
        let output = example("echo_load", &args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(says), "{says:?} is not in {:?}", text(&output.stderr));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = example("echo_load", &["--addr", &nobody]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&nobody), "{:?}", text(&output.stderr));
}
