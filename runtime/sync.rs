//! The switch between std and loom: everything below this file takes its atomics, locks, cells and futexes from here,
//! so that the loom models run the shipped types.

#[cfg(not(gopark_loom))]
mod imp {
    pub(crate) use std::sync::MutexGuard;
    pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};
    use std::sync::{self, PoisonError};

    /// A mutex that a panic does not poison: no user code ever runs under one of the runtime's locks.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Mutex(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// std's `UnsafeCell` with loom's way of access.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// A word that a thread can sleep on: futex(2).
    pub(crate) struct Futex {
        pub(crate) word: AtomicU32,
    }

    impl Futex {
        pub(crate) const fn new(value: u32) -> Self {
            Futex { word: AtomicU32::new(value) }
        }

        /// Sleeps while the word is `expected`, at most so long. Returns early at will (EINTR): callers loop.
        pub(crate) fn wait(&self, expected: u32, time: Option<std::time::Duration>) {
            super::super::sys::futex_wait(&self.word, expected, time);
        }

        /// Wakes one thread that sleeps on the word.
        pub(crate) fn wake_one(&self) {
            super::super::sys::futex_wake(&self.word, 1);
        }
    }

    /// One turn of a spin loop on a lock that is held for a few instructions only.
    pub(crate) fn spin(turn: u32) {
        if turn % 64 == 63 { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// The same by loom.
#[cfg(gopark_loom)]
mod loomy;

#[cfg(not(gopark_loom))]
pub(crate) use imp::*;
#[cfg(gopark_loom)]
pub(crate) use loomy::*;
pub(crate) use std::sync::atomic::Ordering;

/// A `fence(SeqCst)` that a mutation leaves out. Whoever calls it names what it pairs with.
#[inline]
pub(crate) fn fence_unless(mutated: bool) {
    if !mutated {
        fence(Ordering::SeqCst);
    }
}
