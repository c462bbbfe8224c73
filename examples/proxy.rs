//! A TCP proxy. Run it before the echo server, and talk to that by way of it:
//!
//! ```text
//! cargo run --release --example echo
//! cargo run --release --example proxy                               (listens on 127.0.0.1:7001)
//! cargo run --release --example echo_load -- --addr 127.0.0.1:7001
//! ```

mod args;
mod server;

use args::Args;
use gopark::io::copy_bidirectional;
use gopark::net::TcpStream;
use std::sync::Arc;

const HELP: &str = "\
A TCP proxy: each connection is passed on to another address, in both directions, half-closes included.

  --addr HOST:PORT     where to listen; port 0 lets the system choose (default: 127.0.0.1:7001)
  --target HOST:PORT   where to pass connections on to (default: 127.0.0.1:7000)
  --workers N          how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help               this text

Its first line on stdout is `listening on HOST:PORT`.
";

fn main() {
    let mut args = Args::read(HELP);
    let target: Arc<str> = args.host_port("--target", "127.0.0.1:7000").into();
    server::serve(args, "127.0.0.1:7001", move |client| pass_on(client, target.clone()))
}

/// A connection's task. It ends when both directions have ended, or either failed.
async fn pass_on(client: TcpStream, target: Arc<str>) {
    match TcpStream::connect(&*target).await {
        // An error is the end of the connection, and both sides see it: the streams close when they are dropped.
        Ok(server) => drop(copy_bidirectional(&client, &server).await),
        Err(error) => server::say(format_args!("cannot pass a connection on: {error}")),
    }
}
