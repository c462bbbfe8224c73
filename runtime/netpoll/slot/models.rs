//! Loom models of the shipped slot. The kernel is a count of bytes that orders nothing, and `Socket` does with the slot
//! what `net/fd.rs` and `Gate` do.
//!
//! Not covered: more than three threads at once; the table of descriptors; `CUT`, which only passes through; tickets,
//! the queue's order and who drops which waker, which `tests.rs` has, under Miri. Where a model is bounded in
//! preemptions it says so; the others are complete.
//!
//! | mutant (`--cfg 'gopark_mutant="..."'`) | model that fails |
//! |---|---|
//! | `slot_unlock_relaxed` | `wakers_of_two_tasks_are_both_woken` |
//! | `slot_arm_no_recheck` | `an_edge_and_an_arm_do_not_miss_each_other` |

use super::*;
use crate::runtime::park::Parker;
use crate::runtime::sync::AtomicU32;
use crate::runtime::task::rig::Rig;
use Ordering::Relaxed;
use loom::thread::{self, JoinHandle};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Wake};

/// A foreign waker: counts, and wakes a thread.
struct Flag {
    wakes: AtomicU32,
    thread: Parker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Relaxed);
        self.thread.unpark();
    }
}

/// An operation: one byte, or nothing more than a place in the queue.
struct Op {
    ticket: Ticket,
    flag: Arc<Flag>,
    waker: Waker,
}

impl Op {
    fn new() -> Op {
        let flag = Arc::new(Flag { wakes: AtomicU32::new(0), thread: Parker::new() });
        Op { ticket: 0, waker: flag.clone().into(), flag }
    }

    fn woken(&self) -> bool {
        self.flag.wakes.load(Relaxed) > 0
    }
}

struct Socket {
    slot: Slot,
    bytes: AtomicU32,
    batons: loom::sync::Mutex<Vec<SlotId>>,
}

const SEQ: u32 = 0;

impl Socket {
    fn new(start: Start, bytes: u32) -> Arc<Socket> {
        let slot = Slot::new(4);
        slot.open(start);
        Arc::new(Socket { slot, bytes: AtomicU32::new(bytes), batons: loom::sync::Mutex::new(Vec::new()) })
    }

    fn serve<R>(&self, f: impl FnOnce(&Slot, &mut WakeList) -> R) -> R {
        let mut list = WakeList::default();
        let result = f(&self.slot, &mut list);
        list.batons().into_iter().for_each(|batons| self.batons.lock().unwrap().append(batons));
        list.deliver();
        result
    }

    /// Bytes arrive.
    fn arrive(&self, bytes: u32) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.serve(|slot, list| slot.edge(SEQ, false, list));
    }

    fn read(&self) -> bool {
        self.bytes.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    /// A poll of an operation that reads a byte.
    fn poll(&self, ticket: &mut Ticket, waker: &Waker) -> Poll<Result<(), Shut>> {
        loop {
            let result = match self.slot.begin() {
                Ok(Some(_)) => {
                    let read = self.read();
                    if read {
                        self.finish();
                    }
                    read.then_some(Ok(()))
                }
                Ok(None) => None,
                Err(shut) => Some(Err(shut)),
            };
            if let Some(result) = result {
                self.leave(ticket, false);
                return Poll::Ready(result);
            }
            if self.serve(|slot, list| slot.arm(Some(ticket), waker, || true, true, list)) {
                return Poll::Pending;
            }
        }
    }

    fn poll_op(&self, op: &mut Op) -> Poll<Result<(), Shut>> {
        self.poll(&mut op.ticket, &op.waker)
    }

    /// A new operation, polled once.
    fn begin(&self) -> (Poll<Result<(), Shut>>, Op) {
        let mut op = Op::new();
        (self.poll_op(&mut op), op)
    }

    /// If it waits, it was woken, and then is done.
    fn settle(&self, (polled, mut op): (Poll<Result<(), Shut>>, Op)) {
        if polled.is_pending() {
            assert!(op.woken());
            assert_eq!(self.poll_op(&mut op), DONE);
        }
    }

    /// Queues an operation that waits already when the model begins.
    fn waiting(&self) -> Op {
        let mut op = Op::new();
        assert!(self.poll_op(&mut op).is_pending());
        op
    }

    fn drop_op(&self, mut op: Op) {
        self.leave(&mut op.ticket, true);
    }

    /// `Gate::finish` after a call that left something.
    fn finish(&self) {
        if !self.slot.finish() {
            self.serve(|slot, list| slot.edge(slot.id().fdseq, false, list));
        }
    }

    /// `Gate::leave`.
    fn leave(&self, ticket: &mut Ticket, dropped: bool) {
        let ticket = std::mem::take(ticket);
        if ticket != 0 && !self.slot.has_left() {
            self.serve(|slot, list| slot.leave(ticket, dropped, list));
        }
    }

    /// What an M does before it goes idle.
    fn pass_batons(&self) {
        loop {
            let batons = std::mem::take(&mut *self.batons.lock().unwrap());
            if batons.is_empty() {
                break;
            }
            for baton in batons {
                self.serve(|slot, list| slot.pass(baton.fdseq, list));
            }
        }
    }
}

fn with<R: 'static>(socket: &Arc<Socket>, f: impl FnOnce(&Socket) -> R + 'static) -> JoinHandle<R> {
    let socket = socket.clone();
    thread::spawn(move || f(&socket))
}

fn bounded(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

const DONE: Poll<Result<(), Shut>> = Poll::Ready(Ok(()));

/// The waiter is woken, or sees the news; and whoever sees it sees the byte. From `Start::Try` the operation's own system call
/// may come first.
#[test]
fn an_edge_and_an_arm_do_not_miss_each_other() {
    for start in [Start::Nil, Start::Try] {
        loom::model(move || {
            let socket = Socket::new(start, 0);
            let kernel = with(&socket, |socket| socket.arrive(1));
            let op = socket.begin();
            kernel.join().unwrap();
            socket.settle(op);
        });
    }
}

/// Of two operations one finds READY taken; it waits, and what the other leaves wakes it. No edge ever comes.
#[test]
fn what_one_operation_leaves_wakes_the_other() {
    loom::model(|| {
        let socket = Socket::new(Start::Try, 2);
        let other = with(&socket, Socket::begin);
        let op = socket.begin();
        [other.join().unwrap(), op].into_iter().for_each(|op| socket.settle(op));
    });
}

/// An operation that reads all there is leaves nothing for the other; the edge after that is the other's.
#[test]
fn an_edge_during_a_read_wakes_who_waits() {
    bounded(3, || {
        let socket = Socket::new(Start::Try, 1);
        let kernel = with(&socket, |socket| socket.arrive(1));
        let other = with(&socket, Socket::begin);
        let op = socket.begin();
        kernel.join().unwrap();
        [other.join().unwrap(), op].into_iter().for_each(|op| socket.settle(op));
    });
}

/// Trap P22: two wait, the first is dropped about when the edge chooses it. The other is woken, without any baton.
#[test]
fn the_turn_of_a_waiter_that_is_dropped_goes_to_the_next() {
    loom::model(|| {
        let socket = Socket::new(Start::Nil, 0);
        let (first, mut second) = (socket.waiting(), socket.waiting());
        let kernel = with(&socket, |socket| socket.arrive(1));
        socket.drop_op(first);
        kernel.join().unwrap();
        assert!(second.woken());
        assert_eq!(socket.poll_op(&mut second), DONE);
    });
}

/// Trap P22 again: both are chosen or dropped in any order, and a third comes to wait.
#[test]
fn the_turn_of_a_waiter_that_is_dropped_reaches_one_that_comes_to_wait() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let first = socket.waiting();
        let kernel = with(&socket, |socket| socket.arrive(1));
        let dropper = with(&socket, move |socket| socket.drop_op(first));
        let second = socket.begin();
        kernel.join().unwrap();
        dropper.join().unwrap();
        socket.settle(second);
    });
}

/// Trap P23: two wait, the one that the edge chooses is never polled again. The baton wakes the other, while a third
/// operation reads, and leaves something.
#[test]
fn the_turn_of_a_waiter_that_is_not_polled_again_goes_to_the_next() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let (first, mut second) = (socket.waiting(), socket.waiting());
        socket.arrive(2);
        assert!(first.woken() && !second.woken());
        let idle = with(&socket, Socket::pass_batons);
        let (polled, _third) = socket.begin();
        idle.join().unwrap();
        socket.pass_batons();
        assert_eq!(polled, DONE);
        assert!(second.woken());
        assert_eq!(socket.poll_op(&mut second), DONE);
    });
}

/// Trap P23 with the edge under way.
#[test]
fn a_baton_and_an_edge_wake_every_waiter() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let (first, second) = (socket.waiting(), socket.waiting());
        let kernel = with(&socket, |socket| socket.arrive(1));
        socket.pass_batons();
        kernel.join().unwrap();
        socket.pass_batons();
        assert!(first.woken() && second.woken());
    });
}

/// Whoever waits is woken and sees why; whoever comes too late to wait is refused.
#[test]
fn a_waiter_wakes_and_sees_shut() {
    for how in [Shut::Closed, Shut::Gone, Shut::Expired] {
        loom::model(move || {
            let socket = Socket::new(Start::Nil, 0);
            let closer = with(&socket, move |socket| socket.serve(|slot, list| slot.shut(SEQ, how, list)));
            let mut op = Op::new();
            let polled = socket.poll_op(&mut op);
            closer.join().unwrap();
            if polled.is_pending() {
                assert!(op.woken());
            }
            assert_eq!(socket.poll_op(&mut op), Poll::Ready(Err(how)));
        });
    }
}

/// A close and an edge at once: both waiters are woken, whichever the edge chose.
#[test]
fn shut_meets_an_edge_and_every_waiter_wakes() {
    loom::model(|| {
        let socket = Socket::new(Start::Nil, 0);
        let ops = [socket.waiting(), socket.waiting()];
        let kernel = with(&socket, |socket| socket.arrive(1));
        socket.serve(|slot, list| slot.shut(SEQ, Shut::Closed, list));
        kernel.join().unwrap();
        assert!(ops.iter().all(Op::woken));
        assert_eq!(socket.slot.ready(), Err(Shut::Closed));
    });
}

/// Two wait. An edge comes, the first is dropped, the deadline passes and is set anew, all at once: the second is woken,
/// and then reads the byte, or else the deadline was what woke it.
#[test]
fn an_edge_a_drop_and_a_deadline() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let (first, mut second) = (socket.waiting(), socket.waiting());
        let kernel = with(&socket, |socket| socket.arrive(1));
        let deadline = with(&socket, |socket| {
            socket.serve(|slot, list| slot.shut(SEQ, Shut::Expired, list));
            socket.slot.renew();
        });
        socket.drop_op(first);
        kernel.join().unwrap();
        deadline.join().unwrap();
        assert!(second.woken());
        assert_eq!(socket.poll_op(&mut second), DONE);
    });
}

/// A close and a deadline at once: whoever waits is woken, and the close is what counts.
#[test]
fn a_close_and_a_deadline() {
    loom::model(|| {
        let socket = Socket::new(Start::Nil, 0);
        let mut op = socket.waiting();
        let deadline = with(&socket, |socket| socket.serve(|slot, list| slot.shut(SEQ, Shut::Expired, list)));
        socket.serve(|slot, list| slot.shut(SEQ, Shut::Closed, list));
        deadline.join().unwrap();
        assert!(op.woken());
        assert_eq!(socket.poll_op(&mut op), Poll::Ready(Err(Shut::Closed)));
    });
}

/// Trap P1: an edge of an earlier socket changes nothing for the one that has the descriptor now.
#[test]
fn a_late_edge_does_not_touch_the_next_generation() {
    loom::model(|| {
        let socket = Socket::new(Start::Nil, 0);
        let late = with(&socket, |socket| socket.serve(|slot, list| slot.edge(SEQ, true, list)));
        socket.serve(|slot, list| slot.retire(list));
        socket.slot.open(Start::Nil);
        let op = socket.waiting();
        late.join().unwrap();
        assert!(!op.woken());
        assert_eq!(socket.slot.ready(), Ok(false));
        socket.serve(|slot, list| slot.edge(SEQ + 1, false, list));
        assert!(op.woken());
        assert!(socket.slot.begin() == Ok(Some(Go { cut: false })));
    });
}

/// Trap P1 for a baton: the descriptor goes out of use and into use again under it.
#[test]
fn a_late_baton_does_not_touch_the_next_generation() {
    bounded(2, || {
        let socket = Socket::new(Start::Nil, 0);
        let late = with(&socket, |socket| socket.serve(|slot, list| slot.pass(SEQ, list)));
        socket.serve(|slot, list| slot.retire(list));
        socket.slot.open(Start::Nil);
        let mut op = Op::new();
        let other = with(&socket, |socket| socket.serve(|slot, list| slot.edge(SEQ + 1, false, list)));
        let armed = socket.serve(|slot, list| slot.arm(Some(&mut op.ticket), &op.waker, || true, true, list));
        late.join().unwrap();
        other.join().unwrap();
        assert_eq!(armed, op.woken());
        assert_eq!(socket.slot.ready(), Ok(true));
        assert_eq!(socket.slot.word.load(Relaxed) & (LOCK | WAIT | TURN), 0);
    });
}

/// Every distinct waker of the `poll_*` methods is woken by one edge.
#[test]
fn wakers_of_two_tasks_are_both_woken() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let arm = |socket: &Socket| {
            let op = Op::new();
            let armed = socket.serve(|slot, list| slot.arm(None, &op.waker, || true, true, list));
            (armed, op)
        };
        let kernel = with(&socket, |socket| socket.arrive(1));
        let other = with(&socket, arm);
        let one = arm(&socket);
        kernel.join().unwrap();
        for (armed, op) in [other.join().unwrap(), one] {
            assert_eq!(armed, op.woken());
        }
        assert_eq!(socket.slot.ready(), Ok(true));
    });
}

/// The slot as the lock of `write_all`: no edge, READY is free.
struct Lock {
    socket: Arc<Socket>,
    inside: Arc<UnsafeCell<u32>>,
}

impl Lock {
    fn visit(&self) {
        let mut op = Op::new();
        loop {
            match self.socket.slot.begin() {
                Ok(Some(_)) => break,
                Ok(None) => {}
                Err(_) => unreachable!("nobody closes it"),
            }
            if self.socket.serve(|slot, list| slot.arm(Some(&mut op.ticket), &op.waker, || true, true, list)) {
                // Who is forgotten here sleeps for ever, which loom reports.
                op.flag.thread.park();
            }
        }
        self.socket.leave(&mut op.ticket, false);
        // SAFETY: the lock is held; loom checks that this is exclusive.
        self.inside.with_mut(|n| unsafe { *n += 1 });
        self.socket.finish();
    }
}

#[test]
#[expect(clippy::arc_with_non_send_sync, reason = "the lock that is modelled makes it so")]
fn the_write_lock_excludes_and_is_handed_over() {
    for (threads, preemptions) in [(1, 4), (2, 2)] {
        bounded(preemptions, move || {
            let lock = Lock { socket: Socket::new(Start::Try, 0), inside: Arc::new(UnsafeCell::new(0)) };
            let others = (0..threads).map(|_| {
                let lock = Lock { socket: lock.socket.clone(), inside: lock.inside.clone() };
                thread::spawn(move || lock.visit())
            });
            let others: Vec<_> = others.collect();
            lock.visit();
            others.into_iter().for_each(|other| other.join().unwrap());
            // SAFETY: everybody else is gone.
            assert_eq!(lock.inside.with(|n| unsafe { *n }), threads + 1);
        });
    }
}

/// One of gopark's own tasks reads two bytes that arrive one by one: its kept waker serves both waits.
#[test]
fn an_own_task_is_woken_for_each_edge() {
    bounded(3, || {
        let socket = Socket::new(Start::Nil, 0);
        let rig = Rig::new();
        let there = socket.clone();
        let (mut left, mut ticket) = (2, 0);
        let join = rig.spawn(poll_fn(move |cx| {
            while left > 0 {
                match there.poll(&mut ticket, cx.waker()) {
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending => return Poll::Pending,
                }
                left -= 1;
            }
            Poll::Ready(())
        }));
        let kernel = with(&socket, |socket| {
            socket.arrive(1);
            socket.arrive(1);
        });
        rig.run_all();
        kernel.join().unwrap();
        rig.run_all();
        assert!(join.is_finished());
        drop(join);
        socket.serve(|slot, list| slot.retire(list));
        rig.end();
    });
}
