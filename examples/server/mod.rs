//! What the servers among the examples share: from the command line to a task for each connection.

use crate::args::{Args, fail};
use gopark::net::{TcpListener, TcpStream};
use gopark::{Builder, Runtime};
use std::io::{self, Write};

/// Listens as the command line says, and hands each connection to a task of its own. Returns only by ending the program.
#[allow(dead_code, reason = "`idle` takes the steps one by one")]
pub(crate) fn run<F>(help: &str, default_addr: &str, connection: fn(TcpStream) -> F) -> !
where
    F: Future<Output = ()> + Send + 'static,
{
    serve(Args::read(help), default_addr, connection)
}

/// The same, where some of the command line has been taken already.
#[allow(dead_code, reason = "see `run`")]
pub(crate) fn serve<F>(
    mut args: Args,
    default_addr: &str,
    connection: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> !
where
    F: Future<Output = ()> + Send + 'static,
{
    let addr = args.addr(default_addr);
    let workers = args.workers();
    args.end();
    if let Err(error) = gopark::net::raise_nofile_limit() {
        say(format_args!("the limit of open descriptors stays as it is: {error}"));
    }
    let outcome = runtime(workers).run(async move { accept(listen(addr).await?, connection).await });
    match outcome {
        Err(error) => fail(error),
    }
}

pub(crate) fn runtime(workers: Option<usize>) -> Runtime {
    let builder = Builder::new();
    let builder = if let Some(n) = workers { builder.workers(n) } else { builder };
    builder.build().unwrap_or_else(|error| fail(error))
}

/// Listens, and says where.
pub(crate) async fn listen(addr: String) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(listener)
}

/// For ever: nothing that a connection does may end the server.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    connection: impl Fn(TcpStream) -> F,
) -> io::Result<std::convert::Infallible>
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(gopark::spawn(connection(stream))),
            // Where descriptors or memory run out, accept itself waits. This error took a connection with it.
            Err(error) => say(format_args!("a connection is lost: {error}")),
        }
    }
}

/// To stderr; unlike `eprintln`, it minds no closed one.
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}
