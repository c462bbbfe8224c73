//! gopark itself. Its listeners have TCP_NODELAY and the longest backlog by default.

use crate::runtime::Runtime;
use gopark::net::{TcpListener, TcpStream};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) struct Gopark;

impl Runtime for Gopark {
    type Listener = TcpListener;
    type Stream = TcpStream;

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

    fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
        gopark::time::sleep(time)
    }

    fn bind(addr: SocketAddr) -> impl Future<Output = io::Result<TcpListener>> + Send {
        TcpListener::bind(addr)
    }

    fn local_addr(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        Ok(listener.accept().await?.0)
    }

    fn read<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8]) -> impl Future<Output = io::Result<usize>> + Send {
        stream.read(buf)
    }

    fn write_all<'a>(stream: &'a mut TcpStream, bytes: &'a [u8]) -> impl Future<Output = io::Result<()>> + Send {
        stream.write_all(bytes)
    }
}
