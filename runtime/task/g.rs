//! A task without its type: what the queues, the netpoller and the wakers hold of it.

use super::super::sync::UnsafeCell;
use super::state::{Notify, State};
use std::fmt;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::num::NonZeroU32;
use std::panic::Location;
use std::ptr::{self, NonNull};
// Not the switch's: ids are no part of any model, and loom has no statics.
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{RawWaker, RawWakerVTable, Waker};

/// The part of a task that does not depend on its future. `mod.rs` says who may touch which field, and when.
#[repr(C)]
pub(crate) struct Header {
    // A wake, the queues and a poll touch these four, which are often one cache line.
    pub(super) state: State,
    pub(super) vtable: &'static Vtable,
    /// Go's `schedlink`.
    pub(super) queue_next: UnsafeCell<Option<NonNull<Header>>>,
    /// The task's scheduler (`Arc::into_raw`); its address tells one runtime's tasks from another's.
    pub(super) scheduler: *const (),
    pub(super) info: TaskInfo,
    /// Where it is in its shard of the owned list, counted from one.
    pub(super) place: UnsafeCell<Option<NonZeroU32>>,
    pub(super) join_waker: UnsafeCell<Option<Waker>>,
}

/// What differs from one type of task to the next. All pointers are to a live task of the type that the table is for.
pub(super) struct Vtable {
    /// Safety: the caller has the task's `G`, and gives it away.
    pub(super) run: unsafe fn(NonNull<Header>) -> Option<G>,
    /// Safety: the caller holds a reference, because the `G` does not keep the task once it is published.
    pub(super) schedule: unsafe fn(NonNull<Header>, G),
    /// Safety: the output is the caller's, who is the `JoinHandle`; the pointer is to an `Option<Result<T, Failure>>`
    /// that is `None`.
    pub(super) take_output: unsafe fn(NonNull<Header>, *mut ()),
    /// Safety: the output is the caller's.
    pub(super) drop_output: unsafe fn(NonNull<Header>),
    /// Its cell takes a page at most.
    pub(super) small: bool,
    /// Safety: the caller has released the last reference.
    pub(super) dealloc: unsafe fn(NonNull<Header>),
}

// These take a pointer, not `&self`: a reference that is an argument has to stay valid until its function returns,
// and here another thread may free the task before that.

/// Hands the `G` that a wake or an abort made, if it made one, to the task's scheduler.
///
/// # Safety
/// The caller holds a reference until this returns, and `notify` is what a transition of this task returned.
pub(super) unsafe fn submit(task: NonNull<Header>, notify: Notify) {
    if let Notify::Submit = notify {
        // SAFETY: the caller's reference keeps the task; `Submit` is the right to make its G.
        unsafe { (task.as_ref().vtable.schedule)(task, G(task)) }
    }
}

/// # Safety
/// The caller holds a reference, and gives it away.
pub(super) unsafe fn release(task: NonNull<Header>) {
    // SAFETY: until `ref_dec` the task is kept by the caller's reference. After it nothing is touched, unless it was the
    // last one: then nobody else can reach the task, and freeing it falls to us.
    unsafe {
        if (*task.as_ptr()).state.ref_dec() {
            ((*task.as_ptr()).vtable.dealloc)(task)
        }
    }
}

/// The right, and the duty, to run a task once. A task that is notified and does not run has exactly one.
///
/// Go's `*g` in the state `_Grunnable`. It is not counted: see `state.rs`.
#[must_use = "a G that is dropped is a task that never runs again"]
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct G(NonNull<Header>);

// SAFETY: a task is made only of a future that is Send with an output that is Send; the header's fields are guarded as
// mod.rs's table says, none of it by which thread it is.
unsafe impl Send for G {}

impl G {
    /// Polls the task once, or drops its future if it was aborted. No panic of the task's code leaves this.
    ///
    /// What is returned is the caller's to queue: the same task, if it was woken while it ran (often by itself,
    /// `yield_now`); or one that waited for it, if it is complete.
    #[must_use]
    pub(crate) fn run(self) -> Option<G> {
        let task = self.into_raw();
        // SAFETY: the task is alive because it is not complete, which only its G, that is we, can make it.
        unsafe { (task.as_ref().vtable.run)(task) }
    }

    /// Drops the task's future on this thread, as if the task had been aborted before.
    pub(crate) fn cancel(self) {
        // A G exists, so there is none to submit.
        let _: Notify = self.header().state.abort();
        self.finish();
    }

    /// Runs what is done after one poll.
    pub(crate) fn finish(self) {
        self.run().into_iter().for_each(G::submit);
    }

    /// Queues it where it belongs, as the wake would have done that made it. For whoever is not the task's scheduler.
    pub(crate) fn submit(self) {
        let task = self.into_raw();
        // SAFETY: the task is not complete. The reference that we add keeps it, and its scheduler, until `schedule` has
        // returned; the G is given away once.
        unsafe {
            task.as_ref().state.ref_inc();
            (task.as_ref().vtable.schedule)(task, G(task));
            release(task);
        }
    }

    /// Whether the task is of the scheduler at this address. Only then may it be queued there: another runtime would
    /// cancel it when it shuts down, and might be gone before it.
    pub(crate) fn belongs_to(&self, scheduler: *const ()) -> bool {
        ptr::eq(self.header().scheduler, scheduler)
    }

    /// What its wakers have for data.
    pub(crate) fn address(&self) -> *const () {
        self.0.as_ptr().cast()
    }

    /// Whose it is; to be asked for before `run`.
    pub(crate) fn info(&self) -> TaskInfo {
        self.header().info
    }

    /// For slots that are a bare pointer.
    pub(crate) fn into_raw(self) -> NonNull<Header> {
        ManuallyDrop::new(self).0
    }

    /// # Safety
    /// The caller has the right that a `G` stands for, by `into_raw`, `Notify::Submit` or `Idle::Notified` or because it
    /// has just made the task, and uses it up.
    pub(crate) unsafe fn from_raw(task: NonNull<Header>) -> G {
        G(task)
    }

    fn header(&self) -> &Header {
        // SAFETY: the task is not complete while its G exists, so the owned list holds it; the borrow ends with ours.
        unsafe { self.0.as_ref() }
    }

    fn set_next(&self, next: Option<NonNull<Header>>) {
        // SAFETY: the link is the G's, and we have the only one.
        self.header().queue_next.with_mut(|link| unsafe { *link = next })
    }

    fn take_next(&self) -> Option<NonNull<Header>> {
        // SAFETY: the link is the G's, and we have the only one.
        self.header().queue_next.with_mut(|link| unsafe { (*link).take() })
    }
}

/// Shuts S10 as far as a destructor can: a `G` that gets lost is loud where it happens, in builds with assertions.
impl Drop for G {
    fn drop(&mut self) {
        debug_assert!(std::thread::panicking(), "a G was dropped; its task would never run again");
    }
}

/// Tasks in a row, linked through their headers: Go's `gQueue`. Whoever shares one brings the lock.
#[must_use = "a GList that is dropped is tasks that never run again"]
#[derive(Debug, Default)]
pub(crate) struct GList {
    head: Option<NonNull<Header>>,
    tail: Option<NonNull<Header>>,
    len: usize,
}

// SAFETY: it stands for the Gs in it, and those are Send.
unsafe impl Send for GList {}

impl GList {
    pub(crate) fn push_back(&mut self, g: G) {
        g.set_next(None);
        let task = g.into_raw();
        self.splice(task, task, 1);
    }

    /// Moves all of `other` behind what is here.
    pub(crate) fn append(&mut self, other: &mut GList) {
        let GList { head, tail, len } = *ManuallyDrop::new(mem::take(other));
        if let (Some(head), Some(tail)) = (head, tail) {
            self.splice(head, tail, len);
        }
    }

    /// Moves all of `other` before what is here.
    pub(crate) fn prepend(&mut self, mut other: GList) {
        other.append(self);
        *self = other;
    }

    /// Has the processor fetch what a poll of the first task is likely to touch, while there is something else to do: under
    /// light load all of it has left the cache since the last one. (Of every task in a long list it is a loss.)
    #[inline]
    pub(crate) fn fetch_first(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(task) = self.head {
            const LINE: usize = 64;
            for line in 1..5 {
                let at = task.as_ptr().cast::<i8>().wrapping_add(line * LINE);
                // SAFETY: a hint, which never faults, wherever that is.
                unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at) };
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn splice(&mut self, head: NonNull<Header>, tail: NonNull<Header>, len: usize) {
        match self.tail {
            // SAFETY: the list stands for the G of each task in it; this one is borrowed for a write to its link.
            Some(last) => unsafe { ManuallyDrop::new(G::from_raw(last)) }.set_next(Some(head)),
            None => self.head = Some(head),
        }
        self.tail = Some(tail);
        self.len += len;
    }
}

/// Takes out what it gives, from the front.
impl Iterator for GList {
    type Item = G;

    fn next(&mut self) -> Option<G> {
        // SAFETY: what is in the list came by `into_raw`, and leaves it here.
        let g = unsafe { G::from_raw(self.head?) };
        self.head = g.take_next();
        if self.head.is_none() {
            self.tail = None;
        }
        self.len -= 1;
        Some(g)
    }
}

impl FromIterator<G> for GList {
    fn from_iter<I: IntoIterator<Item = G>>(gs: I) -> GList {
        let mut list = GList::default();
        gs.into_iter().for_each(|g| list.push_back(g));
        list
    }
}

impl Drop for GList {
    fn drop(&mut self) {
        debug_assert!(self.is_empty() || std::thread::panicking(), "a list of Gs was dropped");
    }
}

/// A gopark task seen through one of its wakers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskRef<'a> {
    task: NonNull<Header>,
    waker: PhantomData<&'a Waker>,
}

/// The task that a waker is of. `None` for the wakers of other executors, `block_on`'s among them.
pub(crate) fn from_waker(waker: &Waker) -> Option<TaskRef<'_>> {
    if !ptr::eq(waker.vtable(), &WAKER) {
        return None;
    }
    // SAFETY: the table is ours.
    Some(TaskRef { task: unsafe { from_data(waker.data()) }, waker: PhantomData })
}

impl TaskRef<'_> {
    /// A wake whose `G` goes to the caller instead of to `Schedule::schedule`: Go's `netpollready` without `goready`.
    /// Runs nobody's code, takes no lock, leaves the reference count alone. The task may be another runtime's.
    pub(crate) fn notify(&self) -> Option<G> {
        // SAFETY: the borrowed waker holds a reference, or is the one lent to a poll that is under way.
        match unsafe { self.task.as_ref() }.state.notify() {
            Notify::Submit => Some(G(self.task)),
            Notify::Nothing => None,
        }
    }

    /// Is there nothing left of it to wake?
    pub(crate) fn is_complete(&self) -> bool {
        // SAFETY: as in `notify`.
        unsafe { self.task.as_ref() }.state.is_complete()
    }

    /// Does it take so little memory that nobody minds if it is freed late?
    pub(crate) fn is_small(&self) -> bool {
        // SAFETY: as in `notify`.
        unsafe { self.task.as_ref() }.vtable.small
    }

    /// As [`G::belongs_to`].
    pub(crate) fn belongs_to(&self, scheduler: *const ()) -> bool {
        // SAFETY: as in `notify`.
        ptr::eq(unsafe { self.task.as_ref() }.scheduler, scheduler)
    }
}

/// One table for every gopark task: its address is how the netpoller knows them. A static, because a constant may have
/// many addresses.
static WAKER: RawWakerVTable = RawWakerVTable::new(clone_waker, wake, wake_by_ref, drop_waker);

/// The waker that a poll lends to its future: not counted, so it must never be dropped.
///
/// # Safety
/// The task outlives it.
pub(super) unsafe fn lent_waker(task: NonNull<Header>) -> ManuallyDrop<Waker> {
    // SAFETY: the functions of WAKER keep RawWaker's contract for a pointer to a task that is alive.
    ManuallyDrop::new(unsafe { Waker::new(task.as_ptr().cast(), &WAKER) })
}

/// # Safety
/// The data is that of a waker with the table `WAKER`.
unsafe fn from_data(data: *const ()) -> NonNull<Header> {
    // SAFETY: such data comes from a NonNull<Header>.
    unsafe { NonNull::new_unchecked(data.cast_mut()).cast() }
}

unsafe fn clone_waker(data: *const ()) -> RawWaker {
    // SAFETY: the waker that is cloned keeps the task.
    unsafe { from_data(data).as_ref() }.state.ref_inc();
    RawWaker::new(data, &WAKER)
}

/// By value is by reference and a release. To do both by one operation was tried on paper: the task, and with it the last
/// `Arc` of its scheduler, could then be gone while `schedule(&self)` still runs.
unsafe fn wake(data: *const ()) {
    // SAFETY: the waker's reference keeps the task in the first call, and is given away in the second.
    unsafe {
        wake_by_ref(data);
        drop_waker(data);
    }
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: the waker's reference keeps the task. (A poll's lent waker has none; there the task is RUNNING, for which
    // `notify` submits nothing.)
    unsafe {
        let task = from_data(data);
        submit(task, task.as_ref().state.notify());
    }
}

unsafe fn drop_waker(data: *const ()) {
    // SAFETY: the waker's reference is ours to give away.
    unsafe { release(from_data(data)) }
}

/// A task's number, never given twice in the life of a process. Numbers say nothing about order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TaskId(u64);

/// So many numbers go to a thread at a time, so that spawning threads do not meet: Go's `goidcache`.
const BLOCK: u64 = 64;

impl TaskId {
    pub(super) fn next() -> TaskId {
        static BLOCKS: AtomicU64 = AtomicU64::new(0);
        thread_local!(static USED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        USED.with(|used| {
            let mut last = used.get();
            if last % BLOCK == 0 {
                last = BLOCKS.fetch_add(1, Ordering::Relaxed) * BLOCK;
            }
            used.set(last + 1);
            TaskId(last + 1)
        })
    }

    /// Of which block it is.
    pub(super) fn block(self) -> u64 {
        (self.0 - 1) / BLOCK
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which task it is, and where it was spawned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskInfo {
    pub(super) id: TaskId,
    pub(super) spawned_at: &'static Location<'static>,
}

impl TaskInfo {
    /// The task's number.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The line that spawned the task.
    pub fn spawned_at(&self) -> &'static Location<'static> {
        self.spawned_at
    }
}

/// `task 7, spawned at src/main.rs:9:13`.
impl fmt::Display for TaskInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}, spawned at {}", self.id, self.spawned_at)
    }
}
