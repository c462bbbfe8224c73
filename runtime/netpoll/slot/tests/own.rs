//! The slot on one thread, with tasks of gopark's own: which of their wakers are kept, and when they go.

use super::*;
use crate::runtime::task::JoinHandle;
use crate::runtime::task::rig::Rig;
use std::future::poll_fn;

/// A task that reads until `reads` says so.
fn reader(rig: &Arc<Rig>, slot: &Arc<Slot>, reads: usize) -> JoinHandle<()> {
    let (slot, mut ticket, mut left) = (slot.clone(), 0, reads);
    rig.spawn(poll_fn(move |cx| {
        while left > 0 {
            let mut list = WakeList::default();
            if matches!(slot.begin(), Ok(Some(_))) {
                left -= 1;
            } else if slot.arm(Some(&mut ticket), cx.waker(), || true, true, &mut list) {
                return Poll::Pending;
            }
            list.deliver();
        }
        Poll::Ready(())
    }))
}

/// The kept waker serves wait after wait, then the wait of another task; it is dropped once, and keeps nobody's cell.
#[test]
fn own_waker_is_kept_and_dropped_once() {
    let rig = Rig::new();
    let slot = Arc::new(open(Start::Nil));
    let mut list = WakeList::default();
    for reads in [3, 1, 2] {
        let join = reader(&rig, &slot, reads);
        rig.run_all();
        for n in 1..=reads {
            slot.edge(SEQ, false, &mut list);
            list.deliver();
            assert_eq!((rig.run_all(), join.is_finished()), (1, n == reads));
        }
    }
    // Of a task that is complete: its wake does nothing.
    slot.edge(SEQ, false, &mut list);
    assert!(list.gs.is_empty() && rig.next().is_none());
    slot.retire(&mut list);
    list.deliver();
    drop(slot);
    rig.end();
}

/// Own tasks are queued before any foreign waker runs, and in the order of their arming.
#[test]
fn own_and_foreign_waiters() {
    let rig = Rig::new();
    let slot = Arc::new(open(Start::Nil));
    let joins = [reader(&rig, &slot, 1), reader(&rig, &slot, 1)];
    rig.run_all();
    let mut op = Op::new();
    let mut list = WakeList::default();
    assert!(slot.arm(Some(&mut op.ticket), &op.waker, || true, true, &mut list));
    slot.shut(SEQ, Shut::Gone, &mut list);
    assert_eq!((list.gs.len(), op.wakes()), (2, 0));
    for join in &joins {
        let g = list.gs.next().unwrap();
        assert_eq!(g.info().id(), join.id());
        join.abort();
        g.finish();
    }
    list.deliver();
    assert_eq!(op.wakes(), 1);
    slot.retire(&mut list);
    list.deliver();
    drop((joins, slot));
    rig.end();
}

/// Of `poll_*` methods, the wakers of tasks that are complete do not pile up; those of others are left alone, and woken once.
#[test]
fn thin_out_and_the_others() {
    let (rig, slot, mut list) = (Rig::new(), Arc::new(open(Start::Nil)), WakeList::default());
    let poll_slot = |done: bool| {
        let slot = slot.clone();
        rig.spawn(poll_fn(move |cx| {
            let mut list = WakeList::default();
            let news = !slot.arm(None, cx.waker(), || true, true, &mut list);
            list.deliver();
            if done || news { Poll::Ready(()) } else { Poll::Pending }
        }))
    };
    let (mut waiting, mut ops) = (Vec::new(), Vec::new());
    for n in 0..300 {
        drop(poll_slot(true));
        if n % 10 == 0 {
            waiting.push(poll_slot(false));
            ops.push(Op::new());
            let op = ops.last_mut().unwrap();
            assert!(slot.arm((n == 50).then_some(&mut op.ticket), &op.waker, || true, true, &mut list));
        }
        rig.run_all();
    }
    // SAFETY: this thread has the slot to itself.
    let kept = slot.waiters.with(|w| unsafe { &*w }.more.as_ref().unwrap().len());
    assert!((60..200).contains(&kept) && ops.iter().all(|op| op.wakes() == 0), "{kept} are kept");
    slot.edge(SEQ, false, &mut list);
    list.deliver();
    assert_eq!((rig.run_all(), waiting.iter().filter(|join| join.is_finished()).count()), (30, 30));
    assert!(ops.iter().all(|op| op.wakes() == 1));
    slot.retire(&mut list);
    list.deliver();
    assert!(ops.iter().all(|op| op.copies() == 0));
    drop((slot, waiting));
    rig.end();
}
