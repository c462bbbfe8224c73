//! The netpoller by itself, where a trap cannot be reached through a socket: without a scheduler, polled by hand.

use super::epoll::Event;
use super::slot::{Go, Shut, Slot, Start, Ticket};
use super::*;
use crate::runtime::sys;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::channel;
use std::task::{Wake, Waker};

/// A wait that only a lost break would make this long.
const LONG: Duration = Duration::from_secs(20);

fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    (a, b)
}

fn harvest(netpoll: &Netpoll) {
    let mut list = WakeList::default();
    assert!(netpoll.netpoll(&mut list).is_some());
    list.deliver();
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Puts a waiter into a slot; says how often it was woken.
fn wait_as(slot: &Slot, op: Option<&mut Ticket>) -> Arc<Count> {
    let count = Arc::new(Count(AtomicU32::new(0)));
    let mut list = WakeList::default();
    assert!(slot.arm(op, &Waker::from(count.clone()), || true, false, &mut list));
    list.deliver();
    count
}

fn wait_in(slot: &Slot) -> Arc<Count> {
    wait_as(slot, Some(&mut 0))
}

/// Does something to a slot, and wakes whom it chose; nobody looks at the batons.
fn serve<R>(f: impl FnOnce(&mut WakeList) -> R) -> R {
    let mut list = WakeList::default();
    let result = f(&mut list);
    list.batons().into_iter().for_each(Vec::clear);
    list.deliver();
    result
}

fn woken(count: &Count) -> u32 {
    count.0.load(Ordering::Relaxed)
}

/// Traps P1 and P18: an event is fetched; before it is looked at, its socket is closed, and the descriptor goes to another.
/// Neither the new one's readiness, nor its waiters, nor what it knows of short reads is touched.
#[test]
fn fetch_and_recycle_and_dispatch() {
    let netpoll = Netpoll::new().unwrap();
    let (a, b) = pair();
    let old = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    drop(b);
    let mut fetched = Vec::new();
    fetched.extend(netpoll.epoll.poll(&mut Epoll::buffer(), Some(Duration::ZERO)).unwrap());
    netpoll.close(a.as_fd(), old);
    let (c, _d) = pair();
    let new = netpoll.open(c.as_fd(), Start::Nil).unwrap().unwrap();
    assert_eq!(new.slot, old.slot);
    let desc = netpoll.desc(new);
    let (reader, writer) = (wait_in(desc.slot(Side::Read)), wait_in(desc.slot(Side::Write)));
    let mut list = WakeList::default();
    assert!(!fetched.is_empty());
    for event in fetched {
        let Event::Ready { id, read, write, cut } = event else { panic!("{event:?}") };
        assert!(id == old && read && write && cut);
        desc.slot(Side::Read).edge(id.fdseq, cut, &mut list);
        desc.slot(Side::Write).edge(id.fdseq, false, &mut list);
    }
    list.deliver();
    assert_eq!((desc.slot(Side::Read).ready(), desc.slot(Side::Write).ready()), (Ok(false), Ok(false)));
    assert_eq!((woken(&reader), woken(&writer)), (0, 0));
    desc.slot(Side::Read).edge(new.fdseq, false, &mut list);
    list.deliver();
    assert_eq!(woken(&reader), 1);
    assert_eq!(desc.slot(Side::Read).begin(), Ok(Some(Go { cut: false })));
    netpoll.close(c.as_fd(), new);
}

/// Trap P1: what happens to a socket in use does not reach it after it was closed; and a closed one refuses.
#[test]
fn close_and_late_edge() {
    let netpoll = Netpoll::new().unwrap();
    let (a, mut b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    netpoll.close(a.as_fd(), id);
    b.write_all(b"x").unwrap();
    harvest(&netpoll);
    let desc = netpoll.desc(id);
    assert_eq!(desc.slot(Side::Read).ready(), Err(Shut::Closed));
    let mut list = WakeList::default();
    desc.slot(Side::Read).edge(id.fdseq, false, &mut list);
    assert_eq!(desc.slot(Side::Read).begin(), Err(Shut::Closed));
    list.deliver();
}

/// Trap P2: a name that shares half of its bits with the break's is a descriptor all the same.
#[test]
fn names_beside_the_breaks() {
    for slot in [0, (desc::MAX_INDEX - 1) * 4, u32::MAX] {
        for fdseq in [1, 1 << 31, u32::MAX] {
            let epoll = Epoll::new().unwrap();
            let event = sys::eventfd().unwrap();
            let id = SlotId { slot, fdseq };
            epoll.open(event.as_fd(), id).unwrap();
            sys::eventfd_signal(event.as_fd()).unwrap();
            let mut seen = Vec::new();
            seen.extend(epoll.poll(&mut Epoll::buffer(), Some(Duration::ZERO)).unwrap());
            assert!(matches!(seen[..], [Event::Ready { id: seen, .. }] if seen == id), "{id:?}: {seen:?}");
        }
    }
    let epoll = Epoll::new().unwrap();
    epoll.wake().unwrap();
    let mut seen = Vec::new();
    seen.extend(epoll.poll(&mut Epoll::buffer(), Some(Duration::ZERO)).unwrap());
    assert!(matches!(seen[..], [Event::Break]), "{seen:?}");
}

/// Traps P4 and P24: while one thread waits in the poll, others that do not wait step back, so that a break, sent once,
/// reaches the one it was sent for.
#[test]
fn break_and_polls_that_do_not_block() {
    const ROUNDS: u32 = 3000;
    let netpoll = Arc::new(Netpoll::new().unwrap());
    let (woke, wakes) = channel();
    let sleeper = std::thread::spawn({
        let netpoll = netpoll.clone();
        move || {
            for _ in 0..ROUNDS {
                netpoll.netpoll_block(None, &mut WakeList::default());
                woke.send(()).unwrap();
            }
        }
    });
    for _ in 0..ROUNDS {
        // It has the poll, and keeps it until its wait is over.
        while !netpoll.polling.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        netpoll.netpoll_break();
        for _ in 0..4 {
            netpoll.netpoll(&mut WakeList::default());
        }
        wakes.recv_timeout(LONG).expect("the break was lost to a poll that does not block");
    }
    sleeper.join().unwrap();
}

/// Traps P4 and P24: a break that a poll without waiting harvests before the sleeper sleeps ends that sleep.
#[test]
fn break_and_netpoll_before_the_sleep() {
    let netpoll = Arc::new(Netpoll::new().unwrap());
    for again in [false, true, false] {
        netpoll.netpoll_break();
        assert!(netpoll.netpoll(&mut WakeList::default()).is_some());
        if again {
            netpoll.netpoll_break();
        }
        let (there, (tx, woken)) = (netpoll.clone(), channel());
        std::thread::spawn(move || {
            there.netpoll_block(None, &mut WakeList::default());
            tx.send(()).unwrap();
        });
        woken.recv_timeout(LONG).expect("the break was lost");
    }
    // Nothing of it is left.
    netpoll.netpoll_break();
    netpoll.netpoll_block(None, &mut WakeList::default());
    assert!(!netpoll.brk.take_aside());
}

/// Trap P12: epoll refuses a regular file. The error is passed on, and the descriptor is free again.
#[test]
fn refused_and_descriptor() {
    let netpoll = Netpoll::new().unwrap();
    let file = File::open("/proc/self/exe").unwrap();
    let mut indices = Vec::new();
    for _ in 0..10 {
        let error = netpoll.open(file.as_fd(), Start::Try).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let (a, _b) = pair();
        let id = netpoll.open(a.as_fd(), Start::Try).unwrap().unwrap();
        indices.push(id.slot);
        netpoll.close(a.as_fd(), id);
    }
    assert_eq!(indices, [0; 10]);
}

/// Trap P13: registered twice (EEXIST), the first registration stands, and no descriptor is lost.
#[test]
fn registered_twice() {
    let netpoll = Netpoll::new().unwrap();
    let (a, mut b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let error = netpoll.open(a.as_fd(), Start::Nil).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    b.write_all(b"x").unwrap();
    harvest(&netpoll);
    assert_eq!(netpoll.desc(id).slot(Side::Read).ready(), Ok(true));
    netpoll.close(a.as_fd(), id);
}

/// pipe2(2), not blocking: what is read from, what is written to.
fn pipe() -> (OwnedFd, File) {
    let mut fds = [-1; 2];
    // SAFETY: room for two numbers; they are new, and nobody else has seen them.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), File::from_raw_fd(fds[1]))
    }
}

/// Trap P15: the last writer of a pipe is gone: EPOLLHUP without EPOLLIN. Its last reader is gone while it is full:
/// EPOLLERR without EPOLLOUT. Both wake.
#[test]
fn hangup_and_error_alone() {
    let netpoll = Netpoll::new().unwrap();
    let (reader, writer) = pipe();
    let id = netpoll.open(reader.as_fd(), Start::Nil).unwrap().unwrap();
    let (read, write) = (wait_in(netpoll.desc(id).slot(Side::Read)), wait_in(netpoll.desc(id).slot(Side::Write)));
    harvest(&netpoll);
    assert_eq!(woken(&read), 0);
    drop(writer);
    harvest(&netpoll);
    assert_eq!((woken(&read), woken(&write)), (1, 1));
    netpoll.close(reader.as_fd(), id);

    let (reader, mut file) = pipe();
    while file.write(&[0; 4096]).is_ok() {}
    let id = netpoll.open(file.as_fd(), Start::Nil).unwrap().unwrap();
    let (read, write) = (wait_in(netpoll.desc(id).slot(Side::Read)), wait_in(netpoll.desc(id).slot(Side::Write)));
    harvest(&netpoll);
    assert_eq!((woken(&read), woken(&write)), (0, 0));
    drop(reader);
    harvest(&netpoll);
    assert_eq!((woken(&read), woken(&write)), (1, 1));
    netpoll.close(file.as_fd(), id);
}

/// Trap P7: any number of edges between two operations is news; and one after a clearing is never undone by older ones.
#[test]
fn edges_and_begin() {
    let netpoll = Netpoll::new().unwrap();
    let (a, _b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let slot = netpoll.desc(id).slot(Side::Read);
    let mut list = WakeList::default();
    for edges in [1u32, 2, 255, 256, 257, 65_535, 65_536, 65_537] {
        assert_eq!(slot.begin(), Ok(None));
        for _ in 0..edges {
            slot.edge(id.fdseq, false, &mut list);
        }
        assert_eq!(slot.ready(), Ok(true));
        assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
        assert_eq!(slot.ready(), Ok(false));
    }
    list.deliver();
    netpoll.close(a.as_fd(), id);
}

/// Trap P8: the directions of one descriptor are apart.
#[test]
fn directions_apart() {
    let netpoll = Netpoll::new().unwrap();
    let (a, mut b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let desc = netpoll.desc(id);
    harvest(&netpoll);
    assert_eq!((desc.slot(Side::Read).ready(), desc.slot(Side::Write).ready()), (Ok(false), Ok(true)));
    assert_eq!(desc.slot(Side::Write).begin(), Ok(Some(Go { cut: false })));
    let mut list = WakeList::default();
    desc.slot(Side::Read).edge(id.fdseq, true, &mut list);
    assert_eq!((desc.slot(Side::Read).ready(), desc.slot(Side::Write).ready()), (Ok(true), Ok(false)));
    assert_eq!(desc.slot(Side::Read).begin(), Ok(Some(Go { cut: true })));
    desc.slot(Side::Write).edge(id.fdseq, false, &mut list);
    assert_eq!((desc.slot(Side::Read).ready(), desc.slot(Side::Write).ready()), (Ok(false), Ok(true)));
    b.write_all(b"x").unwrap();
    harvest(&netpoll);
    assert_eq!(desc.slot(Side::Read).ready(), Ok(true));
    list.deliver();
    netpoll.close(a.as_fd(), id);
}

/// Trap P22: who was chosen is dropped before it tried; its turn is the next one's at once, without the help of a baton.
#[test]
fn chosen_then_dropped() {
    let netpoll = Netpoll::new().unwrap();
    let (a, _b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let slot = netpoll.desc(id).slot(Side::Read);
    let mut tickets = [0; 3];
    let counts: Vec<_> = tickets.iter_mut().map(|ticket| wait_as(slot, Some(ticket))).collect();
    serve(|list| slot.edge(id.fdseq, false, list));
    for (i, ticket) in tickets.into_iter().enumerate() {
        let woken: Vec<_> = counts.iter().map(|count| woken(count)).collect();
        assert!((0..3).all(|j| woken[j] == u32::from(j <= i)), "{i}: {woken:?}");
        serve(|list| slot.leave(ticket, true, list));
    }
    // One that waits and is dropped has no turn to give.
    assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
    let mut ticket = 0;
    let (_gone, stays) = (wait_as(slot, Some(&mut ticket)), wait_in(slot));
    serve(|list| slot.leave(ticket, true, list));
    assert_eq!(woken(&stays), 0);
    netpoll.close(a.as_fd(), id);
}

/// Trap P21: who was chosen and leaves something makes it the next one's turn; who drains the kernel does not.
#[test]
fn chosen_and_something_left() {
    let netpoll = Netpoll::new().unwrap();
    let (a, _b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let slot = netpoll.desc(id).slot(Side::Read);
    let counts: Vec<_> = (0..4).map(|_| wait_in(slot)).collect();
    let woken = || counts.iter().map(|count| woken(count)).collect::<Vec<_>>();
    serve(|list| slot.edge(id.fdseq, false, list));
    assert_eq!(woken(), [1, 0, 0, 0]);
    for next in 1..3 {
        assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
        if !slot.finish() {
            serve(|list| slot.edge(id.fdseq, false, list));
        }
        assert_eq!(woken()[next], 1);
    }
    assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
    assert_eq!(slot.begin(), Ok(None));
    assert_eq!(woken(), [1, 1, 1, 0]);
    netpoll.close(a.as_fd(), id);
}

/// Trap P21: `poll_*` wakers are all woken by one edge, wherever they stand among the operations, of which one is.
#[test]
fn poll_wakers_and_operations() {
    let netpoll = Netpoll::new().unwrap();
    let (a, _b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let slot = netpoll.desc(id).slot(Side::Read);
    let counts: Vec<_> = (0..6).map(|i| if i % 2 == 0 { wait_as(slot, None) } else { wait_in(slot) }).collect();
    serve(|list| slot.edge(id.fdseq, false, list));
    let woken = |counts: &[Arc<Count>]| counts.iter().map(|count| woken(count)).collect::<Vec<_>>();
    assert_eq!(woken(&counts), [1, 1, 1, 0, 1, 0]);
    netpoll.close(a.as_fd(), id);
}

/// Trap P23: an edge whose turn was taken by one that does nothing leaves a baton, which finds the next, to the last.
#[test]
fn chosen_and_forgotten() {
    let netpoll = Netpoll::new().unwrap();
    let (a, _b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let slot = netpoll.desc(id).slot(Side::Read);
    let counts: Vec<_> = (0..4).map(|_| wait_in(slot)).collect();
    let mut list = WakeList::default();
    slot.edge(id.fdseq, false, &mut list);
    netpoll.keep_batons(&mut list);
    list.deliver();
    for count in &counts[1..] {
        assert!(netpoll.has_batons());
        netpoll.pass_batons(&mut list);
        list.deliver();
        assert_eq!(woken(count), 1);
    }
    assert!(!netpoll.has_batons());
    // Nor does a baton wake anybody where nothing is left.
    assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
    let (_first, second) = (wait_in(slot), wait_in(slot));
    slot.edge(id.fdseq, false, &mut list);
    assert_eq!(slot.begin(), Ok(Some(Go { cut: false })));
    netpoll.keep_batons(&mut list);
    netpoll.pass_batons(&mut list);
    list.deliver();
    assert_eq!(woken(&second), 0);
    netpoll.close(a.as_fd(), id);
}

/// Trap P10: everybody is woken at the end, and nothing is registered after it.
#[test]
fn shut_and_waiters_and_registration() {
    let netpoll = Netpoll::new().unwrap();
    let (a, b) = pair();
    let id = netpoll.open(a.as_fd(), Start::Nil).unwrap().unwrap();
    let (read, write) = (wait_in(netpoll.desc(id).slot(Side::Read)), wait_in(netpoll.desc(id).slot(Side::Write)));
    let mut list = WakeList::default();
    netpoll.shut(&mut list);
    netpoll.deliver(&mut list);
    assert_eq!((woken(&read), woken(&write)), (1, 1));
    assert_eq!(netpoll.desc(id).slot(Side::Read).begin(), Err(Shut::Gone));
    assert!(netpoll.open(b.as_fd(), Start::Try).unwrap().is_none());
    netpoll.close(a.as_fd(), id);
}

/// A timed wait ends by its time; one that is broken ends before.
#[test]
fn waits_and_their_ends() {
    let netpoll = Netpoll::new().unwrap();
    let mut list = WakeList::default();
    netpoll.netpoll_block(Some(Duration::from_micros(10)), &mut list);
    netpoll.netpoll_break();
    netpoll.netpoll_break();
    let before = std::time::Instant::now();
    netpoll.netpoll_block(Some(LONG), &mut list);
    assert!(before.elapsed() < LONG);
    // Two breaks were one event: the next wait lasts.
    netpoll.netpoll_block(Some(Duration::from_micros(10)), &mut list);
    assert!(list.gs.next().is_none());
}
