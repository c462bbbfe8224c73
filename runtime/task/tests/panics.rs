//! S23: a panic ends the task that it is in, and nothing else.

use super::*;

#[test]
fn panic_in_poll_and_in_drop() {
    let rig = Rig::new();
    let bomb = || OnDrop(|| panic!("drop"));
    let future = |bomb| {
        poll_fn(move |_| -> Poll<()> {
            let _bomb = &bomb;
            panic!("poll")
        })
    };
    let (join, detached) = (rig.spawn(future(bomb())), rig.spawn(future(bomb())));
    drop(detached);
    assert_eq!(rig.run_all(), 2);
    assert_eq!(message(result(join).unwrap_err()), "poll");
    assert_eq!(rig.unjoined(), 1);
    rig.end();
}

#[test]
fn panic_in_drop_after_ready() {
    let (rig, drops) = (Rig::new(), Drops::default());
    let (bomb, mut output) = (OnDrop(|| panic!("drop")), Some(drops.guard()));
    let join = rig.spawn(poll_fn(move |_| {
        let _bomb = &bomb;
        Poll::Ready(output.take())
    }));
    rig.run_all();
    assert_eq!(message(result(join).unwrap_err()), "drop");
    assert_eq!(drops.count(), 1);
    rig.end();
}

#[test]
fn panic_in_drop_after_abort() {
    let rig = Rig::new();
    let (join, waker, _) = waiting(&rig, OnDrop(|| panic!("drop")));
    join.abort();
    rig.run_all();
    assert_eq!(message(result(join).unwrap_err()), "drop");
    drop(waker);
    rig.end();
}

#[test]
fn panic_in_drop_of_output() {
    let rig = Rig::new();
    let bomb = || ready(OnDrop(|| panic!("output")));
    drop(rig.spawn(bomb()));
    let late = rig.spawn(bomb());
    rig.run_all();
    assert_eq!(rig.unjoined(), 1);
    drop(late);
    assert_eq!(rig.unjoined(), 2);
    rig.end();
}

#[test]
fn panic_and_detach() {
    let rig = Rig::new();
    let (early, late) = (rig.spawn(async { panic!() }), rig.spawn(async { panic!() }));
    drop::<JoinHandle<()>>(early);
    rig.run_all();
    assert_eq!(rig.unjoined(), 1);
    drop::<JoinHandle<()>>(late);
    assert_eq!(rig.unjoined(), 2);
    rig.end();
}

/// The payload that the future's drop throws after a panic in its poll throws too when it is dropped, and so does what
/// that throws; the latter is leaked, of size zero here.
#[test]
fn panic_in_drop_of_payload() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(OnDrop(|| panic!("again")));
        }
    }
    let rig = Rig::new();
    let on_drop = OnDrop(|| panic_any(Bomb));
    let join = rig.spawn(poll_fn(move |_| -> Poll<()> {
        let _on_drop = &on_drop;
        panic!("poll")
    }));
    rig.run_all();
    assert_eq!(message(result(join).unwrap_err()), "poll");
    rig.end();
}

/// The hook's payload panics too when it is dropped.
#[test]
fn panic_in_hook() {
    let rig = Rig::new();
    drop(rig.spawn(async { panic_any(AngryHook) }));
    let join = rig.spawn(ready(()));
    assert_eq!(rig.run_all(), 2);
    assert!(result(join).is_ok());
    assert_eq!(rig.unjoined(), 1);
    rig.end();
}

/// A join waker whose clone, wake or drop panics.
fn angry_waker<const CLONE: bool>() -> Waker {
    const fn table<const CLONE: bool>() -> &'static RawWakerVTable {
        &RawWakerVTable::new(
            |_| if CLONE { panic!("clone") } else { RawWaker::new(std::ptr::null(), table::<false>()) },
            |_| panic!("wake"),
            |_| panic!("wake by ref"),
            |_| panic!("drop"),
        )
    }
    // SAFETY: the table's functions use no data, and nothing that has to be thread-safe.
    unsafe { Waker::new(std::ptr::null(), table::<CLONE>()) }
}

#[test]
fn panic_in_join_waker() {
    let rig = Rig::new();
    let angry = std::mem::ManuallyDrop::new(angry_waker::<false>());
    let unclonable = std::mem::ManuallyDrop::new(angry_waker::<true>());

    let mut join = rig.spawn(ready(1));
    assert!(poll_with(&mut join, &angry).is_pending());
    assert_eq!(rig.run_all(), 1);
    assert_eq!(result(join).unwrap(), 1);

    let mut join = rig.spawn(ready(()));
    assert!(poll_with(&mut join, &angry).is_pending());
    drop(join);
    assert_eq!(rig.run_all(), 1);

    // Where the one who polls brought the waker, it gets the panic; the task does not care.
    let mut join = rig.spawn(ready(3));
    assert!(poll_with(&mut join, Waker::noop()).is_pending());
    assert!(caught(|| poll_with(&mut join, &unclonable)).is_err());
    assert!(poll_with(&mut join, &angry).is_pending());
    assert!(caught(|| poll_with(&mut join, Waker::noop())).is_err());
    assert_eq!(rig.run_all(), 1);
    assert_eq!(result(join).unwrap(), 3);
    rig.end();
}
