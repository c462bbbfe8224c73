//! The break: Go's `netpollWakeSig` (runtime/netpoll_epoll.go), alone in a file so that loom can model it.

use crate::runtime::sync::{AtomicU32, Ordering};

const SENT: u32 = 1;

/// Says whether a break is on its way, so that a sleep is broken by one write at most.
///
/// While it says so, either the write is still to come or the event still lies in the kernel: only the harvest of the
/// event takes it back. A break that is sent when nobody sleeps ends the next sleep, for nothing.
#[derive(Debug)]
pub(crate) struct Break {
    sig: AtomicU32,
    /// Harvested by a poll that does not wait: the next that would wait must not. Touched by who holds `polling`.
    aside: AtomicU32,
}

impl Break {
    pub(crate) fn new() -> Self {
        Break { sig: AtomicU32::new(0), aside: AtomicU32::new(0) }
    }

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
        if self.aside.load(Ordering::Relaxed) == 0 {
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
        polling: Mutex<()>,
        work: [AtomicU32; 2],
    }

    impl Machine {
        fn new() -> Arc<Self> {
            let (brk, kernel, work) = (Break::new(), Kernel::default(), [AtomicU32::new(0), AtomicU32::new(0)]);
            Arc::new(Machine { brk, kernel, polling: Mutex::new(()), work })
        }

        fn poll(&self, block: bool) {
            if block {
                let _held = self.polling.lock().unwrap();
                let wait = !self.brk.take_aside() || cfg!(gopark_mutant = "break_aside_ignored");
                if self.kernel.poll(wait) {
                    self.brk.harvested();
                }
            } else if let Ok(_held) = self.polling.try_lock() {
                if self.kernel.poll(false) {
                    self.brk.set_aside();
                }
            }
        }

        fn submit(&self, which: usize) {
            self.work[which].store(1, Ordering::Relaxed);
            if self.brk.send() {
                self.kernel.write();
            }
        }
    }

    /// Two threads break one sleeper while a third polls without waiting: the sleeper sees both reasons in the end
    /// (trap P24). Stands for netpoll's exclusion by a mutex; says nothing of I/O events in the same batch.
    #[test]
    fn a_break_reaches_the_sleeper_past_a_poll_that_does_not_block() {
        loom::model(|| {
            let machine = Machine::new();
            let (a, b) = (machine.clone(), machine.clone());
            let first = loom::thread::spawn(move || a.submit(0));
            let second = loom::thread::spawn(move || {
                b.poll(false);
                b.submit(1);
            });
            while machine.work.iter().any(|w| w.load(Ordering::Relaxed) == 0) {
                machine.poll(true);
            }
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
