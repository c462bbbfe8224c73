//! What others notice of a server that blocks: latencies and gaps, told apart by when messages were due.

use crate::hist::Hist;

/// What a window is about.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Phase {
    /// Nobody blocks, or ever has.
    Calm,
    /// Somebody does.
    Blocked,
}

struct Window {
    phase: Phase,
    from: u64,
    /// u64::MAX while it is open.
    until: u64,
}

/// All windows of a phase.
pub(crate) struct Tally {
    /// From when a message was due to when it was back.
    pub(crate) latency: Hist,
    /// From when a message was due to when the client sent it.
    pub(crate) late: Hist,
    /// The longest time in which no message came back on any connection.
    pub(crate) gap: u64,
}

impl Tally {
    fn new() -> Self {
        Tally { latency: Hist::new(), late: Hist::new(), gap: 0 }
    }
}

/// Without windows it sees nothing.
pub(crate) struct Watch {
    windows: Vec<Window>,
    last_answer: Option<u64>,
    pub(crate) calm: Tally,
    pub(crate) blocked: Tally,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Watch { windows: Vec::new(), last_answer: None, calm: Tally::new(), blocked: Tally::new() }
    }

    pub(crate) fn open(&mut self, phase: Phase, now: u64) {
        self.windows.push(Window { phase, from: now, until: u64::MAX });
    }

    pub(crate) fn close(&mut self, now: u64) {
        self.windows.last_mut().expect("one is open").until = now;
    }

    fn tally(&mut self, phase: Phase) -> &mut Tally {
        match phase {
            Phase::Calm => &mut self.calm,
            Phase::Blocked => &mut self.blocked,
        }
    }

    /// The window in which something was due.
    fn phase_at(&self, due: u64) -> Option<Phase> {
        let window = self.windows.iter().rev().find(|window| window.from <= due)?;
        (due < window.until).then_some(window.phase)
    }

    pub(crate) fn sent(&mut self, due: u64, now: u64) {
        if let Some(phase) = self.phase_at(due) {
            self.tally(phase).late.record(now.saturating_sub(due));
        }
    }

    pub(crate) fn back(&mut self, due: u64, now: u64) {
        if let Some(phase) = self.phase_at(due) {
            self.tally(phase).latency.record(now.saturating_sub(due));
        }
        // A gap belongs to the last window that it touches, however far it reaches beyond.
        let last_answer = self.last_answer.replace(now).unwrap_or(now);
        if let Some(window) = self.windows.last().filter(|window| last_answer < window.until) {
            let tally = self.tally(window.phase);
            tally.gap = tally.gap.max(now - last_answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(watch: &Watch) -> [u64; 2] {
        [watch.calm.latency.count(), watch.blocked.latency.count()]
    }

    #[test]
    fn a_message_counts_where_it_was_due() {
        let mut watch = Watch::new();
        watch.back(5, 6);
        watch.open(Phase::Calm, 10);
        watch.back(9, 11);
        assert_eq!(counts(&watch), [0, 0]);
        watch.back(10, 12);
        watch.close(20);
        watch.open(Phase::Blocked, 20);
        watch.back(19, 25);
        assert_eq!(counts(&watch), [2, 0]);
        watch.close(30);
        watch.back(20, 90);
        watch.back(30, 91);
        assert_eq!(counts(&watch), [2, 1]);
        assert_eq!([watch.calm.latency.max(), watch.blocked.latency.max()], [6, 70]);
    }

    #[test]
    fn a_gap_that_outlasts_its_window_counts_in_full() {
        let mut watch = Watch::new();
        watch.back(0, 1);
        watch.open(Phase::Calm, 2);
        watch.back(3, 4);
        watch.close(5);
        watch.open(Phase::Blocked, 5);
        watch.close(105);
        // The first answer after the block, and others that are no business of it.
        watch.back(6, 110);
        watch.back(7, 1000);
        assert_eq!([watch.calm.gap, watch.blocked.gap], [3, 106]);
    }
}
