//! What an M does about the other Ms, between two tasks of its own: it vouches for them before sysmon (watchdog.rs), runs what
//! waits behind one that stands still, and leaves a CPU to one that it shares it with.

use super::find::{CHECK_NS, has_come};
use super::{M, MShared, P};
use crate::runtime::sys;
use crate::runtime::watchdog::GLANCE_NS;
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering;

/// After how many tasks at the latest an M looks whether sysmon's next look is to be put off: should they come more seldom of a
/// sudden, sysmon looks meanwhile.
const VOUCH_TICKS: u64 = 128;
/// So long an M is at work before it asks how much of the time it had a CPU.
const STRETCH_NS: u64 = 2_000_000;

/// When an M looked at the others, and what it saw.
#[derive(Default)]
pub(super) struct Neighbours {
    /// The tick at which it looks whether to vouch; at which it did so last, and when.
    vouch_at: Cell<u32>,
    vouched: Cell<(u32, u64)>,
    /// Another P, the tick it was at, and when that was.
    seen: Cell<(u32, u32, u64)>,
    /// Since when it has been at work without a rest, or asked last, and the CPU time of its thread then.
    stretch: Cell<Option<(u64, u64)>>,
}

impl Neighbours {
    pub(super) fn may_vouch(&self, tick: u32) -> bool {
        has_come(self.vouch_at.get(), tick)
    }

    /// The M looks whether to vouch. The next time is when as many tasks have run as do in `GLANCE_NS` now: a look at the clock
    /// for each would be dear.
    fn vouches(&self, tick: u32, now: u64) {
        let (since, then) = self.vouched.replace((tick, now));
        let ticks = u64::from(tick.wrapping_sub(since)) * GLANCE_NS / now.saturating_sub(then).max(1);
        self.vouch_at.set(tick.wrapping_add(ticks.clamp(1, VOUCH_TICKS) as u32));
    }

    /// It has rested.
    pub(super) fn rested(&self) {
        self.stretch.set(None);
    }

    /// Has the M had a CPU for less than three quarters of the time that it was at work? Not to be told before some of it is over.
    fn wants_cpu(&self, now: u64, cpu_time: impl FnOnce() -> u64) -> bool {
        let before = self.stretch.get();
        if before.is_some_and(|(since, _)| now.saturating_sub(since) < STRETCH_NS) {
            return false;
        }
        let used = cpu_time();
        self.stretch.set(Some((now, used)));
        before.is_some_and(|(since, then)| used.saturating_sub(then) < (now - since) / 4 * 3)
    }
}

impl M {
    /// Before a poll, now and then: puts sysmon's next look off, if there is nothing that it would see. That is so if every
    /// other M with a P has moved on since a glance a moment ago. What is seen of them is marked, in the place of that look,
    /// and they are asked to look around.
    #[cold]
    pub(super) fn vouch(&self, tick: u32) {
        let sched = &*self.sched;
        let now = sched.now();
        self.neighbours.vouches(tick, now);
        let Some(glance) = sched.watchdog.glance(now) else { return };
        let poll = |p: &P, m: &MShared| (m.id, p.schedtick.load(Ordering::Relaxed));
        let held = || sched.ps().iter().filter_map(|p| Some((p, p.holder()?)));
        let others = || held().filter(|(_, m)| !ptr::eq(*m, &*self.shared));
        // At each of them, whatever is seen of the first.
        let stays = others().filter(|(p, m)| !p.mark.glance(poll(p, m)) || !glance.fresh).count();
        if stays == 0 && !sched.needs_sysmon() {
            sched.watchdog.put_off(&glance, now, || {
                for (p, m) in held() {
                    p.mark.set(now, poll(p, m), sys::thread_cpu_ns(m.thread()));
                    p.attention.store(true, Ordering::Relaxed);
                }
            });
        }
    }

    /// Now and then, if others are at work.
    pub(super) fn look_at_neighbours(&self, now: u64) {
        if self.sched.idle.idle_ps() as usize + 1 < self.sched.ps().len() {
            self.relieve(now);
            self.part(now);
        }
    }

    /// The kernel may run something else in the place of another M, or a task may hold that up: what is in its queue
    /// would wait for it, while every M that could steal is busy. If it stands still from one look to the next, this M
    /// takes half of its queue. (Go leaves that to sysmon, after 10 ms.)
    fn relieve(&self, now: u64) {
        let ps = self.sched.ps();
        let (n, tick, since) = self.neighbours.seen.get();
        if now.saturating_sub(since) < CHECK_NS {
            return;
        }
        let p = &ps[n as usize];
        let stuck = p.remote().filter(|r| !ptr::eq(*r, &self.shared.remote));
        if let Some(stuck) = stuck.filter(|_| p.schedtick.load(Ordering::Relaxed) == tick) {
            self.local.relieve(stuck);
        }
        let Some(me) = self.p.get() else { return };
        let next = (me + 1 + (self.random() % (ps.len() as u64 - 1)) as u32) % ps.len() as u32;
        self.neighbours.seen.set((next, ps[next as usize].schedtick.load(Ordering::Relaxed), now));
    }

    /// Leaves a CPU on which another M is at work, if it has to wait for that. The kernel may leave them there for long, though
    /// another CPU is idle for a third of the time: two threads here and one there are as even as three can be, and rests of
    /// some microseconds are too short to fetch one.
    fn part(&self, now: u64) {
        let (me, cpu) = (&*self.shared, sys::cpu());
        me.cpu.store(cpu, Ordering::Relaxed);
        if self.neighbours.wants_cpu(now, || sys::thread_cpu_ns(me.thread())) {
            let others = self.sched.ps().iter().filter_map(P::holder).filter(|m| !ptr::eq(*m, me));
            let theirs = others.map(|m| m.cpu.load(Ordering::Relaxed));
            if theirs.clone().any(|other| other == cpu) {
                sys::leave_cpus(theirs);
            }
        }
    }
}
