//! Two workers on one CPU part, where another has time to spare, and may run everywhere after it.

mod support;

use gopark::{Builder, yield_now};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use support::watchdog;

type Set = [u64; 128];
const EVERYWHERE: Set = [!0; 128];

/// How often a thread has named some CPUs on which it is to run.
static CONFINED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Stands before the C library's. At first there is no memory for a thread to run everywhere again.
///
/// # Safety
/// As for the one of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn sched_setaffinity(pid: i32, size: usize, set: *const u64) -> i32 {
    // SAFETY: the caller's promise.
    let everywhere = unsafe { std::slice::from_raw_parts(set, size / 8) }.iter().all(|&word| word == !0);
    if !everywhere {
        CONFINED.fetch_add(1, SeqCst);
        REFUSED.set(false);
    } else if !REFUSED.replace(true) {
        // SAFETY: the calling thread's own.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size, set) as i32 }
}

fn run_on(set: &Set) {
    // SAFETY: the kernel reads as many bytes.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(set), set.as_ptr()) };
}

fn only(cpu: usize) -> Set {
    let mut set = [0; 128];
    set[cpu / 64] = 1 << (cpu % 64);
    set
}

/// Computes until then.
fn compute(until: Instant) {
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Where a thread may run, by what /proc has of it.
fn allowed(thread: &Path) -> Option<String> {
    let status = fs::read_to_string(thread.join("status")).ok()?;
    status.lines().find(|line| line.starts_with("Cpus_allowed_list")).map(str::to_owned)
}

#[test]
fn two_workers_on_one_cpu_part() {
    let _watchdog = watchdog(60);
    let cpus = thread::available_parallelism().unwrap().get();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    if cpus == 1 || online.trim() != format!("0-{}", cpus - 1) {
        eprintln!("not shown: there is one CPU, or this process is confined, and its threads are left where they are");
        return;
    }
    let done = Arc::new(AtomicBool::new(false));
    // One thread on every other CPU: the kernel finds that two here and one there are even.
    let others = (1..cpus).map(|cpu| {
        let done = done.clone();
        thread::spawn(move || {
            run_on(&only(cpu));
            while !done.load(SeqCst) {
                compute(Instant::now() + Duration::from_millis(1));
            }
        })
    });
    let others: Vec<_> = others.collect();
    let rt = Builder::new().workers(2).thread_name("apart").build().unwrap();
    while CONFINED.load(SeqCst) < 4 {
        // Each holds a worker until both are on the first CPU.
        let both = Arc::new(Barrier::new(2));
        let gather = || {
            let both = both.clone();
            rt.spawn(async move {
                run_on(&only(0));
                both.wait();
                run_on(&EVERYWHERE);
            })
        };
        let gathered = [gather(), gather()];
        let busy = (0..16).map(|_| {
            rt.spawn(async {
                for _ in 0..100 {
                    compute(Instant::now() + Duration::from_micros(20));
                    yield_now().await;
                }
            })
        });
        let busy: Vec<_> = busy.collect();
        rt.block_on(async {
            for task in gathered.into_iter().chain(busy) {
                task.await.unwrap();
            }
        });
    }
    done.store(true, SeqCst);
    others.into_iter().for_each(|other| other.join().unwrap());
    // One that was refused asks again, or this hangs.
    let everywhere = allowed(Path::new("/proc/thread-self"));
    let threads = || fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    while threads().filter_map(|thread| allowed(&thread)).any(|cpus| Some(cpus) != everywhere) {
        thread::yield_now();
    }
}
