//! Deadlines of sockets.

mod support;

use gopark::net::{TcpListener, TcpStream};
use std::io::ErrorKind::TimedOut;
use std::time::{Duration, Instant};
use support::watchdog;

#[test]
#[ignore = "a measurement"]
fn cost() {
    let _watchdog = watchdog(60);
    gopark::run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        for _ in 0..3 {
            let t = Instant::now();
            for _ in 0..1_000_000 {
                std::hint::black_box(Instant::now() + Duration::from_secs(30));
            }
            let base = t.elapsed();
            let t = Instant::now();
            for _ in 0..1_000_000 {
                client.set_read_deadline(Some(Instant::now() + Duration::from_secs(30))).unwrap();
            }
            println!("clock {base:?}, with set_read_deadline {:?} (ms per million = ns)", t.elapsed());
        }
        let mut b = [0; 1];
        client.set_read_deadline(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        let t = Instant::now();
        assert_eq!(client.read(&mut b).await.unwrap_err().kind(), TimedOut);
        println!("{:?}", t.elapsed());
    });
}
