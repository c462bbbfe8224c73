//! What a connection costs that has nothing to say. An echo server, thousands of connections to it, and the memory that
//! they took while all of them wait:
//!
//! ```text
//! cargo run --release --example idle
//! ```
//!
//! A task that awaits `readable()` needs no buffer until bytes are there, and then one that lies on the worker's stack.

mod args;
mod server;

use args::{Args, fail};
use gopark::net::TcpStream;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};

const HELP: &str = "\
Measures the memory of idle connections: an echo server that holds no buffer for them, and its own client.

  --addr HOST:PORT   where to listen; port 0 lets the system choose (default: 127.0.0.1:0)
  --conns N          how many connections, of two descriptors each (default: 9000)
  --workers N        how many tasks may run at the same time (default: GOPARK_PROCS, else one per CPU)
  --help             this text

Its first line on stdout is `listening on HOST:PORT`, the second says what the connections took, the third that all of
them still echo. Counted is memory of this process: the kernel's own, some kilobytes for each socket, is not.
";

fn main() {
    let mut args = Args::read(HELP);
    let addr = args.addr("127.0.0.1:0");
    let conns = args.number("--conns", 1..=1_000_000).unwrap_or(9000);
    let workers = args.workers();
    args.end();
    match gopark::net::raise_nofile_limit() {
        Ok(files) if 2 * conns as u64 + 32 > files => fail(format_args!(
            "{conns} connections need two descriptors each, and this process may open {files}: try --conns {}",
            files.saturating_sub(32) / 2
        )),
        // Where the limit is not known, connecting finds it.
        _ => {}
    }
    let runtime = server::runtime(workers);
    let measured = runtime.run(async move {
        let listener = server::listen(addr).await?;
        let addr = listener.local_addr()?;
        drop(gopark::spawn(server::accept(listener, echo)));
        gopark::spawn_blocking(move || measure(addr, conns)).await.expect("it does not panic")
    });
    if let Err(error) = measured {
        fail(error);
    }
}

async fn echo(stream: TcpStream) {
    while let Ok(()) = stream.readable().await {
        match answer(&stream) {
            Ok(rest) if rest.is_empty() => {}
            // Boxed: the task of an idle connection has no room for it.
            Ok(rest) => match Box::pin(stream.write_all(&rest)).await {
                Ok(()) => {}
                Err(_) => return,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Writes back what is there to be read, as far as it goes; returns the rest.
fn answer(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buf = [0; 4096];
    let n = stream.try_read(&mut buf)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let written = match stream.try_write(&buf[..n]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        written => written?,
    };
    Ok(buf[written..n].to_vec())
}

/// The client, and what it sees.
fn measure(addr: SocketAddr, conns: usize) -> io::Result<()> {
    // One is there before, so that what is made once does not count.
    let mut first = StdStream::connect(addr)?;
    trip(&mut first)?;
    let before = memory()?;
    let mut streams = (0..conns).map(|_| StdStream::connect(addr)).collect::<io::Result<Vec<_>>>()?;
    // Once it has answered each of them, its tasks wait for the next message.
    streams.iter_mut().try_for_each(trip)?;
    let took = memory()?.saturating_sub(before);
    let each = took as f64 / conns as f64;
    println!("{conns} idle connections took {} KiB of memory, {each:.0} bytes each", took / 1024);
    streams.iter_mut().try_for_each(trip)?;
    println!("all of them echo");
    Ok(())
}

fn trip(stream: &mut StdStream) -> io::Result<()> {
    let mut back = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"hello");
    Ok(())
}

/// What this process holds of memory that is not backed by files, in bytes.
fn memory() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
    kib.map(|kib| kib * 1024).map_err(|_| io::Error::other("/proc/self/status names no RssAnon"))
}
