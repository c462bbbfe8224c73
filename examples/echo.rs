//! An echo server. Run it, and talk to it from another terminal:
//!
//! ```text
//! cargo run --release --example echo
//!
//! nc 127.0.0.1 7000                                                  (what you type comes back)
//! cargo run --release --example echo_load -- --conns 64 --secs 5     (or a thousand times a millisecond)
//! ```

mod args;
mod server;

use gopark::net::TcpStream;

const HELP: &str = "\
An echo server: what is sent to it comes back.

  --addr HOST:PORT   where to listen; port 0 lets the system choose (default: 127.0.0.1:7000)
  --workers N        how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help             this text

Its first line on stdout is `listening on HOST:PORT`.
";

fn main() {
    server::run(HELP, "127.0.0.1:7000", echo)
}

/// A connection's task. It ends with the connection, whoever ended that and how.
async fn echo(stream: TcpStream) {
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        if stream.write_all(&buf[..n]).await.is_err() {
            break;
        }
    }
}
