//! What several test files need.
#![allow(dead_code, unreachable_pub, missing_docs)]

use gopark::Runtime;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A deadline for a test that may hang. Dropped in time, it does nothing.
#[must_use = "dropped at once it watches nothing"]
#[derive(Debug)]
pub struct Watchdog(#[allow(dead_code)] Sender<()>);

/// Ends the process with a message if what it returns is not dropped within `secs` seconds.
#[track_caller]
pub fn watchdog(secs: u64) -> Watchdog {
    let at = std::panic::Location::caller();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let (alive, over): (_, Receiver<()>) = channel();
    std::thread::spawn(move || {
        if over.recv_timeout(Duration::from_secs(secs)) == Err(RecvTimeoutError::Timeout) {
            // Not `eprintln`, which the test harness would keep to itself.
            let _ = writeln!(std::io::stderr(), "watchdog: {test} ({at}) still runs after {secs} s");
            std::process::abort();
        }
    });
    Watchdog(alive)
}

/// Runs one test of this binary in a process of its own, with the given environment. In that process
/// [`is_child`] is true for it, and the watchdog that is set there is the one that counts.
pub fn child(test: &str, env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("GOPARK_TEST_CHILD", test);
    command.env_remove("GOPARK_PROCS").env_remove("RUST_BACKTRACE").envs(env.iter().copied());
    command.output().unwrap()
}

/// Is this process the [`child`] for that test?
pub fn is_child(test: &str) -> bool {
    std::env::var("GOPARK_TEST_CHILD").is_ok_and(|name| name == test)
}

/// splitmix64.
#[derive(Debug, Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }
}

/// Blocks whoever waits, and the thread with it, until it is opened.
#[derive(Debug, Default)]
pub struct Gate(Mutex<bool>, Condvar);

impl Gate {
    pub fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    pub fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// What /proc has of the thread of that name.
pub fn thread_named(name: &str) -> Option<PathBuf> {
    let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    tasks.find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name))
}

/// How often that sysmon has looked, by how often it has waited, as the kernel counts.
pub fn looks_of(sysmon: &str) -> u64 {
    // It has no name before it runs.
    let status = thread_named(sysmon).and_then(|task| std::fs::read_to_string(task.join("status")).ok());
    let status = status.unwrap_or_default();
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    waits.map_or(0, |waits| waits.trim().parse().unwrap())
}

/// A task that holds a worker until the sender goes. It counts as spawned by the caller.
#[track_caller]
pub fn stuck(rt: &Runtime) -> Sender<()> {
    let (release, wait) = channel();
    let (begun_tx, begun) = channel();
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        let _ = wait.recv();
    }));
    begun.recv().unwrap();
    release
}

/// As many tasks as there are workers run at the same time, and no more.
pub fn no_more_than(rt: &Runtime, workers: usize) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (now, most) = (now.clone(), most.clone());
            rt.spawn(async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, SeqCst);
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| rt.block_on(task).unwrap());
    assert!(most.load(SeqCst) <= workers);
}
