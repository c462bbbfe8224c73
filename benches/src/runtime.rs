//! What the benchmarks ask of a runtime, and the servers and programs written once for all of them.

use crate::BUFFER;
use crate::http::Heads;
use crate::peer::Service;
use crate::stall::Stall;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) trait Runtime: Send + 'static {
    type Listener: Send + Sync + 'static;
    type Stream: Send + 'static;
    /// What a thread that is not the runtime's needs to start tasks.
    type Handle: Send + 'static;

    /// Runs `main` as a task on a fresh runtime's workers, and returns what it returns.
    fn run<F>(workers: usize, main: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static;

    /// Starts a task; what is returned waits for it, and leaves it alone when dropped.
    fn spawn<F>(task: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future<Output: Send> + Send + 'static;

    fn handle() -> Self::Handle;
    /// Starts a task that nobody waits for.
    fn spawn_from_outside<F>(handle: &Self::Handle, task: F)
    where
        F: Future<Output = ()> + Send + 'static;

    fn yield_now() -> impl Future<Output = ()> + Send;
    fn sleep(time: Duration) -> impl Future<Output = ()> + Send;
    fn bind(addr: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>> + Send;
    fn local_addr(listener: &Self::Listener) -> io::Result<SocketAddr>;
    fn from_std(stream: std::net::TcpStream) -> io::Result<Self::Stream>;
    fn accept(listener: &Self::Listener) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn read<'a>(stream: &'a mut Self::Stream, buf: &'a mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
    /// A read that gives up after `time`.
    fn read_within<'a>(
        stream: &'a mut Self::Stream,
        buf: &'a mut [u8],
        time: Duration,
    ) -> impl Future<Output = io::Result<usize>> + Send;
    /// What a read that gives up after `time` costs beside the read.
    fn set_read_deadline(stream: &mut Self::Stream, time: Duration) -> io::Result<()>;
    fn write_all<'a>(stream: &'a mut Self::Stream, bytes: &'a [u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Connects to a target, and copies in both directions until both have ended.
    fn pass_on(stream: Self::Stream, target: SocketAddr) -> impl Future<Output = io::Result<()>> + Send;
}

/// One task per connection.
pub(crate) fn serve<R: Runtime>(addr: SocketAddr, service: Service, workers: usize) -> io::Result<()> {
    R::run(workers, accept_loop::<R>(addr, service))?
}

async fn accept_loop<R: Runtime>(addr: SocketAddr, service: Service) -> io::Result<()> {
    let listener = R::bind(addr).await?;
    println!("listening on {}", R::local_addr(&listener)?);
    loop {
        let stream = R::accept(&listener).await?;
        match service {
            Service::Echo(stall) => drop(R::spawn(echo::<R>(stream, stall))),
            Service::Http => drop(R::spawn(http::<R>(stream))),
            Service::Proxy(target) => drop(R::spawn(async move { R::pass_on(stream, target).await })),
        }
    }
}

async fn http<R: Runtime>(mut stream: R::Stream) {
    let (mut buf, mut heads) = (vec![0; BUFFER], Heads::default());
    while let Ok(n @ 1..) = R::read(&mut stream, &mut buf).await {
        let answers = heads.answers(&buf[..n]);
        if !answers.is_empty() && R::write_all(&mut stream, answers).await.is_err() {
            return;
        }
    }
}

async fn echo<R: Runtime>(mut stream: R::Stream, stall: Option<Stall>) {
    let mut buf = vec![0; BUFFER];
    // An end or an error: either way this connection is over.
    while let Ok(n @ 1..) = R::read(&mut stream, &mut buf).await {
        Stall::on_message(stall, &buf[..n]);
        if R::write_all(&mut stream, &buf[..n]).await.is_err() {
            return;
        }
    }
}
