//! Sysmon: Go's thread of the same name (runtime/proc.go). It needs no P, and sees what the Ms are too busy to see.

use super::proc::Sched;
use super::wake_list::WakeList;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often it looks while anything runs. Go starts at 20 us and slows down to 10 ms.
const TICK: Duration = Duration::from_millis(5);
/// After so many looks at an idle machine it sleeps until a P is busy.
const QUIET: u32 = 10;

impl Sched {
    /// The thread's life: until all Ms have ended. While they come to their end, what they wait for may need the network
    /// and the timers still.
    pub(crate) fn sysmon(&self) {
        let mut seen: Vec<u32> = self.ps().iter().map(|_| 0).collect();
        let mut quiet = 0;
        let mut unpolled = 0;
        while !self.have_ended_within(TICK) {
            if quiet >= QUIET && !self.stopping() {
                quiet = 0;
                self.idle.sleep_until_busy();
                continue;
            }
            // Without a poller, all Ms are stuck in polls that gave their Ps away.
            let idle = self.idle.idle_ps() as usize == self.ps().len() && self.idle.has_poller();
            quiet = if idle { quiet + 1 } else { 0 };
            unpolled = if self.netpoll.take_polled() { 0 } else { unpolled + 1 };
            if quiet == 0 {
                self.poll_network(unpolled >= 2);
            }
            self.watch(&mut seen);
        }
    }

    /// Nobody has polled for two ticks: all Ms are busy with long tasks, and see neither sockets nor timers, on which a
    /// thread outside may wait. Go's first duty of sysmon. And no M goes idle, so it is sysmon that passes the batons on
    /// (trap P23).
    fn poll_network(&self, nobody_polled: bool) {
        let mut list = WakeList::default();
        if nobody_polled {
            self.netpoll.netpoll(&mut list);
            self.expire_timers(self.now(), &mut list);
        }
        self.netpoll.pass_batons(&mut list);
        let mut any = false;
        while let Some(g) = list.pop() {
            any = true;
            self.route(g, |g| self.global.push(g));
        }
        if any {
            self.wakep();
        }
        list.wake_foreign();
    }

    /// Looks at each busy P: asks its M to look around, and where one task has run for a whole tick while something
    /// waits that it keeps (its queue, the poller's place), wakes an idle M.
    fn watch(&self, seen: &mut [u32]) {
        for (p, seen) in self.ps().iter().zip(seen) {
            let tick = p.schedtick.load(Ordering::Relaxed);
            if !p.is_held() {
                continue;
            }
            p.attention.store(true, Ordering::Relaxed);
            let same_task = std::mem::replace(seen, tick) == tick;
            if same_task && self.idle.idle_ps() > 0 && (p.has_work() || !self.idle.has_poller()) {
                self.wakep();
            }
        }
    }
}
