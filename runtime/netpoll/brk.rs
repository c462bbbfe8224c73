//! The break: Go's `netpollWakeSig` (runtime/netpoll_epoll.go), alone in a file so that loom can model it.

use crate::runtime::sync::{AtomicU32, Ordering};

const SENT: u32 = 1;

/// Says whether a break is on its way, so that a sleep is broken by one write at most.
///
/// While it says so, either the write is still to come or the event still lies in the kernel: only the harvest of the
/// event takes it back. A break that is sent when nobody sleeps ends the next sleep, for nothing.
#[derive(Default)]
pub(crate) struct Break {
    sig: AtomicU32,
    /// Harvested by a poll that does not wait: the next that would wait must not. Touched by who holds `polling`.
    aside: AtomicU32,
}

impl Break {
    /// True: the caller has to write. False: somebody else's write ends the wait that the caller means.
    pub(crate) fn send(&self) -> bool {
        if cfg!(gopark_mutant = "break_send_load") && self.sig.load(Ordering::Relaxed) == SENT {
            return false;
        }
        // AcqRel, a write even where it changes nothing: `harvested` reads from it, so that whoever sleeps sees what
        // led to this break although another's event ends the sleep.
        self.sig.swap(SENT, Ordering::AcqRel) != SENT
    }

    /// The event was taken out of the kernel: the next break needs a write.
    pub(crate) fn harvested(&self) {
        let order = if cfg!(gopark_mutant = "break_harvest_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        self.sig.swap(0, order);
    }

    /// The event was taken out of the kernel by a poll for which it was not meant. It goes on saying that it is sent:
    /// who breaks now needs no write, since the next sleep is over before it begins.
    pub(crate) fn set_aside(&self) {
        // Relaxed: `polling` orders it.
        self.aside.store(1, Ordering::Relaxed);
    }

    /// True: a break was set aside for this sleep. It is harvested now.
    pub(crate) fn take_aside(&self) -> bool {
        if self.aside.load(Ordering::Relaxed) == 0 || cfg!(gopark_mutant = "break_aside_ignored") {
            return false;
        }
        self.aside.store(0, Ordering::Relaxed);
        self.harvested();
        true
    }
}

#[cfg(all(test, gopark_loom))]
mod models {
    use super::*;
    use crate::runtime::sync::spin;
    use loom::sync::{Condvar, Mutex};
    use std::sync::Arc;

    /// An edge-triggered eventfd in an epoll set: a write makes an event, the first poll takes it.
    #[derive(Default)]
    struct Kernel {
        event: Mutex<bool>,
        written: Condvar,
    }

    impl Kernel {
        fn write(&self) {
            *self.event.lock().unwrap() = true;
            self.written.notify_one();
        }

        fn poll(&self, block: bool) -> bool {
            let mut event = self.event.lock().unwrap();
            while block && !*event {
                event = self.written.wait(event).unwrap();
            }
            std::mem::take(&mut *event)
        }
    }

    struct Machine {
        brk: Break,
        kernel: Kernel,
        /// `Netpoll::polling`. An atomic as there: loom's `try_lock` waits for the lock.
        polling: AtomicU32,
        work: [AtomicU32; 2],
    }

    impl Machine {
        fn new() -> Arc<Self> {
            let (brk, kernel, work) = (Break::default(), Kernel::default(), [AtomicU32::new(0), AtomicU32::new(0)]);
            Arc::new(Machine { brk, kernel, polling: AtomicU32::new(0), work })
        }

        /// `Netpoll::netpoll_block` and `Netpoll::netpoll`.
        fn poll(&self, block: bool) {
            let mut turn = 0;
            while self.polling.swap(1, Ordering::Acquire) == 1 {
                if !block {
                    return;
                }
                turn += 1;
                spin(turn);
            }
            let wait = block && !self.brk.take_aside();
            if self.kernel.poll(wait) {
                if block { self.brk.harvested() } else { self.brk.set_aside() }
            }
            // A store there; loom lets one be overtaken by the swaps above.
            self.polling.swap(0, Ordering::Release);
        }

        /// Sleeps until there is work from so many.
        fn sleep(&self, submitters: usize) {
            while self.work[..submitters].iter().any(|w| w.load(Ordering::Relaxed) == 0) {
                self.poll(true);
            }
        }

        fn submit(&self, which: usize) {
            self.work[which].store(1, Ordering::Relaxed);
            if self.brk.send() {
                self.kernel.write();
            }
        }
    }

    fn bounded(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(f);
    }

    /// Somebody breaks the sleeper while a third thread polls without waiting, before or after the sleep begins (traps P4,
    /// P24). The network has nothing else to say.
    #[test]
    fn a_break_reaches_the_sleeper_past_a_poll_that_does_not_block() {
        bounded(4, || {
            let machine = Machine::new();
            let (a, b) = (machine.clone(), machine.clone());
            let submitter = loom::thread::spawn(move || a.submit(0));
            let third = loom::thread::spawn(move || b.poll(false));
            machine.sleep(1);
            submitter.join().unwrap();
            third.join().unwrap();
        });
    }

    /// Two break it, one of them after a poll without waiting: it sees both reasons in the end.
    #[test]
    fn of_two_breaks_none_is_lost_to_a_poll_that_does_not_block() {
        bounded(3, || {
            let machine = Machine::new();
            let (a, b) = (machine.clone(), machine.clone());
            let first = loom::thread::spawn(move || a.submit(0));
            let second = loom::thread::spawn(move || {
                b.poll(false);
                b.submit(1);
            });
            machine.sleep(2);
            first.join().unwrap();
            second.join().unwrap();
        });
    }

    /// What a submitter did before its break is seen once the sleep that it did not have to break itself is over.
    #[test]
    fn a_break_that_another_sent_carries_this_ones_work() {
        loom::model(|| {
            let machine = Machine::new();
            let there = machine.clone();
            machine.brk.send();
            let submitter = loom::thread::spawn(move || {
                there.work[0].store(1, Ordering::Relaxed);
                there.brk.send()
            });
            machine.brk.harvested();
            let seen = machine.work[0].load(Ordering::Relaxed) == 1;
            // Either the submitter is told to write, or the sleeper, awake, sees its work.
            assert!(submitter.join().unwrap() || seen);
        });
    }
}
