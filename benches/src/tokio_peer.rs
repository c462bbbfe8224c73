//! tokio, multi-threaded.

use crate::runtime::Runtime;
use crate::sys;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Tokio;

impl Runtime for Tokio {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Handle = tokio::runtime::Handle;

    fn run<F>(workers: usize, main: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
        Ok(runtime.block_on(async { Tokio::spawn(main).await }))
    }

    fn spawn<F>(task: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let handle = tokio::spawn(task);
        async { handle.await.expect("no task panics") }
    }

    fn handle() -> tokio::runtime::Handle {
        tokio::runtime::Handle::current()
    }

    fn spawn_from_outside<F>(handle: &tokio::runtime::Handle, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(handle.spawn(task));
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        tokio::task::yield_now()
    }

    fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::from_std(sys::listen(addr, false)?)
    }

    fn local_addr(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        Ok(listener.accept().await?.0)
    }

    fn read<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8]) -> impl Future<Output = io::Result<usize>> + Send {
        stream.read(buf)
    }

    async fn read_within<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8], time: Duration) -> io::Result<usize> {
        tokio::time::timeout(time, stream.read(buf)).await?
    }

    fn set_read_deadline(_: &mut TcpStream, time: Duration) -> io::Result<()> {
        let timeout = pin!(tokio::time::timeout(time, pending::<()>()));
        let _ = timeout.poll(&mut Context::from_waker(Waker::noop()));
        Ok(())
    }

    fn write_all<'a>(stream: &'a mut TcpStream, bytes: &'a [u8]) -> impl Future<Output = io::Result<()>> + Send {
        stream.write_all(bytes)
    }

    async fn pass_on(mut stream: TcpStream, target: SocketAddr) -> io::Result<()> {
        let mut server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut stream, &mut server).await.map(drop)
    }
}
