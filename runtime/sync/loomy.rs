//! What sync.rs gives to the models: loom's.

pub(crate) use loom::sync::MutexGuard;
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

pub(crate) use loom::cell::UnsafeCell;

pub(crate) struct Futex {
    pub(crate) word: AtomicU32,
    sleepers: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

impl Futex {
    pub(crate) fn new(value: u32) -> Self {
        Futex { word: AtomicU32::new(value), sleepers: loom::sync::Mutex::new(()), woken: loom::sync::Condvar::new() }
    }

    /// Loom has no time: no model waits with a limit, but for none at all.
    pub(crate) fn wait(&self, expected: u32, _: Option<std::time::Duration>) {
        let guard = self.sleepers.lock().unwrap();
        // The kernel compares under the bucket's lock; the word itself orders nothing.
        if self.word.load(std::sync::atomic::Ordering::Relaxed) == expected {
            drop(self.woken.wait(guard).unwrap());
        }
    }

    pub(crate) fn wake_one(&self) {
        let _guard = self.sleepers.lock().unwrap();
        self.woken.notify_one();
    }
}

/// Who spins long shows nothing new: from there on loom takes the shortest way to the end.
pub(crate) fn spin(turn: u32) {
    if turn > 2 {
        loom::skip_branch();
    }
    loom::thread::yield_now();
}
