//! What `on_stuck_task` is told.

use super::task::TaskInfo;
use std::fmt;
use std::time::Duration;

/// A task that does not let go of its thread: what [`Builder::on_stuck_task`](crate::Builder::on_stuck_task) is told.
///
/// # Examples
/// ```
/// let (tx, rx) = std::sync::mpsc::channel();
/// let runtime = gopark::Builder::new().on_stuck_task(move |stuck| drop(tx.send(stuck.to_string()))).build()?;
/// runtime.run(async move {
///     // Blocks its thread, which it should not. The others go on.
///     let told = rx.recv().unwrap();
///     assert!(told.contains(file!()));
/// });
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug, Clone)]
pub struct StuckTask {
    pub(crate) task: TaskInfo,
    pub(crate) duration: Duration,
    pub(crate) cpu_time: Duration,
    pub(crate) backtrace: Option<String>,
}

impl StuckTask {
    /// Which task it is.
    pub fn task(&self) -> &TaskInfo {
        &self.task
    }

    /// For about how long it has been in the same poll, to a few milliseconds.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// How much of that it was computing.
    pub fn cpu_time(&self) -> Duration {
        self.cpu_time
    }

    /// Where its thread is, if that can be had: with the feature `backtrace`, and if it has not moved on before it is asked,
    /// which may be while the names of another backtrace are looked up: some milliseconds, or a tenth of a second in a debug build.
    ///
    /// The thread is asked by `SIGURG`, as Go does it, which ends a few system calls with `Interrupted`: those on sockets with
    /// a timeout, poll(2) and its kin (signal(7) lists them). If the program handles that signal itself, there is none.
    pub fn backtrace(&self) -> Option<&str> {
        self.backtrace.as_deref()
    }
}

impl fmt::Display for StuckTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StuckTask { task, duration, cpu_time, backtrace } = self;
        write!(f, "{task}, has been in one poll for {duration:?}, {cpu_time:?} of it computing")?;
        backtrace.as_ref().map_or(Ok(()), |backtrace| write!(f, "\n{backtrace}"))
    }
}
