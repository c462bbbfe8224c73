//! How threads end: one that has had nothing to do for long, and all of them with the runtime. Go has no counterpart, since
//! a Go program ends with its process, and keeps its threads.

use super::wake::Orders;
use super::{M, Sched, Threads};
use crate::runtime::idle::{MId, Role};
use crate::runtime::task::{G, quietly};
use crate::runtime::wake_list::WakeList;
use crate::runtime::watchdog::TICK_NS;
use std::iter;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Sched {
    /// Asks every thread to end. Tasks that are in a poll finish it. May be called twice.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        for m in self.idle.stop() {
            self.order(m, Orders::Exit);
        }
        self.netpoll.netpoll_break();
        self.watchdog.ring();
    }

    /// The runtime ends: drops every task that no M is running. Each M does so when it ends, not only the last: an M may
    /// be in a poll that waits for what is dropped here.
    pub(crate) fn cancel_all(&self) {
        self.global.push_due(&mut self.owned.cancel_all());
        self.queued();
        self.cancel_queued();
    }

    /// Drops the tasks that are queued, one by one: while one of the drops blocks, another thread can take the rest. False:
    /// there were none.
    fn cancel_queued(&self) -> bool {
        let next = || self.global.take_out().or_else(|| self.blocking.take_out());
        iter::from_fn(next).map(G::cancel).count() > 0
    }

    /// Is there anything that `cancel_all` would drop?
    pub(crate) fn anything_to_cancel(&self) -> bool {
        !self.owned.is_cancelled() || !self.global.is_empty() || !self.blocking.is_empty()
    }

    /// What is left of a runtime that ends: threads, those of them that are not aside, and tasks.
    pub(crate) fn remaining(&self) -> (usize, usize, usize) {
        let aside = self.threads.lock().aside;
        let threads = self.alive.load(Ordering::Relaxed);
        (threads, threads.saturating_sub(aside), self.owned.len())
    }

    /// Wakes whoever waits for a socket or a timer, at the end: not while an M polls or drops futures, which may use
    /// both, but once all that are left wait for something inside a poll, since nothing else can end the wait.
    pub(crate) fn shut(&self) {
        let mut list = WakeList::default();
        self.netpoll.shut(&mut list);
        for p in &self.ps {
            p.timers.shut(&mut list);
        }
        self.netpoll.deliver(&mut list);
    }

    /// The last M waits for the tasks that others are about to queue, or drop.
    fn clean_up(&self) {
        self.cancel_all();
        while !self.owned.is_empty() {
            if !self.cancel_queued() {
                self.owned.wait();
            }
        }
    }

    /// Something was queued that the caller may not be there to run or drop. If that was after the last M had looked, the
    /// queue's lock lets this thread see that the runtime ends.
    pub(super) fn queued(&self) {
        if self.stopping() {
            self.owned.tell();
        }
    }

    /// For sysmon: a nap with a time limit, not a safety net; or, if that is no short one, until a P is busy, if all are idle. True:
    /// all threads have ended.
    pub(crate) fn have_ended_within(&self, time: u64) -> bool {
        if time < TICK_NS || self.needs_sysmon() || !self.idle.doze() {
            self.watchdog.set(self.now(), time);
        }
        // Whoever comes after this look rings, and the clock is set already.
        let ended = || self.threads.lock().ended;
        ended() || {
            self.watchdog.wait();
            ended()
        }
    }

    /// After `stop`: waits until all threads are done, at most so long, if there is a limit. Returns how many are not.
    pub(crate) fn wait_ended(&self, limit: Option<Duration>) -> usize {
        let threads = self.threads.lock();
        if threads.handles.is_empty() {
            // Not even the first thread could be started, or all have ended and were waited for.
            return 0;
        }
        let goes_on = |threads: &mut Threads| !threads.ended || threads.beside > 0;
        let waited = self.ended.wait_timeout_while(threads, limit.unwrap_or(Duration::MAX), goes_on);
        let (mut threads, result) = waited.expect("no panic under this lock");
        if result.timed_out() {
            // The last one counts itself out before it is done.
            return self.alive.load(Ordering::Relaxed).max(1);
        }
        let handles = std::mem::take(&mut threads.handles);
        drop(threads);
        // The destructors of a thread's own variables may be at work still. They are not the runtime's, and take their time.
        if limit.is_none() {
            // A destructor of one of them may be who calls.
            let me = std::thread::current().id();
            for handle in handles.into_iter().filter(|handle| handle.thread().id() != me) {
                // No panic leaves an M.
                let _ = handle.join();
            }
        }
        0
    }

    /// An M that has had nothing to do for long: true if it is to end. Threads beyond the Ps do; one that is aside does a
    /// worker's work no more than one that is not there.
    pub(super) fn retire(&self, m: MId) -> bool {
        let mut threads = self.threads.lock();
        let at_work = self.alive.load(Ordering::Relaxed).saturating_sub(threads.aside + threads.retiring);
        let retires = at_work > self.procs as usize && self.idle.leave(m, Role::Park);
        threads.retiring += usize::from(retires);
        retires
    }
}

impl M {
    /// The last thing a thread does. True: the runtime goes on without it.
    pub(super) fn end(&self) -> bool {
        let (sched, retires) = (&*self.sched, self.retires.get());
        self.handoffp();
        if !retires {
            sched.cancel_all();
        }
        sched.config.on_thread_stop.iter().for_each(quietly);
        let mut threads = sched.threads.lock();
        threads.retiring -= usize::from(retires);
        // `stop` comes before its lock: so either that counts this M no more, or this one sees it here.
        if retires && sched.stopping() {
            drop(threads);
            sched.cancel_all();
            threads = sched.threads.lock();
        }
        let alive = sched.alive.fetch_sub(1, Ordering::Relaxed) - 1;
        let goes_on = !sched.stopping();
        let quiet = threads.aside >= alive;
        drop(threads);
        if quiet && !goes_on {
            sched.shut();
        }
        if alive == 0 {
            // Whoever has left them behind is held up, and waits for them perhaps.
            sched.netpoll.foreign.call_left_behind();
            sched.clean_up();
            sched.threads.lock().ended = true;
            sched.ended.notify_all();
            sched.watchdog.ring();
        }
        goes_on
    }
}
