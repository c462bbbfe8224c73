//! An echo server with a handler that does what none should: it blocks its thread. The others do not notice.
//!
//! ```text
//! cargo run --release --example blocking
//! cargo run --release --example echo_load -- --addr 127.0.0.1:7002 --block 4     (the longest gap: milliseconds)
//!
//! nc 127.0.0.1 7002                                                              (type BLOCK, in several windows)
//! ```

mod args;
mod server;

use gopark::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

const HELP: &str = "\
An echo server: what is sent to it comes back; what begins with BLOCK a second later, for which its handler blocks a thread.

  --addr HOST:PORT   where to listen; port 0 lets the system choose (default: 127.0.0.1:7002)
  --workers N        how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help             this text

Its first line on stdout is `listening on HOST:PORT`.
";

fn main() {
    server::run(HELP, "127.0.0.1:7002", echo)
}

/// A connection's task.
async fn echo(stream: TcpStream) {
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        if buf[..n].starts_with(b"BLOCK") {
            // Not `gopark::time::sleep`, and not in `block_in_place`: the thread is gone for a second.
            sleep(Duration::from_secs(1));
        }
        if stream.write_all(&buf[..n]).await.is_err() {
            break;
        }
    }
}
