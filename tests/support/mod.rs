//! What the tests share. Each test file uses its part of it.
#![allow(dead_code)]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// No test needs as long as this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// See [`watchdog`].
#[must_use = "it watches until it is dropped"]
pub struct Watchdog(#[expect(unused, reason = "dropped, it tells the thread")] mpsc::Sender<()>);

/// Aborts the process, naming the test, if the guard still lives after a minute: a hang fails instead of lasting.
pub fn watchdog() -> Watchdog {
    watchdog_of(PATIENCE)
}

/// The same with another patience, for a test that has much to do.
pub fn watchdog_of(patience: Duration) -> Watchdog {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let (alive, gone) = mpsc::channel();
    thread::spawn(move || {
        if let Err(mpsc::RecvTimeoutError::Timeout) = gone.recv_timeout(patience) {
            eprintln!("watchdog: {test} hangs: it is not done after {patience:?}");
            std::process::abort();
        }
    });
    Watchdog(alive)
}
