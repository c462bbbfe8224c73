//! The runtime as users hold it: `Builder`, `Runtime`, `Handle`, `block_on`, `run`.

use super::budget;
use super::netpoll::Netpoll;
use super::park::Parker;
use super::proc::{Config, Sched, Timer, without_p};
use super::stuck::StuckTask;
use super::task::{JoinHandle, TaskInfo};
use futures_task::{ArcWake, FutureObj, Spawn, SpawnError, waker_ref};
use std::any::Any;
use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::panic::{Location, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

/// Settings of a [`Runtime`].
///
/// # Examples
/// ```
/// let runtime = gopark::Builder::new().workers(2).thread_name("server").build()?;
/// assert_eq!(runtime.run(async { 1 + 1 }), 2);
/// # std::io::Result::Ok(())
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    workers: Option<usize>,
    config: Config,
}

impl Builder {
    /// The settings that [`Runtime::new`] uses.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// How many tasks may run at the same time: Go's GOMAXPROCS. Unless set, what the environment variable
        /// `GOPARK_PROCS` says; without it, as many as the process has CPUs.
        fn workers(n: usize) { workers = Some(n) }

        /// How many threads may exist beyond the workers, for tasks and closures that block: 512 unless set. They are
        /// started when needed, and end after 10 s without work.
        ///
        /// Closures of `spawn_blocking` may take three quarters of them (and one always), so that slow ones leave some for
        /// tasks that block; the others wait their turn. Where no more may be started, or the system refuses, what blocks
        /// takes a worker's place, and tasks wait until it is done; a line on stderr says so, once.
        ///
        /// Nothing is lost at this bound, but what waits for each other there may wait for ever: closures for a closure
        /// that has no thread yet, or a `block_on` or `block_in_place` inside tasks for a task that has none. Only the wakers of
        /// other executors, and what is dropped at the end, get a thread for a moment even then, eight at most.
        fn max_threads(n: usize) { config.max_threads = Some(n) }

        /// Whether a thread that is stuck in a task loses its right to run tasks, so that others go on while it blocks or
        /// computes: yes unless set. It loses it after some 4 ms of waiting or 10 ms of CPU time, if anybody waits. To tell
        /// one that waits from one that gets no CPU, a file in /proc is opened for a moment.
        fn retake(on: bool) { config.keep_ps = !on }

        /// What the runtime's threads are called: "gopark" unless set. Linux shows the first 15 bytes.
        fn thread_name(name: impl Into<String>) { config.thread_name = Some(name.into()) }

        /// How many bytes of stack each thread gets: std's default unless set.
        fn thread_stack_size(bytes: usize) { config.stack_size = Some(bytes) }

        /// Called on each thread that runs tasks before it does anything else. A panic in it is caught. One that waits for a task
        /// of this runtime has another thread started for that, in which it is called, too: if it does so every time, no task
        /// ever runs.
        fn on_thread_start(f: impl Fn() + Send + Sync + 'static) { config.on_thread_start = Some(Box::new(f)) }

        /// Called on each thread that runs tasks when it has done everything else. A panic in it is caught.
        fn on_thread_stop(f: impl Fn() + Send + Sync + 'static) { config.on_thread_stop = Some(Box::new(f)) }

        /// Called when a task has kept a worker's place for long in one poll: some 4 ms of waiting, or 10 ms of CPU time.
        /// Once for each time, on another thread than the task's; not inside `block_in_place`, which has given the place
        /// away. What is to be told while the hook runs is told afterwards, and what finds no thread
        /// ([`max_threads`](Self::max_threads)) is not: then a line on stderr, once, names those that are in a poll. The end
        /// of the runtime waits for the hook. A panic in it is caught.
        fn on_stuck_task(f: impl Fn(&StuckTask) + Send + Sync + 'static) { config.on_stuck_task = Some(Box::new(f)) }

        /// Called with the payload of a task's panic that no `JoinHandle` will deliver: on the thread where the task
        /// panicked, or, where it had done so before, on the one that drops the `JoinHandle`. Unless set, one line on
        /// stderr says so. A panic in it is caught.
        fn on_task_panic(f: impl Fn(&TaskInfo, &(dyn Any + Send)) + Send + Sync + 'static) {
            config.on_task_panic = Some(Box::new(f))
        }
    }

    /// Makes the runtime and starts its first threads.
    ///
    /// # Errors
    /// `InvalidInput` if the number of workers (or `GOPARK_PROCS`) is not between 1 and 4096, or the thread name has a
    /// NUL byte; what the system says if it has no descriptor or thread left.
    pub fn build(self) -> io::Result<Runtime> {
        if self.config.thread_name.as_ref().is_some_and(|name| name.contains('\0')) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "thread_name must not contain a NUL byte"));
        }
        let procs = procs(self.workers, std::env::var_os("GOPARK_PROCS"), thread::available_parallelism)?;
        let sched = Sched::new(procs, self.config)?;
        // Dropped, it stops what has been started.
        let runtime = Runtime { handle: Handle { sched }, waits: true };
        runtime.handle.sched.start()?;
        Ok(runtime)
    }
}

/// How many Ps: what was asked for, by `workers` or else by the environment, or as many as there are CPUs.
fn procs(
    workers: Option<usize>,
    env: Option<OsString>,
    cpus: impl FnOnce() -> io::Result<NonZeroUsize>,
) -> io::Result<u32> {
    let env = env.map(|text| text.to_string_lossy().into_owned());
    let (asked, how) = match (workers, env) {
        (Some(n), _) => (Some(n), format!("workers({n})")),
        (None, Some(text)) => (text.trim().parse().ok(), format!("GOPARK_PROCS={text}")),
        (None, None) => return Ok(cpus().map_or(1, |n| n.get().min(4096) as u32)),
    };
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{how}: want a number from 1 to 4096"));
    asked.filter(|n| (1..=4096).contains(n)).map(|n| n as u32).ok_or_else(invalid)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.workers)
            .field("max_threads", &self.config.max_threads)
            .field("retake", &!self.config.keep_ps)
            .field("thread_name", &self.config.thread_name)
            .field("thread_stack_size", &self.config.stack_size)
            .finish_non_exhaustive()
    }
}

/// A running machine: threads, queues, a netpoller.
///
/// Dropping it shuts it down: polls that are under way and closures that have begun are waited for, then every task
/// that is left is dropped. Dropped by one of its own tasks, it does the same without waiting. Whoever still waits for one
/// of its sockets gets [`RuntimeGone`](crate::net::RuntimeGone), and a sleep awaited elsewhere panics: at once, if everybody
/// else is done or waits too, and where a poll keeps its thread otherwise, after a tenth of a second.
#[derive(Debug)]
pub struct Runtime {
    handle: Handle,
    /// Whether its drop waits for the end.
    waits: bool,
}

impl Runtime {
    /// A runtime with the settings of [`Builder::new`].
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> io::Result<Self> {
        Builder::new().build()
    }

    /// A handle to spawn and block with, from anywhere.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// See [`Handle::block_on`].
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    /// See [`Handle::run`].
    #[track_caller]
    pub fn run<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> F::Output {
        self.handle.run(future)
    }

    /// See [`Handle::spawn`].
    #[track_caller]
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        self.handle.spawn(future)
    }

    /// See [`Handle::spawn_blocking`].
    #[track_caller]
    pub fn spawn_blocking<F: FnOnce() -> R + Send + 'static, R: Send + 'static>(&self, f: F) -> JoinHandle<R> {
        self.handle.spawn_blocking(f)
    }

    /// Makes this the current runtime of the thread until the guard is dropped.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Shuts the runtime down and waits for it, but not longer than `timeout`.
    ///
    /// # Errors
    /// [`StillRunning`], if the runtime's threads had not all ended. A poll or a closure that is under way goes on, and the
    /// runtime ends when it does. (A thread that rests takes a moment to end, too.)
    /// Called by one of the runtime's own tasks, it is that task: the error then comes at once. The destructors of a thread's
    /// own variables (`thread_local!`) are not waited for.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Result<(), StillRunning> {
        self.waits = false;
        let sched = &self.handle.sched;
        sched.stop();
        let limit = if sched.is_inside() { Duration::ZERO } else { timeout };
        let threads = without_p(|| sched.wait_ended(Some(limit)));
        if threads == 0 { Ok(()) } else { Err(StillRunning { threads, tasks: sched.owned.running() }) }
    }

    /// Shuts the runtime down without waiting for it.
    pub fn shutdown_background(mut self) {
        // Its drop stops it.
        self.waits = false;
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let sched = &self.handle.sched;
        sched.stop();
        if self.waits && !sched.is_inside() {
            without_p(|| sched.wait_ended(None));
        }
    }
}

/// What [`Runtime::shutdown_timeout`] did not live to see end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StillRunning {
    threads: usize,
    tasks: Vec<TaskInfo>,
}

impl StillRunning {
    /// How many of the runtime's threads had not ended.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The tasks and closures that were still in a poll.
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }
}

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the runtime has not ended; threads: {}", self.threads)?;
        self.tasks.iter().try_for_each(|task| write!(f, "; {task}"))
    }
}

impl std::error::Error for StillRunning {}

thread_local! {
    /// The runtimes that this thread has entered, the last one last. (A worker is inside its own without this.) `None` where a
    /// guard was dropped before a later one. Never dropped, so that the destructors of a thread may still ask; each guard
    /// takes out what it entered, and the last one the storage.
    static ENTERED: RefCell<ManuallyDrop<Vec<Option<Handle>>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
}

/// A way into a runtime, from any thread. It does not keep the runtime running: once that is shut down, what is
/// spawned is cancelled.
#[derive(Debug, Clone)]
pub struct Handle {
    sched: Arc<Sched>,
}

impl Handle {
    /// The runtime that the calling code runs in.
    ///
    /// # Panics
    /// Outside a runtime.
    #[track_caller]
    pub fn current() -> Handle {
        let Some(handle) = Handle::try_current() else { outside("Handle::current") };
        handle
    }

    /// The runtime that the calling code runs in, if any.
    pub fn try_current() -> Option<Handle> {
        with_sched(|sched| sched.map(|sched| Handle { sched: sched.clone() }))
    }

    /// Spawns a task. It starts at once and runs beside the others, whether or not its handle is awaited.
    ///
    /// # Examples
    /// ```
    /// let runtime = gopark::Runtime::new()?;
    /// let task = runtime.handle().spawn(async { 2 * 3 });
    /// assert_eq!(runtime.block_on(task).unwrap(), 6);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        self.sched.spawn(future, false, Location::caller())
    }

    /// Runs a closure that may block on a thread of its own. Aborting it helps only before it has begun.
    ///
    /// # Examples
    /// ```
    /// let runtime = gopark::Runtime::new()?;
    /// let sum = runtime.handle().spawn_blocking(|| (1..=10).sum::<i32>());
    /// assert_eq!(runtime.block_on(sum).unwrap(), 55);
    /// # std::io::Result::Ok(())
    /// ```
    #[track_caller]
    pub fn spawn_blocking<F: FnOnce() -> R + Send + 'static, R: Send + 'static>(&self, f: F) -> JoinHandle<R> {
        self.sched.spawn(async move { f() }, true, Location::caller())
    }

    /// Polls a future on the calling thread until it is ready. The thread runs nobody else's task meanwhile, so
    /// nothing delays the future; and it need not be `Send`. Any number of threads may do this at once.
    ///
    /// On one of a runtime's own threads the worker's place is handed to another thread first.
    ///
    /// # Panics
    /// If the future panics.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = self.enter();
        without_p(|| poll_here(future))
    }

    /// Runs a future as a task on the workers, as `main` is a goroutine in Go, and blocks until it is done. For a main
    /// task that is itself busy: it wakes, and is woken, without a change of thread.
    ///
    /// # Panics
    /// If the future panics; and if the runtime shuts down before the future is ready.
    #[track_caller]
    pub fn run<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> F::Output {
        let task = self.spawn(future);
        match self.block_on(task) {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(payload) => resume_unwind(payload),
                Err(_) => panic!("gopark: the runtime was shut down before the future given to `run` was ready"),
            },
        }
    }

    /// Makes this the current runtime of the thread until the guard is dropped.
    pub fn enter(&self) -> EnterGuard<'_> {
        let place = ENTERED.with_borrow_mut(|entered| {
            entered.push(Some(self.clone()));
            entered.len() - 1
        });
        EnterGuard { place, handle: PhantomData, not_send: PhantomData }
    }

    /// A timer of the current runtime.
    #[inline]
    #[track_caller]
    pub(crate) fn timer(who: &str) -> Timer {
        let Some(timer) = with_sched(|sched| sched.map(|sched| Timer::new(sched))) else { outside(who) };
        timer
    }

    /// The netpoller of the current runtime; outside of one, `otherwise`.
    #[track_caller]
    pub(crate) fn netpoll(who: &str, otherwise: Option<&Arc<Netpoll>>) -> Arc<Netpoll> {
        let found = with_sched(|sched| sched.map(|sched| &sched.netpoll).or(otherwise).cloned());
        let Some(netpoll) = found else { outside(who) };
        netpoll
    }
}

/// Where the user's line is known, the panic names it: closures lose it.
#[cold]
#[track_caller]
fn outside(who: &str) -> ! {
    panic!("gopark: {who} needs a runtime: call it inside `gopark::run`, `gopark::block_on`, or under `Handle::enter`")
}

#[inline]
fn with_sched<R>(f: impl FnOnce(Option<&Arc<Sched>>) -> R) -> R {
    // Not borrowed while `f` runs, which may enter another runtime.
    match ENTERED.with_borrow(|entered| entered.last().cloned().flatten()) {
        Some(handle) => f(Some(&handle.sched)),
        None => Sched::with_current(f),
    }
}

impl ArcWake for Parker {
    fn wake_by_ref(this: &Arc<Self>) {
        this.unpark();
    }
}

/// The loop of `block_on`: polls, and sleeps until woken, exactly (trap S7).
fn poll_here<F: Future>(future: F) -> F::Output {
    let thread = Arc::new(Parker::new());
    let waker = waker_ref(&thread);
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        let mut polled = Poll::Pending;
        // Nobody else's task waits, but other branches of this one may.
        budget::with_budget(|| polled = future.as_mut().poll(&mut cx));
        if let Poll::Ready(output) = polled {
            return output;
        }
        thread.park();
    }
}

impl Spawn for Handle {
    fn spawn_obj(&self, future: FutureObj<'static, ()>) -> Result<(), SpawnError> {
        self.status()?;
        drop(self.spawn(future));
        Ok(())
    }

    fn status(&self) -> Result<(), SpawnError> {
        if self.sched.stopping() { Err(SpawnError::shutdown()) } else { Ok(()) }
    }
}

/// See [`Handle::enter`].
#[derive(Debug)]
#[must_use = "the runtime is left again when the guard is dropped"]
pub struct EnterGuard<'a> {
    /// Where it is among those that the thread has entered.
    place: usize,
    handle: PhantomData<&'a Handle>,
    /// It belongs to one thread.
    not_send: PhantomData<*mut ()>,
}

impl Drop for EnterGuard<'_> {
    fn drop(&mut self) {
        let mine = ENTERED.with_borrow_mut(|entered| {
            let mine = entered[self.place].take();
            let used = entered.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            entered.truncate(used);
            if used == 0 {
                **entered = Vec::new();
            }
            mine
        });
        // Not while it is borrowed: it may be the last that holds its runtime.
        drop(mine);
    }
}

/// The current runtime, or one made for the caller, which shuts it down by dropping it.
#[track_caller]
fn some_runtime() -> (Handle, Option<Runtime>) {
    match Handle::try_current() {
        Some(handle) => (handle, None),
        None => match Runtime::new() {
            Ok(runtime) => (runtime.handle.clone(), Some(runtime)),
            Err(error) => panic!("gopark: no runtime could be made: {error}"),
        },
    }
}

/// Polls a future on the calling thread until it is ready, in the current runtime, or else in one that is made with
/// the default settings and dropped at the end, which waits for polls and closures that are under way
/// ([`Runtime::shutdown_timeout`] sets a limit). See [`Handle::block_on`].
///
/// # Panics
/// If the future panics; if there is no runtime and none can be made (see [`Builder::build`]).
///
/// # Examples
/// ```
/// assert_eq!(gopark::block_on(async { 40 + 2 }), 42);
/// ```
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    let (handle, _made) = some_runtime();
    handle.block_on(future)
}

/// Runs a future as a task on the workers until it is done, in the current runtime, or else in one that is made with
/// the default settings and dropped at the end, as by [`block_on`]. See [`Handle::run`].
///
/// # Panics
/// As [`block_on`].
///
/// # Examples
/// ```
/// let answer = gopark::run(async { gopark::spawn(async { 42 }).await.unwrap() });
/// assert_eq!(answer, 42);
/// ```
#[track_caller]
pub fn run<F: Future<Output: Send> + Send + 'static>(future: F) -> F::Output {
    let (handle, _made) = some_runtime();
    handle.run(future)
}

/// Spawns a task on the current runtime. See [`Handle::spawn`].
///
/// # Panics
/// Outside a runtime.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let task = gopark::spawn(async { "done" });
///     assert_eq!(task.await.unwrap(), "done");
/// });
/// ```
#[track_caller]
pub fn spawn<F: Future<Output: Send> + Send + 'static>(future: F) -> JoinHandle<F::Output> {
    let at = Location::caller();
    let Some(handle) = with_sched(|sched| sched.map(|sched| sched.spawn(future, false, at))) else { outside("spawn") };
    handle
}

/// Runs a closure that may block on a thread of its own. See [`Handle::spawn_blocking`].
///
/// # Panics
/// Outside a runtime.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let text = gopark::spawn_blocking(|| std::fs::read_to_string("Cargo.toml")).await.unwrap();
///     assert!(text.unwrap().contains("gopark"));
/// });
/// ```
#[track_caller]
pub fn spawn_blocking<F: FnOnce() -> R + Send + 'static, R: Send + 'static>(f: F) -> JoinHandle<R> {
    let at = Location::caller();
    let Some(handle) = with_sched(|sched| sched.map(|sched| sched.spawn(async move { f() }, true, at))) else {
        outside("spawn_blocking")
    };
    handle
}

/// Lets other tasks run: goes to the back of the queue. Go's `runtime.Gosched`.
///
/// # Examples
/// ```
/// gopark::run(async {
///     for _ in 0..3 {
///         gopark::yield_now().await;
///     }
/// });
/// ```
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procs_asked_for_and_counted() {
        let procs = |workers, env: Option<&str>, cpus: usize| {
            let cpus = || NonZeroUsize::new(cpus).ok_or_else(|| io::ErrorKind::Unsupported.into());
            procs(workers, env.map(OsString::from), cpus).ok()
        };
        assert_eq!([1, 64, 4096, 5000].map(|cpus| procs(None, None, cpus)), [1, 64, 4096, 4096].map(Some));
        assert_eq!(procs(None, None, 0), Some(1), "nobody knows");
        assert_eq!((procs(None, Some(" 3 "), 8), procs(Some(2), Some("3"), 8)), (Some(3), Some(2)));
        assert_eq!(
            (procs(None, Some("four"), 8), procs(Some(0), None, 8), procs(Some(4097), None, 8)),
            (None, None, None)
        );
    }
}
