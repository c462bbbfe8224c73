//! The threads of a runtime: how many there may be, what happens where no more can be had, when they retire.

mod support;

use futures::future::join_all;
use futures::task::Spawn;
use gopark::time::{Duration, sleep};
use gopark::{Builder, Handle, JoinHandle, Runtime};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use support::{Gate, child, is_child, watchdog};

/// A task that blocks its thread until the gate opens. Returns when it does.
fn stuck(rt: &Runtime, gate: &Arc<Gate>) -> JoinHandle<()> {
    let (begun_tx, begun) = channel();
    let gate = gate.clone();
    let task = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        gate.wait();
    });
    begun.recv().unwrap();
    task
}

fn block_on_all<T>(rt: &Runtime, tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    rt.block_on(join_all(tasks)).into_iter().map(Result::unwrap).collect()
}

/// Threads of this process that have the name.
fn threads_named(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

/// The CPU time of this process.
fn cpu_time() -> Duration {
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) }, 0);
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[track_caller]
fn refusals(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().filter(|line| line.contains("gopark: no thread can be started")).map(str::to_owned).collect()
}

/// As many stuck tasks as there may be threads: those behind them wait, in silence, and go on when one thread comes back.
#[test]
fn stuck_up_to_the_bound_and_one_comes_back() {
    const TEST: &str = "stuck_up_to_the_bound_and_one_comes_back";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        let refusals = refusals(&child(TEST, &[]));
        assert_eq!(refusals.len(), 1, "said once: {refusals:?}");
        assert!(refusals[0].contains("2 beyond the workers are running"), "{refusals:?}");
        return;
    }
    let rt = Builder::new().workers(1).max_threads(2).thread_name("bounded").build().unwrap();
    for _ in 0..2 {
        let gates = [(); 3].map(|()| Arc::new(Gate::default()));
        let blocked = gates.each_ref().map(|gate| stuck(&rt, gate));
        let ran = Arc::new(AtomicUsize::new(0));
        let others: Vec<_> = (0..200)
            .map(|n| {
                let ran = ran.clone();
                let other = async move {
                    ran.fetch_add(1, SeqCst);
                    sleep(Duration::from_micros(n)).await;
                    gopark::spawn(async move { n }).await.unwrap()
                };
                rt.spawn(other)
            })
            .collect();
        let closures: Vec<_> = (0..20).map(|n| rt.spawn_blocking(move || n)).collect();
        let before = cpu_time();
        // For so long the bound is stood at, and the CPU used meanwhile counted.
        thread::sleep(Duration::from_secs(1));
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(300), "{used:?} of CPU time in a second in which nothing could run");
        assert_eq!((ran.load(SeqCst), threads_named("bounded")), (0, 3));
        gates[1].open();
        assert_eq!(block_on_all(&rt, others), (0..200).collect::<Vec<_>>());
        assert_eq!(block_on_all(&rt, closures), (0..20).collect::<Vec<_>>());
        assert!(!blocked[0].is_finished() && !blocked[2].is_finished());
        gates.iter().for_each(|gate| gate.open());
        block_on_all(&rt, blocked.into());
    }
}

/// Wakers of others that block get threads of their own at the bound, but no end of them.
#[test]
fn wakers_that_block_at_the_bound() {
    const WAKERS: usize = 12;
    struct Blocks(Arc<Gate>, Mutex<Sender<()>>);
    impl Wake for Blocks {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().send(()).unwrap();
            self.0.wait();
        }
    }
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).thread_name("beside").build().unwrap();
    let gate = Arc::new(Gate::default());
    let task = stuck(&rt, &gate);
    let (woken_tx, woken) = channel();
    let wakers: Vec<_> = (0..WAKERS)
        .map(|n| {
            let waker = Waker::from(Arc::new(Blocks(gate.clone(), Mutex::new(woken_tx.clone()))));
            let _entered = rt.enter();
            let mut sleep = Box::pin(sleep(Duration::from_millis(20)));
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            // Eight have a thread; one is on sysmon, and the rest are not called before it is back.
            if n < 9 {
                woken.recv().unwrap();
            }
            sleep
        })
        .collect();
    assert_eq!((threads_named("beside"), threads_named("beside-sysmon")), (1, 9));
    gate.open();
    rt.block_on(task).unwrap();
    woken.iter().take(WAKERS - 9).for_each(drop);
    drop(wakers);
}

/// What needs no other thread goes on at the bound: calls that block a task or a closure, nested as one likes. The line on
/// stderr says that nobody else does.
#[test]
fn nested_calls_at_the_bound() {
    const TEST: &str = "nested_calls_at_the_bound";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        assert_eq!(refusals(&child(TEST, &[])).len(), 1);
        return;
    }
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    let nested = || {
        gopark::block_in_place(|| {
            gopark::block_on(async {
                sleep(Duration::from_millis(1)).await;
                let (here, there) = gopark::net::UnixStream::pair().unwrap();
                there.write_all(b"x").await.unwrap();
                here.read(&mut [0]).await.unwrap();
                gopark::block_in_place(|| gopark::block_on(async { 5 }))
            })
        })
    };
    for _ in 0..20 {
        let (task, closure) = (rt.spawn(async move { nested() }), rt.spawn_blocking(nested));
        let other = rt.spawn(async { gopark::spawn(async { 6 }).await.unwrap() });
        assert_eq!(block_on_all(&rt, vec![task, closure, other]), [5, 5, 6]);
    }
}

/// The only thread that may run polls the network, has long had nothing to do, and is then kept by a task that waits in
/// `block_on`: whatever moment of sysmon's that is, the timer of that task still comes.
#[test]
fn block_on_at_the_bound_after_a_rest() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    for rest in 0..10 {
        // Sysmon dozes by then. Its clock starts with the next task; 4 ms later (`TICK_NS` of watchdog.rs) it looks, and would
        // doze again.
        thread::sleep(Duration::from_millis(20));
        rt.run(async {});
        thread::sleep(Duration::from_millis(rest));
        rt.run(async { gopark::block_on(sleep(Duration::from_millis(10))) });
    }
}

/// At the bound, closures of which each spawns the next do not keep their thread from a task for ever.
#[test]
fn closures_without_end_and_a_task_at_the_bound() {
    fn next(over: Arc<AtomicBool>) {
        if !over.load(SeqCst) {
            drop(gopark::spawn_blocking(|| next(over)));
        }
    }
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(0).build().unwrap();
    for _ in 0..20 {
        let over = Arc::new(AtomicBool::new(false));
        let there = over.clone();
        rt.spawn_blocking(|| next(there));
        rt.run(async {});
        over.store(true, SeqCst);
    }
}

/// Takes the process's stderr, and gives it back with what was written meanwhile.
struct Stderr {
    before: OwnedFd,
    reader: BufReader<UnixStream>,
    text: String,
}

impl Stderr {
    fn redirect() -> Stderr {
        let before = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
        let (reader, writer) = UnixStream::pair().unwrap();
        dup2(&writer);
        Stderr { before, reader: BufReader::new(reader), text: String::new() }
    }

    fn wait_for_a_line(&mut self) {
        self.reader.read_line(&mut self.text).unwrap();
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        dup2(&self.before);
        self.reader.read_to_string(&mut self.text).unwrap();
        eprint!("{}", self.text);
    }
}

fn dup2(to: &impl AsRawFd) {
    // SAFETY: takes no pointer; stderr is nobody's own.
    assert_eq!(unsafe { libc::dup2(to.as_raw_fd(), libc::STDERR_FILENO) }, libc::STDERR_FILENO);
}

/// Lets no thread with a large stack start from now on, while there is room for small things.
struct NoMoreRoom(libc::rlimit);

const STACK: usize = 1 << 30;

impl NoMoreRoom {
    fn begin() -> NoMoreRoom {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        // SAFETY: all zeroes is a valid rlimit; it outlives the calls. sysconf takes no pointer.
        unsafe {
            let mut old: libc::rlimit = std::mem::zeroed();
            assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &mut old), 0);
            let now = pages * libc::sysconf(libc::_SC_PAGESIZE) as u64;
            let new = libc::rlimit { rlim_cur: (now + STACK as u64 / 2) as libc::rlim_t, rlim_max: old.rlim_max };
            assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &new), 0);
            NoMoreRoom(old)
        }
    }
}

impl Drop for NoMoreRoom {
    fn drop(&mut self) {
        // SAFETY: the limit outlives the call.
        unsafe { libc::setrlimit(libc::RLIMIT_AS, &self.0) };
    }
}

/// Trap S5: the system refuses a thread (EAGAIN) for the P of a stuck task. What waits for it is not lost: it runs when the
/// task is done, or as soon as a thread can be had.
#[test]
fn refused_thread_and_stuck_task() {
    const TEST: &str = "refused_thread_and_stuck_task";
    let _watchdog = watchdog(60);
    if !is_child(TEST) {
        for way in ["the task ends", "there is room again"] {
            let refusals = refusals(&child(TEST, &[("WAY", way)]));
            assert_eq!(refusals.len(), 1, "{way}: {refusals:?}");
            assert!(refusals[0].contains("os error 11"), "{refusals:?}");
        }
        return;
    }
    let task_ends = std::env::var("WAY").unwrap() == "the task ends";
    let rt = Builder::new().workers(1).thread_stack_size(STACK).thread_name("refused").build().unwrap();
    rt.run(async {});
    let mut stderr = Stderr::redirect();
    let no_room = NoMoreRoom::begin();
    thread::Builder::new().stack_size(STACK).spawn(|| {}).unwrap_err();
    let (gate, ran) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (there, count) = (gate.clone(), ran.clone());
    let task = rt.spawn(async move {
        let others = (0..200).map(|n| {
            let count = count.clone();
            gopark::spawn(async move {
                sleep(Duration::from_micros(n)).await;
                count.fetch_add(1, SeqCst);
            })
        });
        let others: Vec<_> = others.collect();
        there.wait();
        others
    });
    // Its P was taken in vain by then.
    stderr.wait_for_a_line();
    let last = rt.spawn(async {
        sleep(Duration::from_millis(1)).await;
        gopark::spawn(async { 7 }).await.unwrap()
    });
    assert_eq!((ran.load(SeqCst), threads_named("refused")), (0, 1));
    // Elsewhere the threads that are tried for closures would help the tasks along.
    let closures = if task_ends { 0..20 } else { 0..0 };
    let closures: Vec<_> = closures.map(|n| (n, rt.spawn_blocking(move || n))).collect();
    if task_ends {
        gate.open();
    } else {
        drop(no_room);
    }
    assert_eq!(rt.block_on(last).unwrap(), 7);
    for (n, closure) in closures {
        assert_eq!(rt.block_on(closure).unwrap(), n);
    }
    assert_eq!(task.is_finished(), task_ends);
    while ran.load(SeqCst) < 200 {
        thread::yield_now();
    }
    gate.open();
    block_on_all(&rt, rt.block_on(task).unwrap());
}

/// Closures take three quarters of the threads, so that a worker that blocks finds another to hand its P to.
#[test]
fn closures_that_block_and_a_task_that_blocks() {
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).max_threads(4).build().unwrap();
    for _ in 0..20 {
        let gate = Arc::new(Gate::default());
        let (begun_tx, begun) = channel();
        let closures: Vec<_> = (0..5)
            .map(|n| {
                let (gate, begun) = (gate.clone(), begun_tx.clone());
                rt.spawn_blocking(move || {
                    begun.send(n).unwrap();
                    gate.wait();
                })
            })
            .collect();
        for n in 0..3 {
            assert_eq!(begun.recv().unwrap() / 3, 0, "the first three are the first, of which this is number {n}");
        }
        let task = stuck(&rt, &gate);
        assert_eq!(rt.block_on(rt.spawn(async { gopark::spawn(async { 8 }).await.unwrap() })).unwrap(), 8);
        assert!(begun.try_recv().is_err(), "a fourth closure has begun");
        gate.open();
        block_on_all(&rt, closures);
        rt.block_on(task).unwrap();
    }
}

/// However few threads there may be, closures run, one at a time at least, and no more at a time than they may.
#[test]
fn closures_and_few_threads() {
    let _watchdog = watchdog(60);
    for (max_threads, at_once) in [(0, 1), (1, 1), (2, 1), (4, 3), (8, 6)] {
        let rt = Builder::new().workers(2).max_threads(max_threads).build().unwrap();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let closures: Vec<_> = (0..200)
            .map(|n| {
                let (now, most) = (now.clone(), most.clone());
                rt.spawn_blocking(move || {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, SeqCst);
                    n
                })
            })
            .collect();
        assert_eq!(block_on_all(&rt, closures), (0..200).collect::<Vec<_>>());
        assert!(most.load(SeqCst) <= at_once, "{} at a time with max_threads({max_threads})", most.load(SeqCst));
    }
}

/// A runtime that counts its threads by its hooks.
struct Counted {
    name: &'static str,
    rt: Runtime,
    workers: usize,
    started: Arc<AtomicUsize>,
    stopped: Arc<AtomicUsize>,
}

impl Counted {
    fn new(name: &'static str, workers: usize, on_stop: impl Fn() + Send + Sync + 'static) -> Counted {
        let (started, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, down) = (started.clone(), stopped.clone());
        let builder = Builder::new().workers(workers).thread_name(name);
        let builder = builder.on_thread_start(move || drop(up.fetch_add(1, SeqCst).to_string()));
        let builder = builder.on_thread_stop(move || {
            on_stop();
            down.fetch_add(1, SeqCst);
        });
        Counted { name, rt: builder.build().unwrap(), workers, started, stopped }
    }

    /// Closures that run at the same time.
    fn closures(&self, n: usize) {
        let together = Arc::new(Barrier::new(n));
        let closure = || {
            let together = together.clone();
            self.rt.spawn_blocking(move || together.wait().is_leader())
        };
        let leaders = block_on_all(&self.rt, (0..n).map(|_| closure()).collect());
        assert_eq!(leaders.into_iter().filter(|leader| *leader).count(), 1);
    }

    /// Tasks that are stuck at the same time.
    fn stuck_tasks(&self, n: usize) {
        let gate = Arc::new(Gate::default());
        let tasks: Vec<_> = (0..n).map(|_| stuck(&self.rt, &gate)).collect();
        gate.open();
        block_on_all(&self.rt, tasks);
    }

    fn wait_for_retirement(&self) {
        assert!(self.started.load(SeqCst) > self.workers + 10);
        while self.started.load(SeqCst) - self.stopped.load(SeqCst) > self.workers {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) {
        let Counted { name, rt, started, stopped, .. } = self;
        drop(rt);
        assert_eq!(started.load(SeqCst), stopped.load(SeqCst));
        // One that had retired, and that nobody joins, may be on its last steps.
        while threads_named(name) > 0 {
            thread::yield_now();
        }
    }
}

/// Threads beyond the workers end when they have had nothing to do for long, and new ones take their places; a shutdown
/// waits for those that are about to end. One test, as each of these waits for ten seconds.
#[test]
fn burst_and_retirement_and_burst_and_shutdown() {
    let _watchdog = watchdog(120);
    let nothing = || {};
    let closures = Counted::new("r-closures", 2, nothing);
    let tasks = Counted::new("r-tasks", 1, nothing);
    let (gate, retiring) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (there, number) = (gate.clone(), retiring.clone());
    let caught = Counted::new("r-caught", 2, move || {
        number.fetch_add(1, SeqCst);
        there.wait();
    });
    closures.closures(20);
    tasks.stuck_tasks(20);
    caught.closures(20);
    for counted in [&closures, &tasks] {
        counted.wait_for_retirement();
        // The workers are not taken for idle.
        assert!(counted.started.load(SeqCst) - counted.stopped.load(SeqCst) == counted.workers);
        counted.rt.run(async { gopark::spawn(async {}).await.unwrap() });
    }
    while retiring.load(SeqCst) < 10 {
        thread::sleep(Duration::from_millis(1));
    }
    // Every thread that retires now is at its hook, and goes no further.
    let (handle, dropped) = (caught.rt.handle().clone(), Arc::new(AtomicUsize::new(0)));
    let there = dropped.clone();
    let end = thread::spawn(move || {
        caught.end();
        there.store(1, SeqCst);
    });
    while is_running(&handle) {
        thread::yield_now();
    }
    assert!(threads_named("r-caught") >= 10 && dropped.load(SeqCst) == 0);
    gate.open();
    end.join().unwrap();
    // The parts of those that have retired are used again.
    for counted in [closures, tasks] {
        let before = counted.started.load(SeqCst);
        counted.stuck_tasks(10);
        counted.closures(20);
        assert!(counted.started.load(SeqCst) - before >= 10);
        let tasks = (0..1000).map(|n| counted.rt.spawn(async move { n })).collect();
        assert_eq!(block_on_all(&counted.rt, tasks), (0..1000).collect::<Vec<_>>());
        counted.end();
    }
}

fn is_running(handle: &Handle) -> bool {
    handle.status().is_ok()
}

/// A thread that retires runs its last hook. That may block in place, and does not come by a P, which nobody would get back.
#[test]
fn retiring_thread_whose_hook_blocks_in_place() {
    let _watchdog = watchdog(60);
    let (stopped_tx, stopped) = channel();
    let hook = move || {
        gopark::block_in_place(|| ());
        let _ = stopped_tx.send(());
    };
    let rt = Builder::new().workers(1).retake(false).on_thread_stop(hook).build().unwrap();
    let meet = Arc::new(Barrier::new(3));
    let closures = (0..3).map(|_| {
        let meet = meet.clone();
        rt.spawn_blocking(move || meet.wait().is_leader())
    });
    block_on_all(&rt, closures.collect());
    for _ in 0..3 {
        stopped.recv().unwrap();
    }
    assert_eq!(rt.run(async { gopark::spawn(async { 9 }).await.unwrap() }), 9);
}
