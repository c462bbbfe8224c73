//! The scheduler of this module's tests and models: a queue, and nobody who runs it but the test.

use super::super::sync::Mutex;
use super::{G, GList, JoinHandle, OwnedTasks, Schedule, TaskInfo, spawn};
use std::any::Any;
use std::panic::Location;
use std::sync::Arc;

pub(crate) struct Rig {
    owned: OwnedTasks,
    queue: Mutex<GList>,
    unjoined: std::sync::Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Rig {
    pub(crate) fn new() -> Arc<Rig> {
        // Which of several a task is in depends on its number, and numbers do not begin anew with each run of a model.
        let shards = if cfg!(gopark_loom) { 1 } else { 2 };
        Arc::new(Rig { owned: OwnedTasks::new(shards), queue: Mutex::default(), unjoined: std::sync::Mutex::default() })
    }

    /// Spawns without queueing.
    #[track_caller]
    pub(crate) fn make<F>(self: &Arc<Self>, future: F) -> (Option<G>, JoinHandle<F::Output>)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        spawn(future, self.clone(), Location::caller())
    }

    #[track_caller]
    pub(crate) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (g, join) = self.make(future);
        g.into_iter().for_each(|g| self.schedule(g));
        join
    }

    pub(crate) fn next(&self) -> Option<G> {
        self.queue.lock().next()
    }

    /// Runs what is queued, and what that queues; returns the number of runs.
    pub(crate) fn run_all(&self) -> usize {
        let runs = std::iter::from_fn(|| self.next()).map(|g| {
            g.run().into_iter().for_each(|g| self.schedule(g));
        });
        runs.count()
    }

    /// As a runtime shuts down; see `owned.rs`. Nobody else runs tasks, so there is nothing to wait for.
    pub(crate) fn shutdown(&self) {
        self.owned.cancel_all().for_each(G::cancel);
        std::iter::from_fn(|| self.next()).for_each(G::cancel);
    }

    pub(crate) fn unjoined(&self) -> usize {
        self.unjoined.lock().unwrap().len()
    }

    /// Every task is complete, and freed, or a reference to it is still there.
    pub(crate) fn end(self: Arc<Self>) {
        assert!(self.owned.is_empty(), "a task is not complete");
        assert!(Arc::into_inner(self).is_some(), "a task was not freed");
    }
}

impl Schedule for Rig {
    fn schedule(&self, g: G) {
        self.queue.lock().push_back(g);
    }

    fn owned(&self) -> &OwnedTasks {
        &self.owned
    }

    fn unjoined_panic(&self, _: &TaskInfo, payload: Box<dyn Any + Send>) {
        let angry_hook = payload.is::<AngryHook>();
        self.unjoined.lock().unwrap().push(payload);
        if angry_hook {
            std::panic::panic_any(AngryPayload);
        }
    }
}

/// A payload that makes the rig's `unjoined_panic` panic.
pub(crate) struct AngryHook;

struct AngryPayload;

impl Drop for AngryPayload {
    fn drop(&mut self) {
        std::panic::panic_any(());
    }
}
