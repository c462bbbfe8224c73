//! A task with its type: one allocation for the header, the scheduler, and the future or what came of it.

use super::super::rare::rare;
use super::super::sync::UnsafeCell;
use super::g::{self, G, Header, TaskInfo, Vtable};
use super::owned::OwnedTasks;
use super::state::{Completed, Idle, Start, State};
use std::any::Any;
use std::marker::PhantomData;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// All that a task knows of its scheduler.
///
/// Each task holds an `Arc` of it, and whoever lets go of a completed task last gives that back: the scheduler's own
/// drop has to be fit for any thread.
pub(crate) trait Schedule: Send + Sync + 'static {
    /// Queues a task that was woken or aborted: Go's `ready`. Called from any thread, at any time, under anybody's locks:
    /// must run nobody's code, and must not lose the `G`, not even when the runtime is shutting down.
    fn schedule(&self, g: G);

    /// Where this scheduler's tasks are listed. Always the same.
    fn owned(&self) -> &OwnedTasks;

    /// The task, whose waker this is, is its thread's still, and not polled any more: what follows is no poll.
    fn polled(&self, _waker: &Waker) {}

    /// The `Arc` of a task that is freed.
    fn give_back(this: Arc<Self>) {
        drop(this);
    }

    /// A task has panicked, and nobody will learn of it from its `JoinHandle`.
    fn unjoined_panic(&self, info: &TaskInfo, payload: Payload);
}

pub(super) type Payload = Box<dyn Any + Send>;

/// Why a task has no output.
pub(super) enum Failure {
    Cancelled,
    Panic(Payload),
}

/// `repr(C)`: a pointer to the cell is one to its header.
#[repr(C)]
pub(super) struct Cell<F: Future, S> {
    header: Header,
    stage: UnsafeCell<Stage<F>>,
    /// It lies in the header, without its type.
    scheduler: PhantomData<Arc<S>>,
}

enum Stage<F: Future> {
    Future(F),
    Output(Result<F::Output, Failure>),
    Consumed,
}

impl<F, S> Cell<F, S>
where
    F: Future<Output: Send> + Send + 'static,
    S: Schedule,
{
    const VTABLE: Vtable = Vtable {
        run: Self::run,
        schedule: Self::schedule,
        take_output: Self::take_output,
        drop_output: Self::drop_output,
        small: mem::size_of::<Self>() <= 4096,
        dealloc: Self::dealloc,
    };

    /// A task whose `G` and `JoinHandle` the caller has to make; and whether it is in its scheduler's list, which may be
    /// closed. The list's reference is counted in any case, as is the handle's.
    pub(super) fn alloc(future: F, scheduler: Arc<S>, info: TaskInfo) -> (NonNull<Header>, bool) {
        let header = Header {
            state: State::new(),
            vtable: &Self::VTABLE,
            queue_next: UnsafeCell::new(None),
            scheduler: Arc::into_raw(scheduler).cast(),
            info,
            place: UnsafeCell::new(None),
            join_waker: UnsafeCell::new(None),
        };
        let cell: Self = Cell { header, stage: UnsafeCell::new(Stage::Future(future)), scheduler: PhantomData };
        let cell = NonNull::from(Box::leak(Box::new(cell)));
        // SAFETY: the task is new, and stays as long as its G, which nobody has yet.
        (cell.cast(), unsafe { cell.as_ref().scheduler().owned().insert(cell.cast()) })
    }

    fn scheduler(&self) -> &S {
        // SAFETY: `alloc` put it there, and the task keeps it.
        unsafe { &*self.header.scheduler.cast() }
    }

    unsafe fn run(task: NonNull<Header>) -> Option<G> {
        // SAFETY: the caller's G keeps the task; after `idle` has given that up, `cell` is not used any more.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        // SAFETY: used only while RUNNING is ours, and so the task lives.
        let waker = unsafe { g::lent_waker(task) };
        let result = loop {
            match cell.header.state.start() {
                Start::Drop => {
                    rare();
                    cell.scheduler().polled(&waker);
                    // SAFETY: RUNNING is ours.
                    break Err(unsafe { cell.drop_future() }.map_or_else(Failure::Panic, |()| Failure::Cancelled));
                }
                Start::Poll => {
                    // SAFETY: RUNNING is ours.
                    let polled = unsafe { cell.poll(&mut Context::from_waker(&waker)) };
                    cell.scheduler().polled(&waker);
                    if let Poll::Ready(result) = polled {
                        rare();
                        break result;
                    }
                    match cell.header.state.idle() {
                        Idle::Parked => return None,
                        // SAFETY: so `idle` says.
                        Idle::Notified => return Some(unsafe { G::from_raw(task) }),
                        Idle::Cancelled => continue,
                    }
                }
            }
        };
        // SAFETY: RUNNING is still ours, and the future is dropped.
        unsafe { Self::complete(task, result) }
    }

    /// The future is dropped before its output counts: a panic in that drop is the task's panic.
    ///
    /// # Safety
    /// The caller has RUNNING, and the stage is the future. Not so any more after `Ready`.
    unsafe fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<F::Output, Failure>> {
        let poll = || {
            self.stage.with_mut(|stage| {
                // SAFETY: RUNNING makes this the only access; the future stays where it is until it is dropped there.
                let Stage::Future(future) = (unsafe { &mut *stage }) else { unreachable!("nothing to poll") };
                // SAFETY: as above.
                unsafe { Pin::new_unchecked(future) }.poll(cx)
            })
        };
        let polled = match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(payload) => Err(payload),
        };
        rare();
        // SAFETY: as above.
        let dropped = unsafe { self.drop_future() };
        Poll::Ready(match (polled, dropped) {
            (Ok(output), Ok(())) => Ok(output),
            (Ok(output), Err(payload)) => {
                quietly(|| drop(output));
                Err(Failure::Panic(payload))
            }
            (Err(payload), dropped) => {
                dropped.unwrap_or_else(discard);
                Err(Failure::Panic(payload))
            }
        })
    }

    /// # Safety
    /// The caller has RUNNING, and the stage is the future.
    unsafe fn drop_future(&self) -> Result<(), Payload> {
        self.stage.with_mut(|stage| {
            // SAFETY: RUNNING makes this the only access. The future is dropped in its place because it may be pinned;
            // what was dropped is overwritten, whether the drop panicked or not, so it is never dropped again.
            unsafe {
                let dropped = catch_unwind(AssertUnwindSafe(|| ptr::drop_in_place(stage)));
                stage.write(Stage::Consumed);
                dropped
            }
        })
    }

    /// # Safety
    /// The caller has RUNNING, and the stage is consumed. Both, and the task, are lost to it.
    unsafe fn complete(task: NonNull<Header>, result: Result<F::Output, Failure>) -> Option<G> {
        // SAFETY: the owned list's reference, until we release it below.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        // SAFETY: RUNNING makes this the only access; nothing is overwritten that would need a drop.
        cell.stage.with_mut(|stage| unsafe { stage.write(Stage::Output(result)) });
        let mut joiner = None;
        match cell.header.state.complete() {
            // SAFETY: without a JoinHandle the output is ours.
            Completed { join_interest: false, .. } => unsafe { Self::drop_output(task) },
            Completed { join_waker: false, .. } => {}
            _ => {
                // SAFETY: a slot that was lent when the task completed is ours.
                let waker = cell.header.join_waker.with_mut(|slot| unsafe { (*slot).take() });
                match waker.as_ref().and_then(g::from_waker) {
                    Some(own) => joiner = own.notify(),
                    // A foreign waker may do anything (S23).
                    None => quietly(|| waker.into_iter().for_each(|waker| waker.wake())),
                }
            }
        }
        // SAFETY: the task is alive, and of this scheduler. For one that was refused (and is in no list) the reference is
        // there all the same.
        unsafe {
            cell.scheduler().owned().remove(task);
            g::release(task);
        }
        joiner
    }

    unsafe fn schedule(task: NonNull<Header>, g: G) {
        // SAFETY: the caller's reference keeps the cell, and so the scheduler, until this returns.
        unsafe { task.cast::<Self>().as_ref() }.scheduler().schedule(g);
    }

    unsafe fn take_output(task: NonNull<Header>, to: *mut ()) {
        // SAFETY: the caller vouches for the task, for `to`, and that the output is its own.
        unsafe { *to.cast::<Option<Result<F::Output, Failure>>>() = task.cast::<Self>().as_ref().output() }
    }

    unsafe fn drop_output(task: NonNull<Header>) {
        // SAFETY: the caller vouches for the task, and that the output is its own.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        // SAFETY: as above.
        let panicked = match unsafe { cell.output() } {
            Some(Ok(output)) => catch_unwind(AssertUnwindSafe(|| drop(output))).err(),
            Some(Err(Failure::Panic(payload))) => Some(payload),
            Some(Err(Failure::Cancelled)) | None => None,
        };
        if let Some(payload) = panicked {
            quietly(|| cell.scheduler().unjoined_panic(&cell.header.info, payload));
        }
    }

    /// # Safety
    /// The task is complete, and its output the caller's.
    unsafe fn output(&self) -> Option<Result<F::Output, Failure>> {
        // SAFETY: the stage of a complete task has one owner, the caller. There is no future in it to be moved.
        match self.stage.with_mut(|stage| unsafe { mem::replace(&mut *stage, Stage::Consumed) }) {
            Stage::Output(result) => Some(result),
            Stage::Consumed => None,
            Stage::Future(_) => unreachable!("a complete task has a future"),
        }
    }

    /// Gives the `Arc` of the scheduler back and drops nothing else: future, output and join waker are long gone, each at
    /// the hands of its owner. So the drop of a waker, which may come anywhere, runs none of the task's code (S16).
    unsafe fn dealloc(task: NonNull<Header>) {
        // SAFETY: the caller released the last reference; the pointer is from the Box in `alloc`.
        let cell = unsafe { Box::from_raw(task.cast::<Self>().as_ptr()) };
        // Under loom these are also the check that all other accesses happened before.
        // SAFETY: nobody else has the cell.
        cell.stage.with_mut(|stage| debug_assert!(matches!(unsafe { &*stage }, Stage::Consumed)));
        // SAFETY: as above.
        cell.header.join_waker.with_mut(|slot| debug_assert!(unsafe { &*slot }.is_none()));
        // SAFETY: it is from the `Arc::into_raw` in `alloc`, and given back once.
        S::give_back(unsafe { Arc::from_raw(cell.header.scheduler.cast()) });
    }
}

/// What a panic said, if it was text.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Runs code of which nobody waits to hear whether it panicked.
pub(crate) fn quietly(f: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(discard);
}

/// Drops a panic's payload. If that panics too, the second payload is leaked: its drop might go on for ever.
fn discard(payload: Payload) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(second);
    }
}
