//! gopark itself. Its listeners have TCP_NODELAY and the longest backlog by default.

use crate::runtime::Runtime;
use gopark::net::{TcpListener, TcpStream};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(crate) struct Gopark;

impl Runtime for Gopark {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Handle = gopark::Handle;

    fn run<F>(workers: usize, main: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Ok(gopark::Builder::new().workers(workers).build()?.run(main))
    }

    fn spawn<F>(task: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let handle = gopark::spawn(task);
        async { handle.await.expect("no task panics") }
    }

    fn handle() -> gopark::Handle {
        gopark::Handle::current()
    }

    fn spawn_from_outside<F>(handle: &gopark::Handle, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(handle.spawn(task));
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        gopark::yield_now()
    }

    fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
        gopark::time::sleep(time)
    }

    fn bind(addr: SocketAddr) -> impl Future<Output = io::Result<TcpListener>> + Send {
        TcpListener::bind(addr)
    }

    fn local_addr(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        TcpStream::from_std(stream)
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        Ok(listener.accept().await?.0)
    }

    fn read<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8]) -> impl Future<Output = io::Result<usize>> + Send {
        stream.read(buf)
    }

    async fn read_within<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8], time: Duration) -> io::Result<usize> {
        stream.set_read_deadline(Some(Instant::now() + time))?;
        stream.read(buf).await
    }

    fn set_read_deadline(stream: &mut TcpStream, time: Duration) -> io::Result<()> {
        stream.set_read_deadline(Some(Instant::now() + time))
    }

    fn write_all<'a>(stream: &'a mut TcpStream, bytes: &'a [u8]) -> impl Future<Output = io::Result<()>> + Send {
        stream.write_all(bytes)
    }

    async fn pass_on(stream: TcpStream, target: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(target).await?;
        gopark::io::copy_bidirectional(&stream, &server).await.map(drop)
    }
}
