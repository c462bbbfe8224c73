//! The slot on one thread: who is woken in which order, and what becomes of each waker. loom has what needs two threads.
//! Runs under Miri.

mod own;

use super::*;
use std::collections::VecDeque as Queue;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Poll, Wake};

/// The waker of another executor: counts its wakes, and by `Arc::strong_count` its copies.
#[derive(Debug, Default)]
struct Foreign(AtomicUsize);

impl Wake for Foreign {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[derive(Debug)]
struct Op {
    foreign: Arc<Foreign>,
    waker: Waker,
    ticket: Ticket,
}

impl Op {
    fn new() -> Op {
        let foreign = Arc::new(Foreign::default());
        Op { waker: foreign.clone().into(), foreign, ticket: 0 }
    }

    fn wakes(&self) -> usize {
        self.foreign.0.load(SeqCst)
    }

    /// How many copies of the waker others have.
    fn copies(&self) -> usize {
        Arc::strong_count(&self.foreign) - 2
    }
}

struct Rigged {
    slot: Slot,
    batons: Vec<SlotId>,
}

const SEQ: u32 = u32::MAX;
/// A slot in the last generation before the number begins anew.
fn open(start: Start) -> Slot {
    let slot = Slot::new(4);
    slot.word.store(u64::from(SEQ) << FDSEQ | CLOSED, Ordering::Relaxed);
    slot.open(start);
    slot
}

/// A generation that is over.
const LATE: u32 = 1;

impl Rigged {
    fn new(start: Start) -> Rigged {
        Rigged { slot: open(start), batons: Vec::new() }
    }

    fn serve<R>(&mut self, f: impl FnOnce(&Slot, &mut WakeList) -> R) -> R {
        let mut list = WakeList::default();
        let result = f(&self.slot, &mut list);
        list.batons().into_iter().for_each(|batons| self.batons.append(batons));
        list.deliver();
        // Between two calls the lock is free, no turn is left unserved, and WAIT tells the truth.
        let word = self.slot.word.load(SeqCst);
        assert_eq!(word & (LOCK | TURN), 0);
        // SAFETY: this thread has the slot to itself.
        let waiting = self.slot.waiters.with(|w| !unsafe { &*w }.is_empty());
        assert_eq!(word & WAIT != 0, waiting);
        result
    }

    fn arm(&mut self, op: &mut Op) -> bool {
        self.serve(|slot, list| slot.arm(Some(&mut op.ticket), &op.waker, || true, true, list))
    }

    fn arm_poll(&mut self, op: &Op) -> bool {
        self.serve(|slot, list| slot.arm(None, &op.waker, || true, true, list))
    }

    fn edge(&mut self) {
        self.serve(|slot, list| slot.edge(SEQ, false, list));
    }

    fn finish(&mut self) {
        if !self.slot.finish() {
            self.serve(|slot, list| slot.edge(SEQ, false, list));
        }
    }

    fn leave(&mut self, op: &mut Op, dropped: bool) {
        let ticket = std::mem::take(&mut op.ticket);
        if ticket != 0 && !self.slot.has_left() {
            self.serve(|slot, list| slot.leave(ticket, dropped, list));
        }
    }

    fn retire(&mut self) {
        self.serve(|slot, list| slot.retire(list));
    }

    fn go(&self) -> bool {
        matches!(self.slot.begin(), Ok(Some(_)))
    }
}

fn waiting<const N: usize>(slot: &mut Rigged) -> [Op; N] {
    std::array::from_fn(|_| {
        let mut op = Op::new();
        assert!(slot.arm(&mut op));
        op
    })
}

fn wakes(ops: &[Op]) -> Vec<usize> {
    ops.iter().map(Op::wakes).collect()
}

// News

/// Trap P17 too: what was seen may be gone when it is tried, and then the next edge counts.
#[test]
fn edge_and_begin_and_arm() {
    let mut slot = Rigged::new(Start::Nil);
    assert!(!slot.go());
    assert_eq!(slot.slot.ready(), Ok(false));
    slot.edge();
    slot.edge();
    assert_eq!(slot.slot.ready(), Ok(true));
    assert!(slot.go() && !slot.go());
    let mut op = Op::new();
    assert!(slot.arm(&mut op));
    slot.edge();
    assert_eq!((op.wakes(), slot.batons.len()), (1, 0));
    assert!(slot.go());
}

#[test]
fn edge_before_arm() {
    let mut slot = Rigged::new(Start::Nil);
    slot.edge();
    let mut op = Op::new();
    assert!(!slot.arm(&mut op));
    assert_eq!((op.copies(), op.ticket), (0, 0));
}

/// A fresh slot is worth a try, but `readable` waits for the kernel's word.
#[test]
fn open_and_try_and_readable() {
    let mut slot = Rigged::new(Start::Try);
    assert_eq!(slot.slot.ready(), Ok(false));
    let (mut op, mut observer) = (Op::new(), Op::new());
    assert!(!slot.arm(&mut op));
    assert!(slot.serve(|slot, list| slot.arm(Some(&mut observer.ticket), &observer.waker, || true, false, list)));
    assert!(slot.go() && !slot.go());
    assert!(slot.arm(&mut op));
    slot.finish();
    assert_eq!((observer.wakes(), op.wakes()), (1, 0));
    assert_eq!(slot.slot.ready(), Ok(true));
}

/// Traps P14, P25: the mark stays until the socket is gone.
#[test]
fn cut_edge_and_begin() {
    let mut slot = Rigged::new(Start::Try);
    assert_eq!(slot.slot.begin(), Ok(Some(Go { cut: false })));
    slot.serve(|slot, list| slot.edge(SEQ, true, list));
    for _ in 0..2 {
        assert_eq!(slot.slot.begin(), Ok(Some(Go { cut: true })));
        slot.finish();
    }
    slot.retire();
    slot.slot.open(Start::Try);
    assert_eq!(slot.slot.begin(), Ok(Some(Go { cut: false })));
}

// The order of the waiters

#[test]
fn edges_choose_in_the_order_of_arming() {
    let mut slot = Rigged::new(Start::Nil);
    let ops = waiting::<5>(&mut slot);
    for n in 1..=5 {
        slot.edge();
        let expected: Vec<_> = (0..5).map(|i| usize::from(i < n)).collect();
        assert_eq!(wakes(&ops), expected);
        assert_eq!(slot.batons.len(), n.min(4));
        assert!(slot.go());
    }
    slot.edge();
    assert_eq!(wakes(&ops), [1; 5]);
}

/// The queue behind the head, and the head that comes back, many times over.
#[test]
fn chosen_and_armed_again_keeps_its_place() {
    let mut slot = Rigged::new(Start::Nil);
    let mut ops = waiting::<3>(&mut slot);
    for n in 1..=3 {
        slot.edge();
        assert!(slot.go());
        // The chosen one found nothing: an operation that was not waiting took it.
        assert!(slot.arm(&mut ops[0]));
        assert_eq!(wakes(&ops), [n, 0, 0]);
    }
    slot.edge();
    assert!(slot.go());
    slot.leave(&mut ops[0], false);
    assert!(slot.arm(&mut ops[0]), "a new operation of the same task");
    for expected in [[4, 1, 0], [4, 1, 1], [5, 1, 1]] {
        slot.edge();
        assert!(slot.go());
        assert_eq!(wakes(&ops), expected);
    }
}

/// They stand in the order in which they came, whoever comes back first. (Otherwise some would be served less than
/// others: net_listen::every_acceptor_gets_its_share.)
#[test]
fn chosen_and_overtaken_and_armed_again() {
    for back in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut slot = Rigged::new(Start::Nil);
        // Also where the numbers come round again.
        // SAFETY: this thread has the slot to itself.
        slot.slot.waiters.with_mut(|w| unsafe { (*w).tickets = POLL - 3 });
        let mut ops = waiting::<5>(&mut slot);
        for _ in 0..3 {
            slot.edge();
        }
        assert!(slot.go());
        for n in back {
            assert!(slot.arm(&mut ops[n]));
        }
        assert_eq!(wakes(&ops), [1, 1, 1, 0, 0]);
        for expected in [[2, 1, 1, 0, 0], [2, 2, 1, 0, 0], [2, 2, 2, 0, 0], [2, 2, 2, 1, 0], [2, 2, 2, 1, 1]] {
            slot.edge();
            assert!(slot.go());
            assert_eq!(wakes(&ops), expected, "{back:?} came back");
        }
    }
}

/// All who still wait have come later, or some have come before: the head is one of many places.
#[test]
fn chosen_and_armed_again_behind_others() {
    let mut slot = Rigged::new(Start::Nil);
    let mut ops = waiting::<4>(&mut slot);
    let poller = Op::new();
    assert!(slot.arm_poll(&poller));
    // The head is gone, and the one after it waits on, with nobody before it.
    slot.edge();
    slot.edge();
    assert!(slot.go());
    assert!(slot.arm(&mut ops[0]));
    slot.edge();
    assert!(slot.go());
    assert_eq!(wakes(&ops), [2, 1, 0, 0]);
    slot.edge();
    assert!(slot.go());
    assert_eq!(wakes(&ops), [2, 1, 1, 0]);
    for n in [2, 0, 1] {
        assert!(slot.arm(&mut ops[n]));
    }
    for expected in [[3, 1, 1, 0], [3, 2, 1, 0], [3, 2, 2, 0], [3, 2, 2, 1]] {
        slot.edge();
        assert!(slot.go());
        assert_eq!(wakes(&ops), expected);
    }
}

#[test]
fn arm_again_with_another_waker() {
    let mut slot = Rigged::new(Start::Nil);
    let mut ops = waiting::<2>(&mut slot);
    for op in &mut ops {
        // As after a move to another task, or `select!` in another order.
        let (old, new) = (op.foreign.clone(), Op::new());
        assert!(slot.arm(op));
        assert_eq!(op.copies(), 2, "the slot's and `old`");
        (op.waker, op.foreign) = (new.waker, new.foreign);
        assert!(slot.arm(op));
        assert_eq!((op.copies(), Arc::strong_count(&old)), (1, 1), "the old waker was dropped");
    }
    slot.edge();
    slot.edge();
    assert_eq!(wakes(&ops), [1, 1]);
    assert_eq!(ops.each_ref().map(Op::copies), [0, 0]);
}

/// A number that comes round again is not zero, and not that of `poll_*`.
#[test]
fn tickets_wrap() {
    let mut slot = Rigged::new(Start::Nil);
    // SAFETY: this thread has the slot to itself.
    slot.slot.waiters.with_mut(|w| unsafe { (*w).tickets = POLL - 3 });
    let mut ops = waiting::<4>(&mut slot);
    assert_eq!(ops.each_ref().map(|op| op.ticket), [POLL - 2, POLL - 1, 1, 2]);
    slot.leave(&mut ops[1], true);
    slot.leave(&mut ops[2], true);
    slot.edge();
    slot.edge();
    assert_eq!(wakes(&ops), [1, 0, 0, 1]);
}

// Leaving

#[test]
fn leave_from_every_place() {
    for gone in 0..4 {
        let mut slot = Rigged::new(Start::Nil);
        let mut ops = waiting::<4>(&mut slot);
        slot.leave(&mut ops[gone], true);
        assert_eq!((ops[gone].ticket, ops[gone].copies()), (0, 0), "a waker is kept for nobody");
        let mut expected = [0; 4];
        for n in (0..4).filter(|n| *n != gone) {
            slot.edge();
            assert!(slot.go());
            expected[n] = 1;
            assert_eq!(wakes(&ops), expected);
        }
    }
}

/// Trap P22.
#[test]
fn chosen_and_dropped() {
    let mut slot = Rigged::new(Start::Nil);
    let mut ops = waiting::<3>(&mut slot);
    slot.edge();
    slot.leave(&mut ops[0], true);
    assert_eq!(wakes(&ops), [1, 1, 0]);
    // The second reads all there is, and then it is dropped: nothing to pass on.
    assert!(slot.go());
    slot.leave(&mut ops[1], true);
    assert_eq!(wakes(&ops), [1, 1, 0]);
    slot.edge();
    assert_eq!(wakes(&ops), [1, 1, 1]);
}

/// An operation that ends well passes nothing on: `finish` has.
#[test]
fn chosen_and_done() {
    let mut slot = Rigged::new(Start::Nil);
    let mut ops = waiting::<3>(&mut slot);
    slot.edge();
    assert!(slot.go());
    slot.finish();
    slot.leave(&mut ops[0], false);
    assert_eq!(wakes(&ops), [1, 1, 0]);
}

/// Trap P23: one turn after another, for as long as something is left.
#[test]
fn chosen_and_never_polled_again() {
    let mut slot = Rigged::new(Start::Nil);
    let ops = waiting::<3>(&mut slot);
    slot.edge();
    for expected in [[1, 1, 0], [1, 1, 1]] {
        let baton = slot.batons.pop().expect("others wait");
        assert_eq!((baton.slot, baton.fdseq), (4, SEQ));
        slot.serve(|slot, list| slot.pass(baton.fdseq, list));
        assert_eq!(wakes(&ops), expected);
    }
    assert!(slot.batons.is_empty());
}

#[test]
fn baton_and_nothing_left() {
    let mut slot = Rigged::new(Start::Nil);
    let ops = waiting::<2>(&mut slot);
    slot.edge();
    assert!(slot.go());
    slot.serve(|slot, list| slot.pass(SEQ, list));
    slot.edge();
    slot.batons.clear();
    slot.serve(|slot, list| slot.pass(SEQ - 1, list));
    assert_eq!((wakes(&ops), slot.batons.len()), (vec![1, 1], 0));
}

// poll_*

/// All of them and one operation, wherever they stand.
#[test]
fn edge_and_polls_and_ops() {
    for order in 0..6 {
        let mut slot = Rigged::new(Start::Nil);
        let (polls, mut ops) = ([Op::new(), Op::new(), Op::new()], [Op::new(), Op::new()]);
        let (mut p, mut o) = (Queue::from_iter(&polls), Queue::from_iter(&mut ops));
        for n in 0..5 {
            match (n + order) % 5 {
                0 | 3 => assert!(slot.arm(o.pop_front().unwrap())),
                _ => assert!(slot.arm_poll(p.pop_front().unwrap())),
            }
        }
        slot.edge();
        assert_eq!((wakes(&polls), wakes(&ops)), (vec![1; 3], vec![1, 0]));
        assert_eq!(slot.batons.len(), 1);
        slot.edge();
        assert_eq!((wakes(&polls), wakes(&ops)), (vec![1; 3], vec![1; 2]));
        assert!(polls.iter().chain(&ops).all(|op| op.copies() == 0));
    }
}

/// The same waker is kept once. (Not under Miri, where two clones of one waker may have two vtables: `will_wake` promises
/// no more.)
#[cfg(not(miri))]
#[test]
fn poll_and_poll_again() {
    let mut slot = Rigged::new(Start::Nil);
    let polls = [Op::new(), Op::new()];
    for _ in 0..3 {
        for poll in &polls {
            assert!(slot.arm_poll(poll));
        }
    }
    assert_eq!(polls.each_ref().map(Op::copies), [1, 1]);
    slot.edge();
    assert_eq!(wakes(&polls), [1, 1]);
    assert_eq!(polls.each_ref().map(Op::copies), [0, 0]);
}

// The end

#[test]
fn shut_and_everything() {
    for how in [Shut::Closed, Shut::Gone] {
        let mut slot = Rigged::new(Start::Try);
        assert!(slot.go());
        let (mut ops, poll) = (waiting::<3>(&mut slot), Op::new());
        assert!(slot.arm_poll(&poll));
        slot.serve(|slot, list| slot.shut(SEQ, how, list));
        assert_eq!((wakes(&ops), poll.wakes(), poll.copies()), (vec![1; 3], 1, 0));
        slot.edge();
        assert_eq!((slot.slot.ready(), slot.slot.begin()), (Err(how), Err(how)));
        assert!(!slot.arm(&mut ops[0]) && !slot.arm_poll(&poll));
        for op in &mut ops {
            slot.leave(op, true);
            assert_eq!((op.wakes(), op.copies()), (1, 0));
        }
        slot.serve(|slot, list| slot.shut(SEQ, Shut::Closed, list));
        assert_eq!(slot.slot.ready(), Err(Shut::Closed), "the user's own word counts more");
    }
}

/// A `poll_*` has no end, so its waker may be there when the socket goes.
#[test]
fn retire_drops_what_waits() {
    let mut slot = Rigged::new(Start::Nil);
    let polls = [Op::new(), Op::new(), Op::new()];
    for poll in &polls {
        assert!(slot.arm_poll(poll));
    }
    slot.retire();
    assert_eq!(polls.each_ref().map(Op::copies), [0; 3]);
    assert_eq!(slot.slot.ready(), Err(Shut::Closed));
    slot.slot.open(Start::Nil);
    assert_eq!(slot.slot.ready(), Ok(false));
    // Trap P1: of the generation before, which is the highest number.
    slot.serve(|slot, list| slot.edge(SEQ, true, list));
    assert_eq!(slot.slot.ready(), Ok(false));
}

// Wakers whose code is not ours: traps S16, S18

/// Each of its functions comes back to the slot, which a lock that is held would not survive.
struct Meddler(Arc<(Slot, AtomicUsize)>);

impl Meddler {
    fn meddle(&self) {
        self.0.1.fetch_add(1, SeqCst);
        let mut list = WakeList::default();
        self.0.0.edge(LATE, false, &mut list);
        self.0.0.pass(LATE, &mut list);
        assert!(list.is_untouched());
    }
}

impl Wake for Meddler {
    fn wake(self: Arc<Self>) {
        self.meddle();
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.meddle();
    }
}

#[test]
fn wake_and_drop_that_come_back() {
    let shared = Arc::new((open(Start::Nil), AtomicUsize::new(0)));
    let mut list = WakeList::default();
    let mut tickets = [0; 3];
    for ticket in &mut tickets {
        let waker = Waker::from(Arc::new(Meddler(shared.clone())));
        assert!(shared.0.arm(Some(ticket), &waker, || true, true, &mut list));
    }
    // One is woken, one is only dropped, one is woken by the end.
    shared.0.edge(SEQ, false, &mut list);
    shared.0.leave(tickets[1], true, &mut list);
    assert_eq!(shared.1.load(SeqCst), 0, "foreign code ran before the list was worked off");
    list.deliver();
    assert_eq!(shared.1.load(SeqCst), 3);
    shared.0.retire(&mut list);
    list.deliver();
    assert_eq!(shared.1.load(SeqCst), 5);
}
