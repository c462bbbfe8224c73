//! What a spawner gets: the handle that waits for the task, the handle that aborts it, and the error.

use super::cell::{self, Failure};
use super::g::{self, Header, TaskId};
use super::state::JoinDrop;
use std::any::Any;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};

/// What both handles are and can do: each holds a reference to its `task`.
macro_rules! handle {
    (impl[$($g:tt)*] $t:ty) => {
        // A task's panic is caught and becomes its result: there is no broken state to be seen through a handle.
        impl<$($g)*> UnwindSafe for $t {}
        impl<$($g)*> RefUnwindSafe for $t {}

        impl<$($g)*> $t {
            /// Asks the task to stop: its future is dropped, by a worker, when it next would be polled. A task that is
            /// being polled stops when that poll returns, unless it is ready then. A closure of `spawn_blocking` that
            /// has begun runs to its end.
            ///
            /// # Examples
            /// ```
            /// gopark::run(async {
            ///     let handle = gopark::spawn(std::future::pending::<()>());
            ///     handle.abort();
            ///     assert!(handle.await.unwrap_err().is_cancelled());
            /// });
            /// ```
            pub fn abort(&self) {
                // SAFETY: the handle holds a reference.
                unsafe { g::submit(self.task, self.header().state.abort()) }
            }

            /// Whether the task is done: an await of its `JoinHandle` would not wait. An aborted task is not, until its
            /// future is gone.
            pub fn is_finished(&self) -> bool {
                self.header().state.is_complete()
            }

            /// The task's number.
            pub fn id(&self) -> TaskId {
                self.header().info.id
            }

            fn header(&self) -> &Header {
                // SAFETY: the handle holds a reference.
                unsafe { self.task.as_ref() }
            }
        }

        impl<$($g)*> fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name = stringify!($t).trim_end_matches("<T>");
                f.debug_struct(name).field("id", &self.id()).field("finished", &self.is_finished()).finish()
            }
        }
    };
}

/// Waits for a task and gives its output.
///
/// Dropping the handle detaches the task: it runs on, and its output is dropped when it is done. If it panics then,
/// the runtime's `on_task_panic` is told.
///
/// # Errors
/// The handle resolves to a [`JoinError`] if the task panicked, or if it was aborted or its runtime shut down before it was
/// done. A panic in the drop of the task's future is a panic of the task, also where an abort caused the drop, and also
/// where the future had returned its output before: the output is lost then.
///
/// # Panics
/// If polled again after it has resolved.
///
/// # Cancel safety
/// Waiting on `&mut handle` loses nothing when it is given up: the handle can be waited on again.
///
/// # Examples
/// ```
/// gopark::run(async {
///     let handle = gopark::spawn(async { 6 * 7 });
///     assert_eq!(handle.await.unwrap(), 42);
/// });
/// ```
pub struct JoinHandle<T> {
    task: NonNull<Header>,
    output: PhantomData<T>,
}

// SAFETY: through the handle one can take or drop the output, and wake, abort or free a task, which any thread may do.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: `&JoinHandle` reaches atomics and constants only.
unsafe impl<T: Send> Sync for JoinHandle<T> {}
// No pin is ever projected to an output.
impl<T> Unpin for JoinHandle<T> {}
handle! { impl[T] JoinHandle<T> }

impl<T> JoinHandle<T> {
    /// # Safety
    /// The task's output is of type `T`, and the reference counted for its `JoinHandle` is given to this one.
    pub(super) unsafe fn new(task: NonNull<Header>) -> JoinHandle<T> {
        JoinHandle { task, output: PhantomData }
    }

    /// A handle that can abort the task without waiting for it.
    pub fn abort_handle(&self) -> AbortHandle {
        self.header().state.ref_inc();
        AbortHandle { task: self.task }
    }

    /// # Safety
    /// The slot is the handle's: see `State::reclaim_slot`.
    unsafe fn slot<R>(&self, f: impl FnOnce(&mut Option<Waker>) -> R) -> R {
        // SAFETY: the caller says so, and no other access is nested in any of the closures.
        self.header().join_waker.with_mut(|slot| f(unsafe { &mut *slot }))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = &self.header().state;
        if state.reclaim_slot() {
            // Taken out while the new waker is cloned, which may panic: a slot that is not lent stays empty.
            // SAFETY: the slot is ours.
            let mut waker = unsafe { self.slot(Option::take) };
            let mut stale = None;
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                stale = waker.replace(cx.waker().clone());
            }
            // SAFETY: still ours; and what is overwritten is None.
            unsafe { self.slot(|slot| *slot = waker) };
            if state.lend_slot() {
                return Poll::Pending;
            }
            // The task was faster and has not seen the waker.
            // SAFETY: a loan that came too late leaves the slot ours.
            drop((unsafe { self.slot(Option::take) }, stale));
        }
        let mut output: Option<Result<T, Failure>> = None;
        // SAFETY: the task is complete, and with a JoinHandle its output is the handle's. `new`'s caller vouched for T.
        unsafe { (self.header().vtable.take_output)(self.task, (&raw mut output).cast()) };
        let output = output.expect("gopark: a JoinHandle was polled after it had given its output");
        Poll::Ready(output.map_err(|failure| JoinError { id: self.id(), failure }))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        match self.header().state.drop_join_handle() {
            JoinDrop::Detached => return,
            JoinDrop::Waker => {
                // SAFETY: the loan is called back, the slot is ours.
                let waker = unsafe { self.slot(Option::take) };
                cell::quietly(|| drop(waker));
            }
            // SAFETY: the task is complete, and with a JoinHandle its output is the handle's.
            JoinDrop::Output => unsafe { (self.header().vtable.drop_output)(self.task) },
        }
        // SAFETY: the handle's reference is given up, and this is the handle's end.
        unsafe { g::release(self.task) }
    }
}

/// Aborts a task; see [`JoinHandle::abort`]. It keeps the task's memory, which has the size of its future, but neither the
/// future nor the output in it; and, as every waker and handle of a task does, of a runtime that is gone some memory and three
/// descriptors.
pub struct AbortHandle {
    task: NonNull<Header>,
}

// SAFETY: through the handle one can abort a task, and free one that is complete; any thread may.
unsafe impl Send for AbortHandle {}
// SAFETY: as above.
unsafe impl Sync for AbortHandle {}
handle! { impl[] AbortHandle }

impl Clone for AbortHandle {
    fn clone(&self) -> Self {
        self.header().state.ref_inc();
        AbortHandle { task: self.task }
    }
}

impl Drop for AbortHandle {
    fn drop(&mut self) {
        // SAFETY: the handle's reference is given up, and this is the handle's end.
        unsafe { g::release(self.task) }
    }
}

/// A task has ended without an output: it panicked, or it was cancelled.
pub struct JoinError {
    id: TaskId,
    failure: Failure,
}

// SAFETY: the only thing that is not Sync is a panic's payload, and `&JoinError` reaches into one only to ask for its type
// and to read it if that is `&str` or `String`, which are Sync.
unsafe impl Sync for JoinError {}

impl JoinError {
    /// Whether the task panicked, in a poll or in the drop of its future.
    pub fn is_panic(&self) -> bool {
        matches!(self.failure, Failure::Panic(_))
    }

    /// Whether the task was aborted, or refused or dropped by a runtime that was shutting down.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.failure, Failure::Cancelled)
    }

    /// The panic's payload, to be given to [`std::panic::resume_unwind`].
    ///
    /// # Panics
    /// If the task did not panic.
    #[track_caller]
    pub fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.try_into_panic().expect("JoinError::into_panic on a task that did not panic")
    }

    /// The panic's payload.
    ///
    /// # Errors
    /// The error itself, if the task did not panic.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send + 'static>, JoinError> {
        match self.failure {
            Failure::Panic(payload) => Ok(payload),
            Failure::Cancelled => Err(self),
        }
    }

    /// The task's number.
    pub fn id(&self) -> TaskId {
        self.id
    }

    fn message(&self) -> Option<&str> {
        let Failure::Panic(payload) = &self.failure else { return None };
        cell::panic_text(&**payload)
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.failure, self.message()) {
            (Failure::Cancelled, _) => write!(f, "task {} was cancelled", self.id),
            (Failure::Panic(_), Some(message)) => write!(f, "task {} panicked: {message}", self.id),
            (Failure::Panic(_), None) => write!(f, "task {} panicked", self.id),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            Failure::Cancelled => write!(f, "JoinError::Cancelled({:?})", self.id),
            Failure::Panic(_) => write!(f, "JoinError::Panic({:?}, {:?})", self.id, self.message().unwrap_or("..")),
        }
    }
}

impl std::error::Error for JoinError {}

/// As in tokio: of kind `Other`.
impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        io::Error::other(error)
    }
}
