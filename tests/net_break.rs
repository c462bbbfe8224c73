//! Sockets where nobody looks: other executors, names that std cannot say, ends that make no edge.

#[path = "support/net.rs"]
mod net;
mod support;

use gopark::io::{copy, copy_bidirectional};
use gopark::net::{TcpListener, TcpStream, UnixDatagram, UnixListener, UnixStream};
use net::*;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;

fn abstract_path(test: &str) -> String {
    format!("\0gopark-break-{}-{test}", std::process::id())
}

/// Trap P23: who waits for room at one receiver keeps nobody from sending to another.
#[test]
fn datagram_to_a_full_queue_and_one_to_another() {
    let _alone = alone(20);
    runtime(1).run(async {
        let (full, free) = (abstract_path("full"), abstract_path("free"));
        let (_full, receiver) = (UnixDatagram::bind(&full).unwrap(), UnixDatagram::bind(&free).unwrap());
        let sender = UnixDatagram::unbound().unwrap();
        while sender.try_send_to(b"x", &full).is_ok() {}
        let mut stuck = Box::pin(sender.send_to(b"y", &full));
        assert!(is_pending(&mut stuck).await);
        let stuck = async { panic!("there was room: {:?}", stuck.await) };
        futures::future::select(Box::pin(sender.send_to(b"z", &free)), Box::pin(stuck)).await.factor_first().0.unwrap();
        assert_eq!(receiver.recv(&mut [0]).await.unwrap(), 1);
    });
}
