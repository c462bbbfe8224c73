//! Turns at a socket that go from one thread to another, past operations that nobody polls any more.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::Builder;
use gopark::net::{TcpListener, TcpStream};
use net::alone;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Waker};

/// Trap P23: a thread outside the runtime lets go of a lock that two wait for. The first, of another executor, is never
/// polled again; the second is a task, and all workers are asleep. It gets its turn.
#[test]
fn let_go_outside_and_never_polled_again() {
    let _alone = alone(60);
    let rt = Builder::new().workers(1).build().unwrap();
    let (stream, _peer) = rt.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, peer)
    });
    let stream = Arc::new(stream);
    let much = vec![0; 64 << 20];
    for round in 0..200 {
        let mut cx = Context::from_waker(Waker::noop());
        let mut holder = Box::pin(stream.write_all(&much));
        assert!(holder.as_mut().poll(&mut cx).is_pending(), "nobody reads");
        let mut stalled = pin!(stream.write_all(&[]));
        assert!(stalled.as_mut().poll(&mut cx).is_pending());
        let (tell, told) = channel();
        let own = stream.clone();
        let task = rt.spawn(async move {
            let mut write = pin!(own.write_all(&[]));
            poll_fn(|cx| {
                let polled = write.as_mut().poll(cx);
                tell.send(polled.is_ready()).unwrap();
                polled
            })
            .await
            .unwrap();
        });
        assert!(!told.recv().unwrap());
        // The worker is on its way to sleep; this meets it at different places.
        for _ in 0..round * 200 {
            std::hint::spin_loop();
        }
        drop(holder);
        // No timer here, and no other call that would wake the worker.
        while !told.recv().unwrap() {}
        drop(task);
    }
}
