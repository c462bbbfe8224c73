//! The system refuses threads for a while: what has to wait for one meanwhile waits, and nothing is lost for good.
//!
//! `pthread_create` is this program's own, so that it fails when a test says so. (Not for the sanitizers, which have one, too.)

mod support;

use gopark::time::{Duration, sleep};
use gopark::{Builder, Handle};
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread;
use support::watchdog;

static REFUSES: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static ALONE: Mutex<()> = Mutex::new(());

type Start = extern "C" fn(*mut libc::c_void) -> *mut libc::c_void;
type Create =
    unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Start, *mut libc::c_void) -> libc::c_int;

/// # Safety
/// As the C library's, which it calls unless it refuses.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: Start,
    arg: *mut libc::c_void,
) -> libc::c_int {
    if REFUSES.load(SeqCst) {
        REFUSED.fetch_add(1, SeqCst);
        return libc::EAGAIN;
    }
    // SAFETY: the next function of this name is the C library's, and has that type.
    let create: Create = unsafe { std::mem::transmute(libc::dlsym(libc::RTLD_NEXT, c"pthread_create".as_ptr())) };
    // SAFETY: as the caller promises.
    unsafe { create(thread, attr, start, arg) }
}

/// One test at a time has threads refused.
struct Refusal(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Refusal {
    fn alone() -> Refusal {
        Refusal(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins; another thread ends it, after so many refusals.
    fn begin(&self, refusals: usize) -> thread::JoinHandle<()> {
        REFUSED.store(0, SeqCst);
        let (ready_tx, ready) = channel();
        let end = thread::spawn(move || {
            ready_tx.send(()).unwrap();
            while REFUSED.load(SeqCst) < refusals {
                thread::yield_now();
            }
            REFUSES.store(false, SeqCst);
        });
        ready.recv().unwrap();
        REFUSES.store(true, SeqCst);
        end
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// At the end the drop of one task waits for that of another, which releases a third from its poll.
#[test]
fn drops_that_wait_for_each_other() {
    let refusal = Refusal::alone();
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).build().unwrap();
    let (to_poll, polled) = channel::<()>();
    let (to_drop, dropped) = channel::<()>();
    let waits = OnDrop(move || {
        let _ = dropped.recv();
    });
    let releases = OnDrop(move || {
        let _ = to_drop.send(());
        let _ = to_poll.send(());
    });
    let (begun_tx, begun) = channel();
    let tell = begun_tx.clone();
    drop(rt.spawn(async move {
        let _waits = waits;
        tell.send(()).unwrap();
        pending::<()>().await
    }));
    let tell = begun_tx.clone();
    drop(rt.spawn(async move {
        let _releases = releases;
        tell.send(()).unwrap();
        pending::<()>().await
    }));
    begun.iter().take(2).for_each(drop);
    drop(rt.spawn(async move {
        begun_tx.send(()).unwrap();
        let _ = polled.recv();
    }));
    begun.recv().unwrap();
    let end = refusal.begin(3);
    drop(rt);
    end.join().unwrap();
}

/// A foreign waker that waits for one of the runtime's tasks, while the only worker is stuck.
#[test]
fn waker_that_waits_for_a_task() {
    struct Waits(Handle);
    impl Wake for Waits {
        fn wake(self: Arc<Self>) {
            let task = self.0.spawn(async {});
            self.0.block_on(task).unwrap();
        }
    }
    let refusal = Refusal::alone();
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).build().unwrap();
    let (release, released) = channel::<()>();
    let (begun_tx, begun) = channel();
    let stuck = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        released.recv().unwrap();
    });
    begun.recv().unwrap();
    let waker = Waker::from(Arc::new(Waits(rt.handle().clone())));
    let _entered = rt.enter();
    let mut sleep = pin!(sleep(Duration::from_millis(60)));
    assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let end = refusal.begin(30);
    end.join().unwrap();
    // Sysmon takes the P from the stuck task.
    rt.block_on(rt.spawn(gopark::time::sleep(Duration::from_millis(1)))).unwrap();
    release.send(()).unwrap();
    rt.block_on(stuck).unwrap();
}

/// A foreign waker for which no thread was to be had, and then the worker has nothing to do.
#[test]
fn waker_and_worker_that_comes_back() {
    struct Tells(Mutex<Sender<Option<String>>>);
    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            let name = thread::current().name().map(str::to_owned);
            self.0.lock().unwrap().send(name).unwrap();
        }
    }
    let refusal = Refusal::alone();
    let _watchdog = watchdog(60);
    let rt = Builder::new().workers(1).build().unwrap();
    let (release, released) = channel::<()>();
    let (begun_tx, begun) = channel();
    let stuck = rt.spawn(async move {
        begun_tx.send(()).unwrap();
        released.recv().unwrap();
    });
    begun.recv().unwrap();
    let (name_tx, name) = channel();
    let waker = Waker::from(Arc::new(Tells(Mutex::new(name_tx))));
    let _entered = rt.enter();
    let mut sleep = pin!(sleep(Duration::from_millis(20)));
    assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let end = refusal.begin(usize::MAX);
    // The stuck task's P, and then the waker, have asked for one.
    while REFUSED.load(SeqCst) < 20 {
        thread::yield_now();
    }
    release.send(()).unwrap();
    assert_eq!(name.recv().unwrap().as_deref(), Some("gopark"));
    REFUSED.store(usize::MAX, SeqCst);
    end.join().unwrap();
    rt.block_on(stuck).unwrap();
}
