//! A thread that leaves its CPU, and one that somebody has confined.

use super::{cpu, cpus_online, leave_cpus};
use std::fs;
use std::thread;

/// Where the calling thread may run, in the kernel's words.
fn allowed() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap().to_owned()
}

/// The machine has a second CPU, and this process the use of it.
fn is_free() -> bool {
    let usable = thread::available_parallelism().unwrap().get();
    usable > 1 && cpus_online() == Some(usable as u32)
}

#[test]
fn thread_leaves_its_cpu_and_may_run_everywhere_after_it() {
    thread::spawn(|| {
        let before = allowed();
        let left = (0..100).filter(|_| {
            let here = cpu();
            leave_cpus([here].into_iter());
            cpu() != here
        });
        // The kernel may have brought it back once or twice.
        assert!(left.count() > 90 || !is_free());
        assert_eq!(allowed(), before);
        leave_cpus(0..1 << 14);
        assert_eq!(allowed(), before, "there is no CPU to go to");
    })
    .join()
    .unwrap();
}

#[test]
fn confined_thread_stays_confined() {
    thread::spawn(|| {
        let (here, mut set) = (cpu(), [0; 128]);
        set[here / 64] = 1u64 << (here % 64);
        // SAFETY: the kernel reads as many bytes.
        unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) };
        let confined = allowed();
        leave_cpus([here + 1].into_iter());
        assert_eq!(allowed(), confined);
    })
    .join()
    .unwrap();
}
