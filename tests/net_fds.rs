//! Descriptors: none leaks, none is closed early, none is mistaken for another; and what happens when there are no more.
//!
//! The tests of this file count the descriptors of the process or change its limits, so one runs at a time.

#[path = "support/net.rs"]
mod net;
mod support;

use futures::future::join_all;
use gopark::net::{TcpListener, TcpStream, raise_nofile_limit};
use gopark::yield_now;
use net::*;
use socket2::SockRef;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{child, is_child};

/// Every way in and out of a runtime, and the runtime itself.
#[test]
fn open_and_close() {
    let _alone = alone(60);
    // Whatever std opens once.
    let before = || {
        drop(std::net::TcpStream::connect(ANY));
        open_fds()
    };
    let before = before();
    for _ in 0..3 {
        let runtime = runtime(2);
        let base = open_fds();
        for _ in 0..50 {
            runtime.run(async {
                let (a, b) = pair().await;
                let mut read = Box::pin(a.peek(leak_mut([0; 1])));
                assert!(is_pending(&mut read).await);
                drop(read);
                let (read, write) = a.into_split();
                let a = read.reunite(write).unwrap();
                let (read, write) = b.into_split();
                drop(write);
                drop(read);
                let a = TcpStream::from_std(a.into_std().unwrap()).unwrap();
                a.close();
            });
        }
        assert_eq!(open_fds(), base);
        drop(runtime);
        assert_eq!(open_fds(), before);
    }
}

/// Whoever closes the runtime's own descriptors gets an end and a reason, not a program that waits for ever.
#[test]
fn closed_by_somebody_else() {
    const NAME: &str = "closed_by_somebody_else";
    let _alone = alone(60);
    if !is_child(NAME) {
        for what in ["[eventpoll]", "[eventfd]"] {
            let output = child(NAME, &[("WHAT", what)]);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{told}");
            assert!(told.contains("closed a descriptor"), "{told}");
        }
        return;
    }
    let what = format!("anon_inode:{}", std::env::var("WHAT").unwrap());
    let runtime = runtime(2);
    for fd in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = fd.unwrap().path();
        if std::fs::read_link(&path).is_ok_and(|to| to.as_os_str() == &*what) {
            let fd: libc::c_int = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // SAFETY: it is another's, and that is what is tried; nothing but the end of the process comes of it. (By the call
            // itself, since ThreadSanitizer objects to the function, rightly.)
            unsafe { libc::syscall(libc::SYS_close, fd) };
        }
    }
    loop {
        let sleeps = async { gopark::time::sleep(Duration::from_micros(1)).await };
        runtime.block_on(runtime.spawn(sleeps)).unwrap();
    }
}

/// Tasks that hold sockets are dropped by the shutdown, and their descriptors with them.
#[test]
fn shutdown_and_sockets_of_tasks() {
    let _alone = alone(60);
    let before = open_fds();
    let runtime = runtime(2);
    runtime.run(async {
        for _ in 0..100 {
            let (a, b) = pair().await;
            gopark::spawn(async move { a.read(&mut [0; 1]).await });
            gopark::spawn(async move { b.readable().await });
        }
    });
    drop(runtime);
    assert_eq!(open_fds(), before);
}

/// Trap P12: what epoll refuses (a regular file, here dressed as a connection) is an error, and leaves no descriptor; the
/// next registration is no worse for it.
#[test]
fn refused_registration() {
    let _alone = alone(60);
    runtime(1).run(async {
        let before = open_fds();
        for _ in 0..100 {
            let file = || OwnedFd::from(File::open("/proc/self/exe").unwrap());
            let error = TcpStream::from_std(std::net::TcpStream::from(file())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            TcpListener::from_std(std::net::TcpListener::from(file())).unwrap_err();
        }
        assert_eq!(open_fds(), before);
        let (a, b) = pair().await;
        a.write_all(b"x").await.unwrap();
        assert_eq!(b.read(&mut [0; 4]).await.unwrap(), 1);
    });
}

/// Trap P12: with no descriptor left, each call that needs one says so, and what was begun is undone.
#[test]
fn no_descriptor_left() {
    let _alone = alone(60);
    let runtime = runtime(1);
    runtime.run(async {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let before = open_fds();
        let limit = Limit::exhausted();
        for _ in 0..3 {
            let emfile = |e: std::io::Error| {
                let code = e.raw_os_error().or_else(|| {
                    let source = e.get_ref()?.source()?;
                    source.downcast_ref::<std::io::Error>()?.raw_os_error()
                });
                assert_eq!(code, Some(libc::EMFILE), "{e}");
            };
            emfile(TcpStream::connect(addr).await.unwrap_err());
            emfile(TcpListener::bind(ANY).await.unwrap_err());
            emfile(gopark::Runtime::new().unwrap_err());
        }
        drop(limit);
        assert_eq!(open_fds(), before);
    });
}

/// Trap P13: two descriptors of one connection, both registered. Closing one leaves the other's edges to it alone.
#[test]
fn duplicate_and_close() {
    let _alone = alone(60);
    runtime(1).run(async {
        let pulse = Pulse::new().await;
        let before = open_fds();
        for first_goes in [true, false] {
            let (stream, mut peer) = std_pair().await;
            let double = SockRef::from(&stream).try_clone().unwrap();
            let double = TcpStream::from_std(double.into()).unwrap();
            let (goes, stays) = if first_goes { (stream, double) } else { (double, stream) };
            let mut buf = [0; 4];
            let mut read = Box::pin(stays.read(&mut buf));
            assert!(is_pending(&mut read).await);
            drop(goes);
            peer.write_all(b"x").unwrap();
            assert_eq!(read.await.unwrap(), 1);
            // A newcomer in the old one's place hears nothing of this connection.
            let (newcomer, _quiet) = std_pair().await;
            let mut readable = Box::pin(newcomer.readable());
            assert!(is_pending(&mut readable).await);
            for _ in 0..5 {
                peer.write_all(b"x").unwrap();
                pulse.beat().await;
                assert!(is_pending(&mut readable).await);
            }
            // And what leaves a runtime is out of its poll although the connection lives on.
            let std = stays.into_std().unwrap();
            peer.write_all(b"x").unwrap();
            pulse.beat().await;
            assert!(is_pending(&mut readable).await);
            let again = TcpStream::from_std(std).unwrap();
            again.readable().await.unwrap();
            let doubled = SockRef::from(&again).try_clone().unwrap();
            drop(again);
            let again = TcpStream::from_std(doubled.into()).unwrap();
            assert!(again.read(&mut buf).await.unwrap() > 0);
        }
        assert_eq!(open_fds(), before);
    });
}

/// Trap P12: closed before, in whatever way, a descriptor is still taken out and given back.
#[test]
fn close_then_drop() {
    let _alone = alone(60);
    runtime(1).run(async {
        let before = open_fds();
        for _ in 0..100 {
            let (a, b) = pair().await;
            a.close();
            b.shutdown(std::net::Shutdown::Both).unwrap_or(());
            b.close();
            let listener = TcpListener::bind(ANY).await.unwrap();
            listener.close();
            listener.close();
            let error = listener.accept().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotConnected);
        }
        assert_eq!(open_fds(), before);
    });
}

/// A connect that is given up leaves nothing behind, at whatever moment.
#[test]
fn connect_then_drop() {
    let _alone = alone(60);
    let runtime = runtime(1);
    let full = full_listener();
    runtime.run(async move {
        let before = open_fds();
        for _ in 0..50 {
            let mut connect = Box::pin(TcpStream::connect(full.2));
            assert!(is_pending(&mut connect).await);
            assert_eq!(open_fds(), before + 1);
            drop(connect);
            assert_eq!(open_fds(), before);
        }
        let task = gopark::spawn(TcpStream::connect(full.2));
        yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let hurried = gopark::time::timeout(Duration::from_millis(1), TcpStream::connect(full.2)).await;
        hurried.unwrap_err();
        // Not routed anywhere: it waits, or fails at once, depending on the machine. Either way it is gone.
        let mut connect = Box::pin(TcpStream::connect("10.255.255.1:9"));
        let _ = is_pending(&mut connect).await;
        drop(connect);
        assert_eq!(open_fds(), before);
    });
}

/// Errors of connect leave nothing behind either.
#[test]
fn refused_connects() {
    let _alone = alone(60);
    runtime(1).run(async {
        let (_held, addr) = refusing();
        let before = open_fds();
        for _ in 0..100 {
            TcpStream::connect(addr).await.unwrap_err();
            TcpStream::connect(&[addr, addr][..]).await.unwrap_err();
        }
        assert_eq!(open_fds(), before);
    });
}

/// Traps P1, P11 and P18: descriptors are recycled all the time, by many threads, with edges under way for the old ones;
/// every connection hears its own news and nobody else's.
#[test]
fn recycled_descriptors() {
    let _alone = alone(60);
    let runtime = runtime(2);
    let before = open_fds();
    let mut tasks = Vec::new();
    for id in 0..8u32 {
        tasks.push(runtime.spawn(async move {
            let listener = TcpListener::bind(ANY).await.unwrap();
            let addr = listener.local_addr().unwrap();
            for round in 0..150u32 {
                let (mut client, server) = {
                    let client = std::net::TcpStream::connect(addr).unwrap();
                    (client, listener.accept().await.unwrap().0)
                };
                let mut readable = Box::pin(server.readable());
                assert!(is_pending(&mut readable).await, "somebody else's news");
                yield_now().await;
                assert!(is_pending(&mut readable).await, "somebody else's news");
                let message = (id << 16 | round).to_ne_bytes();
                client.write_all(&message).unwrap();
                readable.await.unwrap();
                let mut got = [0; 4];
                server.read_exact(&mut got).await.unwrap();
                assert_eq!(got, message);
                match round % 4 {
                    // An edge is under way when it goes: data, an end, a reset.
                    0 => client.write_all(b"late").unwrap(),
                    1 => drop(client),
                    2 => SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap(),
                    _ => {}
                }
                // From another thread.
                if round % 3 == 0 {
                    gopark::spawn_blocking(move || drop(server)).await.unwrap();
                }
            }
        }));
    }
    runtime.block_on(join_all(tasks)).into_iter().for_each(Result::unwrap);
    assert!(open_fds() <= before);
}

/// Trap P11: the storage grows while old descriptors are in use, and shrinks under none of them.
#[test]
fn many_sockets_and_the_first_of_them() {
    let _alone = alone(60);
    let limit = raise_nofile_limit().unwrap();
    let pairs = 1000.min((limit as usize - open_fds() - 100) / 2);
    runtime(1).run(async move {
        let (first, mut first_peer) = std_pair().await;
        let mut buf = [0; 4];
        let mut read = Box::pin(first.read(&mut buf));
        assert!(is_pending(&mut read).await);
        for _ in 0..2 {
            let mut all = Vec::new();
            for i in 0..pairs {
                let (stream, mut peer) = std_pair().await;
                peer.write_all(&[i as u8]).unwrap();
                all.push((i, stream, peer));
            }
            // Every other one goes, and their places are taken again.
            let mut odd = false;
            all.retain(|_| {
                odd = !odd;
                odd
            });
            for (i, stream, mut peer) in all {
                let mut buf = [0; 4];
                assert_eq!(stream.read(&mut buf).await.unwrap(), 1);
                assert_eq!(buf[0], i as u8);
                stream.write_all(b"ok").await.unwrap();
                peer.read_exact(&mut buf[..2]).unwrap();
            }
        }
        assert!(is_pending(&mut read).await);
        first_peer.write_all(b"x").unwrap();
        assert_eq!(read.await.unwrap(), 1);
    });
}

/// A burst of connects, none of which is accepted before all are there, as far as the system's limits go: none is lost,
/// and each is answered.
#[test]
fn burst_of_connects() {
    let _alone = alone(120);
    let limit = raise_nofile_limit().unwrap() as usize;
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let burst = 4000.min(somaxconn).min((limit - open_fds() - 100) / 2);
    let runtime = runtime(2);
    let before = open_fds();
    runtime.run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connects = (0..burst).map(|_| gopark::spawn(TcpStream::connect(addr)));
        let mut clients = Vec::new();
        for task in connects.collect::<Vec<_>>() {
            clients.push(task.await.unwrap().unwrap());
        }
        let server = gopark::spawn(async move {
            let mut servers = Vec::new();
            for _ in 0..burst {
                let (stream, addr) = listener.accept().await.unwrap();
                servers.push(gopark::spawn(async move {
                    stream.write_all(&addr.port().to_ne_bytes()).await.unwrap();
                    stream.read(&mut [0; 4]).await.unwrap()
                }));
            }
            for server in servers {
                assert_eq!(server.await.unwrap(), 0);
            }
        });
        for client in &clients {
            let mut port = [0; 2];
            client.read_exact(&mut port).await.unwrap();
            assert_eq!(u16::from_ne_bytes(port), client.local_addr().unwrap().port());
        }
        drop(clients);
        server.await.unwrap();
    });
    assert_eq!(open_fds(), before);
}

/// The burst comes from threads that know nothing of gopark, while the listener accepts.
#[test]
fn burst_of_blocking_clients() {
    let _alone = alone(120);
    let limit = raise_nofile_limit().unwrap() as usize;
    let each = 500.min((limit - open_fds() - 100) / 8);
    let runtime = runtime(2);
    runtime.run(async move {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut all: Vec<_> = (0..each).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
                    for (i, client) in all.iter_mut().enumerate() {
                        client.write_all(&[i as u8]).unwrap();
                        let mut echo = [0; 1];
                        client.read_exact(&mut echo).unwrap();
                        assert_eq!(echo[0], i as u8);
                    }
                })
            })
            .collect();
        for _ in 0..4 * each {
            let (stream, _) = listener.accept().await.unwrap();
            gopark::spawn(async move {
                let mut buf = [0; 4];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    stream.write_all(&buf[..n]).await.unwrap();
                }
            });
        }
        for client in clients {
            gopark::block_in_place(|| client.join().unwrap());
        }
    });
}

/// `raise_nofile_limit` lifts the soft limit to the hard one, and says where it is.
#[test]
fn nofile_limit() {
    let _alone = alone(60);
    let hard = raise_nofile_limit().unwrap();
    let _limit = Limit::set(hard.min(256));
    assert_eq!(raise_nofile_limit().unwrap(), hard);
    assert_eq!(raise_nofile_limit().unwrap(), hard);
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call uses the struct for its length only.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut now) };
    assert_eq!((now.rlim_cur, now.rlim_max), (hard, hard));
}

/// A socket that is moved about, used by many and dropped by the last of them is closed once: another descriptor that
/// got its number meanwhile stays open.
#[test]
fn shared_and_closed_once() {
    let _alone = alone(60);
    runtime(2).run(async {
        let before = open_fds();
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..100 {
            let (a, b) = pair().await;
            let a = Arc::new(a);
            let users: Vec<_> = (0..4)
                .map(|_| {
                    let (a, stop) = (a.clone(), stop.clone());
                    gopark::spawn(async move {
                        let _ = a.readable().await;
                        stop.load(Ordering::Relaxed)
                    })
                })
                .collect();
            drop(a);
            drop(b);
            for user in users {
                assert!(!user.await.unwrap());
            }
            let mut probe = File::open("/proc/self/stat").unwrap();
            assert!(probe.read(&mut [0; 8]).unwrap() > 0);
        }
        assert_eq!(open_fds(), before);
    });
}
