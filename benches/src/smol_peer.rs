//! smol: one executor for all, and a thread per worker that runs it and drives the reactor, as its documentation has it.

use crate::runtime::Runtime;
use crate::sys;
use smol::future::FutureExt;
use smol::io::{self, AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::{Executor, Task, Timer};
use std::future::Future;
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

static EXECUTOR: Executor<'static> = Executor::new();

pub(crate) struct Smol;

/// A task that goes on when this is dropped.
struct Detached<T>(Option<Task<T>>);

impl<T> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(self.0.as_mut().expect("only drop takes it")).poll(cx)
    }
}

impl<T> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl Runtime for Smol {
    type Listener = TcpListener;
    type Stream = TcpStream;
    type Handle = ();

    fn run<F>(workers: usize, main: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let main = EXECUTOR.spawn(main);
        thread::scope(|scope| {
            // Dropped at the end, which ends the workers.
            let (_running, end) = smol::channel::bounded::<()>(1);
            for _ in 0..workers {
                let end = end.clone();
                let worker = move || _ = smol::block_on(EXECUTOR.run(end.recv()));
                thread::Builder::new().name("smol".into()).spawn_scoped(scope, worker)?;
            }
            // Unlike smol's own, this one only waits.
            Ok(smol::future::block_on(main))
        })
    }

    fn spawn<F>(task: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Detached(Some(EXECUTOR.spawn(task)))
    }

    fn handle() {}

    fn spawn_from_outside<F>((): &(), task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        EXECUTOR.spawn(task).detach();
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        smol::future::yield_now()
    }

    async fn sleep(time: Duration) {
        Timer::after(time).await;
    }

    async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
        sys::listen(addr, false)?.try_into()
    }

    fn local_addr(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        stream.try_into()
    }

    async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        Ok(listener.accept().await?.0)
    }

    fn read<'a>(stream: &'a mut TcpStream, buf: &'a mut [u8]) -> impl Future<Output = io::Result<usize>> + Send {
        stream.read(buf)
    }

    fn read_within<'a>(
        stream: &'a mut TcpStream,
        buf: &'a mut [u8],
        time: Duration,
    ) -> impl Future<Output = io::Result<usize>> + Send {
        stream.read(buf).or(async move {
            Timer::after(time).await;
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    fn set_read_deadline(_: &mut TcpStream, time: Duration) -> io::Result<()> {
        let timer = pin!(Timer::after(time));
        let _ = timer.poll(&mut Context::from_waker(Waker::noop()));
        Ok(())
    }

    fn write_all<'a>(stream: &'a mut TcpStream, bytes: &'a [u8]) -> impl Future<Output = io::Result<()>> + Send {
        stream.write_all(bytes)
    }

    async fn pass_on(client: TcpStream, target: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        let one_way = async |from: TcpStream, mut to: TcpStream| {
            io::copy(from, &mut to).await?;
            to.shutdown(Shutdown::Write)
        };
        // A clone is the same socket.
        smol::future::try_zip(one_way(client.clone(), server.clone()), one_way(server, client)).await.map(drop)
    }
}
