//! Sysmon: Go's thread of the same name (runtime/proc.go). It needs no P, and sees what the Ms are too busy to see.

use super::idle::{MId, PId};
use super::proc::{MShared, P, Sched};
use super::stuck::StuckTask;
use super::task::{BlockingTask, quietly};
use super::wake_list::WakeList;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[cfg(feature = "backtrace")]
use super::trace::backtrace_of;
#[cfg(not(feature = "backtrace"))]
fn backtrace_of(_: i32) -> Option<String> {
    None
}

/// How often it looks while anything runs, and while every P is busy. Go starts at 20 us and slows down to 10 ms.
const TICK: Duration = Duration::from_millis(5);
const BUSY_TICK: Duration = Duration::from_micros(1500);
/// After so many looks at an idle machine it sleeps until a P is busy.
const QUIET: u32 = 10;
/// So long the network may go without a poll. Go's number.
const POLL_NS: u64 = 10_000_000;
/// So long a task may block its thread in one poll while others wait.
const WAIT_NS: u64 = 5_000_000;
const ERRAND_NS: u64 = 10_000_000;
/// So much CPU time it may use. Go's `forcePreemptNS`.
const CPU_NS: u64 = 10_000_000;

/// What it remembers from one look to the next.
struct Sysmon<'a> {
    sched: &'a Sched,
    seen: Vec<Seen>,
    /// When it looked last.
    last: u64,
    /// When it knew last that somebody had polled the network.
    polled: u64,
    errands: Vec<Errand>,
}

/// What it saw of a P.
#[derive(Clone, Copy, Default)]
struct Seen {
    tick: u32,
    holder: Option<MId>,
    /// The CPU time of the holder's thread.
    cpu: u64,
    /// When the present poll began, and what `cpu` was then; in the middle of what is possible.
    since: u64,
    since_cpu: u64,
    /// It was in this poll when last looked at, too.
    stuck: bool,
    /// The thread has used less than half of the time since then.
    rested: bool,
    told: bool,
}

/// User code, which may block: another thread is to run it. Where none has after `ERRAND_NS`, none is to be had, and
/// sysmon does.
struct Errand {
    since: u64,
    job: Job,
}

type Job = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

impl Sched {
    /// The thread's life: until all Ms have ended. While they come to their end, what they wait for may need the network
    /// and the timers still.
    pub(crate) fn sysmon(&self) {
        let seen = vec![Seen::default(); self.ps().len()];
        let now = self.now();
        let mut sysmon = Sysmon { sched: self, seen, last: now, polled: now, errands: Vec::new() };
        let mut quiet = 0;
        while !self.have_ended_within(if self.idle.idle_ps() == 0 { BUSY_TICK } else { TICK }) {
            if quiet >= QUIET && !self.stopping() {
                quiet = 0;
                self.idle.sleep_until_busy();
                sysmon.last = self.now();
                continue;
            }
            // Without a poller, all Ms are stuck in polls that gave their Ps away.
            let idle = self.idle.idle_ps() as usize == self.ps().len() && self.idle.has_poller();
            quiet = if idle { quiet + 1 } else { 0 };
            sysmon.look();
            sysmon.try_again();
            if !idle {
                sysmon.poll_network();
            }
            sysmon.retake();
        }
        sysmon.errands.iter().for_each(|errand| run(&errand.job));
    }
}

impl Sysmon<'_> {
    fn look(&mut self) {
        let now = self.sched.now();
        for (p, seen) in self.sched.ps().iter().zip(&mut self.seen) {
            seen.look(p, self.last, now);
        }
        self.last = now;
        if self.sched.netpoll.take_polled() {
            self.polled = now;
        }
    }

    /// Where a thread could not be had: it can now perhaps (trap S5), or sysmon does its work.
    fn try_again(&mut self) {
        let (sched, now) = (self.sched, self.last);
        if self.seen.iter().all(|seen| seen.stuck || seen.holder.is_none()) {
            if sched.idle.idle_ps() > 0 && (sched.work_waiting() || !sched.idle.has_poller()) {
                sched.wakep();
            }
            if sched.closures_wait() {
                sched.wake_for_closures();
            }
        }
        self.errands.retain(|errand| {
            let waits = now.saturating_sub(errand.since) < ERRAND_NS;
            if !waits {
                run(&errand.job);
            }
            waits
        });
    }

    /// If nobody has polled for long, or every M is in the same poll as at the last look, they see neither sockets
    /// nor timers, on which a thread outside may wait. Go's first duty of sysmon. And no M goes idle, so it is sysmon that
    /// passes the batons on (trap P23).
    fn poll_network(&mut self) {
        let (sched, mut list) = (self.sched, WakeList::default());
        if self.last.saturating_sub(self.polled) >= POLL_NS || self.seen.iter().all(|seen| seen.stuck) {
            sched.netpoll.netpoll(&mut list);
            sched.expire_timers(sched.now(), &mut list);
        }
        sched.netpoll.pass_batons(&mut list);
        let mut any = false;
        while let Some(g) = list.pop() {
            any = true;
            sched.route(g, |g| sched.global.push(g));
        }
        if any {
            sched.wakep();
        }
        if list.has_foreign() {
            self.send(move || list.wake_foreign());
        } else {
            list.wake_foreign();
        }
    }

    /// Where something waits for an M that has been in one poll since the last look, or does not use the CPU: wakes an
    /// idle M. Where there is no idle P, takes one from an M that is stuck. From an M that computes it does so after `CPU_NS`; from one that blocks, after `WAIT_NS`.
    /// What wants to run and gets no CPU is left alone: another thread would get none either. Go's `retake`.
    fn retake(&mut self) {
        let sched = self.sched;
        for n in 0..self.seen.len() {
            let (seen, p) = (self.seen[n], &sched.ps()[n]);
            let Some(m) = p.holder().filter(|m| Some(m.id()) == seen.holder) else { continue };
            let all_busy = sched.idle.idle_ps() == 0;
            let waits = (seen.stuck || seen.rested) && p.has_work() || seen.stuck && !sched.idle.has_poller();
            if !all_busy && waits {
                sched.wakep();
            }
            if !seen.stuck {
                continue;
            }
            let takes = all_busy && sched.work_waiting() && !sched.config.keep_ps;
            let tells = sched.config.on_stuck_task.is_some() && !seen.told;
            // It may have moved on since.
            if (takes || tells) && seen.took_long(m, self.last) && p.schedtick.load(Ordering::Relaxed) == seen.tick {
                if tells {
                    self.seen[n].told = true;
                    self.tell(n, m);
                }
                if takes {
                    sched.retake(n as PId, m);
                }
            }
        }
    }

    /// Tells `on_stuck_task` of a poll.
    fn tell(&mut self, n: usize, m: &MShared) {
        let (seen, m) = (self.seen[n], self.sched.m(m.id()));
        let (Some(task), Some(sched)) = (m.running(), self.sched.this()) else { return };
        let (duration, cpu_time) = (self.last.saturating_sub(seen.since), seen.cpu.saturating_sub(seen.since_cpu));
        let (duration, cpu_time) = (Duration::from_nanos(duration), Duration::from_nanos(cpu_time.min(duration)));
        self.send(move || {
            // The poll may have ended by then.
            let backtrace = backtrace_of(m.thread()).filter(|_| m.running().is_some_and(|now| now.id() == task.id()));
            let stuck = StuckTask { task, duration, cpu_time, backtrace };
            sched.config.on_stuck_task.iter().for_each(|hook| hook(&stuck));
        });
    }

    fn send(&mut self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Arc::new(Mutex::new(Some(Box::new(job))));
        let there = job.clone();
        if let Some(sched) = self.sched.this() {
            drop(sched.spawn(BlockingTask::new(move || run(&there)), true, Location::caller()));
        }
        self.errands.push(Errand { since: self.last, job });
    }
}

impl Seen {
    /// Looks at a P, and asks its M to look around.
    fn look(&mut self, p: &P, last: u64, now: u64) {
        let Some(m) = p.holder() else {
            *self = Seen::default();
            return;
        };
        p.attention.store(true, Ordering::Relaxed);
        let before = *self;
        *self = Seen { tick: p.schedtick.load(Ordering::Relaxed), holder: Some(m.id()), cpu: m.cpu_ns(), ..before };
        let cpu_before = if self.holder == before.holder { before.cpu } else { self.cpu };
        self.rested = self.cpu.saturating_sub(cpu_before) < now.saturating_sub(last) / 2;
        self.stuck = (self.tick, self.holder) == (before.tick, before.holder);
        if !self.stuck {
            self.told = false;
            self.since = last.midpoint(now);
            self.since_cpu = cpu_before.midpoint(self.cpu);
        }
    }

    /// Is it time to take the P from this M?
    fn took_long(&self, m: &MShared, now: u64) -> bool {
        let (time, cpu) = (now.saturating_sub(self.since), self.cpu.saturating_sub(self.since_cpu));
        cpu >= CPU_NS || time >= WAIT_NS && cpu < time / 2 && m.is_waiting()
    }
}

fn run(job: &Job) {
    let job = job.lock().expect("no panic under this lock").take();
    if let Some(job) = job {
        quietly(job);
    }
}
