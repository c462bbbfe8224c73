//! What an M does about the other Ms, between two tasks of its own: it vouches for them before sysmon (watchdog.rs), and runs
//! what waits behind one that stands still.

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

/// When an M looked at the others, and what it saw.
#[derive(Default)]
pub(super) struct Neighbours {
    /// The tick at which it looks whether to vouch; at which it did so last, and when.
    vouch_at: Cell<u32>,
    vouched: Cell<(u32, u64)>,
    /// Another P, the tick it was at, and when that was.
    seen: Cell<(u32, u32, u64)>,
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
        let Some((due, fresh)) = sched.watchdog.glance(now) else { return };
        let poll = |p: &P, m: &MShared| (m.id, p.schedtick.load(Ordering::Relaxed));
        let held = || sched.ps().iter().filter_map(|p| Some((p, p.holder()?)));
        let others = || held().filter(|(_, m)| !ptr::eq(*m, &*self.shared));
        // At each of them, whatever is seen of the first.
        let stays = others().filter(|(p, m)| !p.mark.glance(poll(p, m)) || !fresh).count();
        if stays == 0 && !sched.needs_sysmon() {
            sched.watchdog.put_off(due, now, || {
                for (p, m) in held() {
                    let thread = if ptr::eq(m, &*self.shared) { 0 } else { m.thread() };
                    p.mark.set(now, poll(p, m), sys::thread_cpu_ns(thread));
                    p.attention.store(true, Ordering::Relaxed);
                }
            });
        }
    }

    /// The kernel may run something else in the place of another M, or a task may hold that up: what is in its queue
    /// would wait for it, while every M that could steal is busy. If it stands still from one look to the next, this M
    /// takes half of its queue. (Go leaves that to sysmon, after 10 ms.)
    pub(super) fn relieve_neighbour(&self, now: u64) {
        let ps = self.sched.ps();
        if self.sched.idle.idle_ps() as usize + 1 >= ps.len() {
            return;
        }
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
}
