//! `StuckTask::backtrace`: the feature of that name.

mod support;

use gopark::{Builder, TaskId};
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::watchdog;

#[inline(never)]
fn blocks_here(release: &Receiver<()>) {
    release.recv().unwrap();
}

#[inline(never)]
fn computes_here(release: &Receiver<()>) {
    while release.try_recv() == Err(TryRecvError::Empty) {
        std::hint::spin_loop();
    }
}

/// It names the function in which the task is stuck, and nothing of the runtime around it.
#[test]
fn the_function_that_is_stuck() {
    let _watchdog = watchdog(60);
    for (stuck, name) in [(blocks_here as fn(&Receiver<()>), "blocks_here"), (computes_here, "computes_here")] {
        let ((tell, told), (release, released)) = (channel(), channel());
        let rt = Builder::new()
            .workers(1)
            .on_stuck_task(move |task| drop(tell.send(task.backtrace().map(str::to_owned))))
            .build()
            .unwrap();
        let task = rt.spawn(async move { stuck(&released) });
        let backtrace = told.recv().unwrap().expect("a backtrace");
        release.send(()).unwrap();
        rt.block_on(task).unwrap();
        assert!(backtrace.contains(name), "{backtrace}");
        assert!(backtrace.contains("rt_backtrace.rs:"), "{backtrace}");
        assert!(!backtrace.contains(concat!(env!("CARGO_MANIFEST_DIR"), "/runtime/")), "{backtrace}");
        assert!(!backtrace.contains("restore_rt") && !backtrace.contains("unwind"), "{backtrace}");
    }
}

/// Several at once, on several threads: each has its own.
#[test]
fn two_tasks_in_two_places() {
    let _watchdog = watchdog(60);
    let (tell, told) = channel();
    let hook = move |task: &gopark::StuckTask| drop(tell.send((task.task().id(), task.to_string())));
    let rt = Builder::new().workers(2).on_stuck_task(hook).build().unwrap();
    let ((release1, released1), (release2, released2)) = (channel(), channel());
    let blocks = rt.spawn(async move { blocks_here(&released1) });
    let computes = rt.spawn(async move { computes_here(&released2) });
    for _ in 0..2 {
        let (id, text) = told.recv().unwrap();
        assert_eq!(id == blocks.id(), text.contains("blocks_here"), "{text}");
        assert_eq!(id == computes.id(), text.contains("computes_here"), "{text}");
    }
    release1.send(()).unwrap();
    release2.send(()).unwrap();
    rt.block_on(blocks).unwrap();
    rt.block_on(computes).unwrap();
}

/// Names are put to the addresses after the look at whether the task has moved on: that takes longer than many a task is stuck.
#[test]
fn a_task_that_is_over_by_then() {
    let _watchdog = watchdog(60);
    let over: Arc<Mutex<HashSet<TaskId>>> = Arc::default();
    let (tell, told) = channel();
    let seen = over.clone();
    let hook = move |task: &gopark::StuckTask| {
        let late = task.backtrace().is_some() && seen.lock().unwrap().contains(&task.task().id());
        let _ = late.then(|| tell.send(()));
    };
    let rt = Builder::new().workers(1).on_stuck_task(hook).build().unwrap();
    for millis in (10..60).cycle() {
        let task = rt.spawn(async move { thread::sleep(Duration::from_millis(millis)) });
        let id = task.id();
        rt.block_on(task).unwrap();
        over.lock().unwrap().insert(id);
        if told.try_recv().is_ok() {
            break;
        }
    }
}

/// The signal interrupts no call of the task's that std would not take up again.
#[test]
fn sleep_is_taken_up_again() {
    let _watchdog = watchdog(60);
    let (tell, told) = channel();
    let rt = Builder::new().workers(1).on_stuck_task(move |_| tell.send(()).unwrap()).build().unwrap();
    let time = Duration::from_millis(300);
    let task = rt.spawn(async move {
        let start = Instant::now();
        thread::sleep(time);
        start.elapsed()
    });
    told.recv().unwrap();
    assert!(rt.block_on(task).unwrap() >= time);
}
