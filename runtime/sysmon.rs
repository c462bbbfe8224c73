//! Sysmon: Go's thread of the same name (runtime/proc.go). It needs no P, and sees what the Ms are too busy to see.

use super::idle::{MId, PId};
use super::proc::{Errand, MShared, Orders, P, Sched};
use super::stuck::StuckTask;
use super::sync::Mutex;
use super::sys;
use super::task::quietly;
use super::wake_list::WakeList;
use super::watchdog::{Mark, TICK_NS};
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "backtrace")]
use super::trace::frames_of;
#[cfg(not(feature = "backtrace"))]
fn frames_of(_: i32) -> Option<String> {
    None
}

/// How often it looks while all Ps have been stuck for `LONG_NS` and nothing waits for them.
const STUCK_TICK_NS: u64 = 10_000_000;
const LONG_NS: u64 = 100_000_000;
/// While every P is busy it looks when the first of them may have to be taken, but no more often than this; and so soon after
/// it has seen an M in a new poll, while others wait and a P is idle; and while an errand waits for a thread.
const CLOSE_TICK_NS: u64 = 500_000;
/// So long the network may go without a poll. Go's number.
const POLL_NS: u64 = 10_000_000;
/// So long a task may block its thread in one poll while others wait.
const WAIT_NS: u64 = 4_000_000;
/// So much CPU time it may use. Go's `forcePreemptNS`.
const CPU_NS: u64 = 10_000_000;
/// So many calls of `on_stuck_task` there may be, with one that does not return.
const REPORTS: usize = 1000;
/// So long an errand waits for a thread: then sysmon runs it itself, and is lost if that waits for something.
const REFUSED_NS: u64 = 1_000_000_000;
/// So late a look may be and still tell when a poll began.
const LATE_NS: u64 = 10_000_000;

/// What it remembers from one look to the next.
#[derive(Default)]
struct Sysmon {
    seen: Vec<Seen>,
    /// When it looked last.
    last: u64,
    /// When it knew last that somebody had polled the network.
    polled: u64,
    /// One for each M.
    clocks: Vec<Clock>,
    /// Whether the next look is one that follows a new poll.
    follows: bool,
    /// Nobody was at work when it looked, and something waited.
    wants_thread: bool,
    end: End,
    reports: Arc<Reports>,
    /// What no thread was to be had for, and when that was.
    refused: VecDeque<(u64, Errand)>,
}

/// What `on_stuck_task` is to be told, by one thread, one after the other: the hook may want a lock that a stuck task
/// holds. A report stays until the hook is back, so where there is none, nobody is at work.
type Reports = Mutex<VecDeque<(StuckTask, Arc<MShared>)>>;

/// What it remembers of the runtime's end.
#[derive(Default)]
struct End {
    /// How many threads and tasks were left, and since when that is so.
    left: (usize, usize),
    still: u64,
    /// When it had a thread drop what no M comes to drop.
    cancelled: Option<u64>,
    /// When it had the sockets and the timers shut.
    shut: Option<u64>,
}

/// What it knows of an M's thread: its CPU time, when that was read, and what part of the time before that it had used, in
/// thousandths.
#[derive(Clone, Copy, Default)]
struct Clock {
    cpu: u64,
    at: u64,
    load: u64,
}

/// What it saw of a P.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Which poll of which M. (An M's ticks begin again with its next thread: once in a blue moon two polls look like one.)
    tick: u32,
    holder: Option<MId>,
    /// Who has held it last.
    last: Option<MId>,
    /// The CPU time of the holder's thread.
    cpu: u64,
    /// When the present poll began, in the middle of what is possible, and what `cpu` was then, by what the thread uses else.
    since: u64,
    since_cpu: u64,
    /// Since when the thread has used next to no CPU time.
    still: u64,
    /// What `cpu` was when the thread was seen to want a CPU: as long as it is that, the thread has not run, and wants one.
    starved: Option<u64>,
    /// It has used the CPU since the last look: a quarter of the time, and in a new poll, of which that need not be, half.
    works: bool,
    /// It waits in the kernel, as a thread does that a task blocks. (Others may want its CPU, too: then it uses as little of
    /// it, but to look closely, to poll in its place and to wake an M for what it has queued only makes that worse.)
    asleep: bool,
    /// It was in this poll when last looked at, too.
    stuck: bool,
}

impl Sched {
    /// The thread's life: until all Ms have ended. While they come to their end, what they wait for may need the network
    /// and the timers still.
    pub(crate) fn sysmon(self: &Arc<Self>) {
        sys::prepare_fences();
        let (seen, now) = (vec![Seen::default(); self.ps().len()], self.now());
        let mut sysmon = Sysmon { seen, last: now, polled: now, ..Sysmon::default() };
        while !self.have_ended_within(sysmon.nap(self)) {
            sysmon.look(self);
            sysmon.run_beside(self, None);
            sysmon.try_again(self);
            sysmon.poll_network(self);
            if self.stopping() {
                sysmon.help_to_end(self);
            } else {
                sysmon.retake(self);
            }
        }
        // Somebody else's wakers, perhaps.
        sysmon.refused.into_iter().for_each(|(_, errand)| quietly(errand));
    }
}

impl Sysmon {
    fn nap(&self, sched: &Arc<Sched>) -> u64 {
        if !self.refused.is_empty() {
            return CLOSE_TICK_NS;
        }
        let long = |seen: &Seen| seen.stuck && self.last.saturating_sub(seen.since) >= LONG_NS;
        if sched.idle.idle_ps() > 0 {
            if self.follows { CLOSE_TICK_NS } else { TICK_NS }
        } else if self.seen.iter().all(long) {
            STUCK_TICK_NS
        } else {
            // What wants a CPU, and has not had it since, will not be due by waiting. What is overdue was looked at by now, but
            // for a new poll, of which one look tells too little.
            let starves = |seen: &Seen| seen.stuck && seen.starved == Some(seen.cpu);
            let was_looked_at = |seen: &Seen| seen.stuck && seen.until_due(self.last) == 0;
            let open = self.seen.iter().filter(|seen| !starves(seen) && !was_looked_at(seen));
            open.map(|seen| seen.until_due(self.last)).min().unwrap_or(TICK_NS).clamp(CLOSE_TICK_NS, TICK_NS)
        }
    }

    fn look(&mut self, sched: &Arc<Sched>) {
        let put_off = sched.watchdog.last_put_off();
        let (now, keep_ps) = (sched.now(), sched.config.keep_ps);
        for (p, seen) in sched.ps().iter().zip(&mut self.seen) {
            if put_off > self.last {
                seen.believe(&p.mark, &mut self.clocks, put_off);
            }
            seen.look(p, &mut self.clocks, self.last.max(put_off), now);
            seen.asleep = p.holder().is_some_and(|m| seen.is_asleep(m, keep_ps));
        }
        // Of those, too, that have gone idle, until they have used nothing in between: what they use when they are back is told
        // from what they had used until then.
        for seen in self.seen.iter_mut().filter(|seen| seen.holder.is_none()) {
            let Some(id) = seen.last else { continue };
            let clock = &mut self.clocks[id as usize];
            let before = clock.go_on(sys::thread_cpu_ns(sched.m(id).thread()), now);
            seen.last = seen.last.filter(|_| before.cpu != clock.cpu);
        }
        self.last = now;
        if sched.netpoll.take_polled() {
            self.polled = now;
        }
    }

    /// Is no M at work?
    fn nobody_runs(&self) -> bool {
        self.seen.iter().all(|seen| seen.stuck || seen.holder.is_none())
    }

    /// Where a thread could not be had, one can now perhaps (trap S5).
    fn try_again(&mut self, sched: &Arc<Sched>) {
        sched.no_thread_for_p.store(false, Ordering::Relaxed);
        let wants =
            self.nobody_runs() && sched.idle.idle_ps() > 0 && (sched.work_waiting() || !sched.idle.has_poller());
        // Twice in a row: a burst of closures may have all threads for a moment.
        let wanted = mem::replace(&mut self.wants_thread, wants);
        if wants {
            sched.wakep_or_tell(wanted);
        }
        let refused = sched.no_thread_for_closure.swap(false, Ordering::Relaxed);
        if refused && sched.closures_wait() && !sched.wake_for_closures() {
            sched.worker_runs_closure.store(true, Ordering::Relaxed);
        }
    }

    /// If nobody has polled for long, or every M may be stuck, nobody sees sockets and timers, on which a thread outside
    /// may wait. Go's first duty of sysmon. Nor does anybody, perhaps, while a P is overdue that something in the network may
    /// want. And no M goes idle, so it is sysmon that passes the batons on (trap P23).
    fn poll_network(&mut self, sched: &Arc<Sched>) {
        let mut list = WakeList::default();
        let at_work = |seen: &Seen| seen.holder.is_some() && !seen.asleep;
        let overdue = |seen: &Seen| seen.stuck && seen.until_due(self.last) == 0;
        let overdue = self.polled != self.last && sched.idle.idle_ps() == 0 && self.seen.iter().any(overdue);
        let nobody_can = !sched.idle.has_poller() && (overdue || !self.seen.iter().any(at_work));
        if nobody_can || self.last.saturating_sub(self.polled) >= POLL_NS {
            sched.netpoll.netpoll(&mut list);
            sched.expire_timers(sched.now(), &mut list);
        }
        sched.netpoll.pass_batons(&mut list);
        sched.inject(&mut list);
        if list.has_foreign() {
            let there = sched.clone();
            let call = move || there.netpoll.foreign.call(&mut list, || there.wakep());
            // Or nobody would.
            self.run_beside(sched, Some(Box::new(call)));
        }
    }

    /// For what may block: finds a thread for an errand, and for those before it that have found none.
    fn run_beside(&mut self, sched: &Arc<Sched>, errand: Option<Errand>) {
        self.refused.extend(errand.map(|errand| (self.last, errand)));
        while let Some((since, errand)) = self.refused.pop_front() {
            match sched.send(errand, true) {
                Err(errand) if self.last.saturating_sub(since) >= REFUSED_NS => quietly(errand),
                Err(errand) => return self.refused.push_front((since, errand)),
                Ok(()) => {}
            }
        }
    }

    /// Where something waits for an M that has been in one poll since the last look, or that has just begun one and is asleep:
    /// wakes an idle M. Where there is no idle P, takes one from an M that is stuck: one that computes, after `CPU_NS`; one
    /// that waits in the kernel, after `WAIT_NS`. What wants to run and gets no CPU is left alone: another thread would get
    /// none either. Go's `retake`.
    fn retake(&mut self, sched: &Arc<Sched>) {
        let followed = mem::take(&mut self.follows);
        for (n, (p, seen)) in sched.ps().iter().zip(&self.seen).enumerate() {
            let Some(m) = p.holder().filter(|m| Some(m.id) == seen.holder) else { continue };
            let all_busy = sched.idle.idle_ps() == 0;
            if !all_busy && (p.has_work() || !sched.netpoll.foreign.is_empty() || !sched.idle.has_poller()) {
                if seen.asleep || seen.stuck {
                    sched.wakep();
                } else {
                    self.follows = !followed;
                }
            }
            if !seen.stuck {
                continue;
            }
            let takes = all_busy && sched.work_waiting() && !sched.config.keep_ps;
            let tells = sched.config.on_stuck_task.is_some();
            if !(takes || tells) || seen.until_due(self.last) > 0 {
                continue;
            }
            let m = sched.m(m.id);
            // It may have moved on.
            let same_poll =
                || p.schedtick.load(Ordering::Relaxed) == seen.tick && p.holder().is_some_and(|now| now.id == m.id);
            if let Some(task) = m.to_be_told(same_poll).filter(|_| tells) {
                let duration = Duration::from_nanos(self.last.saturating_sub(seen.since));
                let cpu_time = Duration::from_nanos(seen.cpu.saturating_sub(seen.since_cpu)).min(duration);
                self.tell(sched, StuckTask { task, duration, cpu_time, backtrace: None }, m.clone());
            }
            if takes && same_poll() {
                sched.retake(n as PId, &m);
            }
        }
    }

    /// Tells `on_stuck_task`, if there is a thread for it.
    fn tell(&self, sched: &Arc<Sched>, stuck: StuckTask, m: Arc<MShared>) {
        let mut reports = self.reports.lock();
        let at_work = !reports.is_empty();
        if reports.len() < REPORTS {
            reports.push_back((stuck, m));
        }
        drop(reports);
        if at_work {
            return;
        }
        let (there, reports) = (sched.clone(), self.reports.clone());
        let work = move || {
            let mut asked = VecDeque::new();
            let mut queue = reports.lock();
            loop {
                // All threads are asked before one's addresses get names, which takes so long that the others would have moved on.
                while let Some((stuck, m)) = queue.get(asked.len()).cloned() {
                    drop(queue);
                    // The poll may have ended by then.
                    let frames = frames_of(m.thread()).filter(|_| m.running() == Some(stuck.task));
                    asked.push_back((stuck, frames));
                    queue = reports.lock();
                }
                let Some((mut stuck, frames)) = asked.pop_front() else { break };
                drop(queue);
                quietly(|| {
                    stuck.backtrace = frames.map(|frames| frames.to_string());
                    there.config.on_stuck_task.iter().for_each(|hook| hook(&stuck));
                });
                queue = reports.lock();
                queue.pop_front();
            }
        };
        if sched.send(Box::new(work), false).is_err() {
            self.reports.lock().clear();
        }
    }

    /// At the end: threads that are stuck or aside may wait for what the drop of a task would do that lies in the queue of
    /// such a thread, or that no M comes to drop; or for the network and the timers. Once nothing has moved for `LONG_NS`,
    /// that is tried again.
    fn help_to_end(&mut self, sched: &Arc<Sched>) {
        self.follows = false;
        let now = self.last;
        let mut drained = false;
        for (p, seen) in sched.ps().iter().zip(&self.seen).filter(|(_, seen)| seen.stuck) {
            if let Some(m) = p.holder().filter(|m| Some(m.id) == seen.holder) {
                drained |= sched.take_over(m);
            }
        }
        let ((threads, at_work, tasks), nobody_runs) = (sched.remaining(), self.nobody_runs());
        let end = &mut self.end;
        if (threads, tasks) != end.left || !nobody_runs {
            (end.left, end.still) = ((threads, tasks), now);
        }
        let long = |since: u64| now.saturating_sub(since) >= LONG_NS;
        // First, tasks that no M will come to drop: another thread does, again and again while there are some.
        let to_cancel = drained || nobody_runs && sched.anything_to_cancel();
        // Then, if all threads wait: who waits for a socket or a timer hears of the end. Again only for what that left behind.
        let all_wait = at_work == 0 || !to_cancel && long(end.still);
        let to_shut = end.shut.is_none_or(|shut| long(shut) && !sched.netpoll.foreign.is_empty());
        if !self.refused.is_empty() {
            // What they would do comes first.
        } else if to_cancel && end.cancelled.is_none_or(long) {
            end.cancelled = Some(now);
            // Not the caller of `stop`, nor an M in the middle of a poll: those may hold a lock which one of the drops takes.
            if sched.start_m(Orders::Exit).is_err() {
                // What is dropped may wait for the network, and nobody else could end that; nor what waits there for the drops.
                let (there, here) = (sched.clone(), sched.clone());
                self.run_beside(sched, Some(Box::new(move || there.shut())));
                self.run_beside(sched, Some(Box::new(move || here.cancel_all())));
            }
        } else if all_wait && to_shut {
            end.shut = Some(now);
            // It calls foreign wakers, which may wait for each other.
            let there = sched.clone();
            let shut = move || {
                // The last M does so itself.
                if threads > 0 {
                    there.shut();
                }
                there.netpoll.foreign.call_left_behind();
            };
            self.run_beside(sched, Some(Box::new(shut)));
        }
    }
}

impl Clock {
    /// Returns what was known before; the same where it was read in this look.
    fn go_on(&mut self, cpu: u64, now: u64) -> Clock {
        if self.at == now {
            return *self;
        }
        let (time, used) = (now.saturating_sub(self.at).max(1), cpu.saturating_sub(self.cpu));
        mem::replace(self, Clock { cpu, at: now, load: (used * 1000 / time).min(1000) })
    }
}

fn clock_of(clocks: &mut Vec<Clock>, id: MId) -> &mut Clock {
    let at = id as usize;
    clocks.resize(clocks.len().max(at + 1), Clock::default());
    &mut clocks[at]
}

impl Seen {
    /// What an M saw when it vouched for all, in the place of an own look: a poll that had just begun, or was about to. Where it
    /// saw none, nobody held the P, and whoever does now is in it anew.
    fn believe(&mut self, mark: &Mark, clocks: &mut Vec<Clock>, at: u64) {
        *self = Seen { last: self.last, ..Seen::default() };
        let Some(((id, tick), cpu)) = mark.get(at) else { return };
        clock_of(clocks, id).go_on(cpu, at);
        *self = Seen { holder: Some(id), tick, cpu, since: at, since_cpu: cpu, still: at, last: Some(id), ..*self };
    }

    /// Looks at a P, and asks its M to look around.
    fn look(&mut self, p: &P, clocks: &mut Vec<Clock>, last: u64, now: u64) {
        let m = p.holder();
        if m.is_none() || self.holder != m.map(|m| m.id) {
            *self = Seen { last: self.last, ..Seen::default() };
        }
        let Some(m) = m else { return };
        p.attention.store(true, Ordering::Relaxed);
        let before = *self;
        (self.tick, self.holder, self.last) = (p.schedtick.load(Ordering::Relaxed), Some(m.id), Some(m.id));
        self.cpu = sys::thread_cpu_ns(m.thread());
        let clock = clock_of(clocks, m.id).go_on(self.cpu, now);
        let (window, middle) = (now.saturating_sub(last), last.midpoint(now).max(now.saturating_sub(LATE_NS / 2)));
        let used = self.cpu.saturating_sub(clock.cpu);
        // Nobody knows when, where its clock was not read at the last look.
        let used = if clock.at < last && used > window { window / 2 } else { used.min(window) };
        self.stuck = (self.tick, self.holder) == (before.tick, before.holder);
        self.works = used > if self.stuck { window / 4 } else { window / 2 };
        if !self.stuck {
            // Where it uses all of its time, that is half of it.
            let by_this_poll = used.saturating_sub(clock.load * window / 2000).min(LATE_NS / 2);
            self.since_cpu = self.cpu - by_this_poll;
            self.since = middle.min(now - by_this_poll);
        }
        if !self.stuck || self.works {
            self.still = middle;
        }
    }

    /// Has its M, which is in one poll for long or has just begun one, used the CPU little, because it waits in the kernel?
    /// With `keep_ps` that is not asked, which takes a descriptor for a moment.
    fn is_asleep(&mut self, m: &MShared, keep_ps: bool) -> bool {
        if self.works || self.starved == Some(self.cpu) {
            return false;
        }
        let waits = if keep_ps { self.stuck } else { sys::is_waiting(m.thread()) };
        self.starved = (!waits && !keep_ps).then_some(self.cpu);
        waits
    }

    /// How long until it is time to take the P from this M, if it goes on as now; 0: it is time.
    fn until_due(&self, now: u64) -> u64 {
        let of_cpu = CPU_NS.saturating_sub(self.cpu.saturating_sub(self.since_cpu));
        let of_waiting = if self.asleep { WAIT_NS.saturating_sub(now.saturating_sub(self.still)) } else { of_cpu };
        of_cpu.min(of_waiting)
    }
}
