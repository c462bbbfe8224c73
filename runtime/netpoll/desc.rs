//! `PollDesc`: Go's `pollDesc` and `pollCache` (runtime/netpoll.go).
//!
//! Descriptors are type-stable: their memory is never given back or moved while the netpoller lives, so an event for a
//! socket that is gone finds a descriptor still, and the generation in the slot's word tells it off (traps P1, P11, P18).

use super::deadline::Deadline;
use super::slot::{Shut, Slot, Start};
use crate::runtime::sync::Mutex;
use crate::runtime::timer::Timers;
use crate::runtime::wake_list::{SlotId, WakeList};
use std::sync::OnceLock;

/// The name of a descriptor in one generation is that of its read slot: what epoll carries in its 64 bits. All of it is
/// compared (trap P2).
impl SlotId {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.fdseq) << 32 | u64::from(self.slot)
    }

    pub(crate) fn unpack(data: u64) -> SlotId {
        SlotId { slot: data as u32, fdseq: (data >> 32) as u32 }
    }
}

/// Which of a descriptor's slots: the last two bits of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Read,
    Write,
    /// Not a direction: the lock that a `write_all` holds from its first byte to its last. READY is free, and no edge ever
    /// comes.
    WriteLock,
}

/// There are fewer descriptors. The last numbers name no slot: epoll.rs has one for the break.
pub(crate) const MAX_INDEX: u32 = u32::MAX / 4;

/// What the netpoller knows of one open descriptor. The generation in use stands in the slots' words; it changes under the
/// table's lock only.
///
/// Four cache lines; an edge for readers touches the first alone, a write for which there is room the second.
#[repr(C)]
pub(crate) struct PollDesc {
    /// One for each [`Side`].
    slots: [Slot; 3],
    /// For reading; for writing, and the wait for the lock.
    deadlines: [Deadline; 2],
}

#[cfg(not(gopark_loom))]
const _: () = assert!(size_of::<PollDesc>() == 256);

impl PollDesc {
    fn new(index: u32) -> Self {
        let slots = [Side::Read, Side::Write, Side::WriteLock].map(|side| Slot::new(index * 4 + side as u32));
        PollDesc { slots, deadlines: [Deadline::new(), Deadline::new()] }
    }

    #[inline]
    pub(crate) fn slot(&self, side: Side) -> &Slot {
        &self.slots[side as usize]
    }

    fn id(&self) -> SlotId {
        self.slot(Side::Read).id()
    }

    /// A direction's deadline, and what refuses operations once it has passed.
    #[inline]
    pub(crate) fn deadline(&self, side: Side) -> (&Deadline, &[Slot]) {
        match side {
            Side::Read => (&self.deadlines[0], &self.slots[..1]),
            Side::Write | Side::WriteLock => (&self.deadlines[1], &self.slots[1..]),
        }
    }

    pub(crate) fn shut(&self, fdseq: u32, how: Shut, list: &mut WakeList) {
        self.slots.iter().for_each(|slot| slot.shut(fdseq, how, list));
    }
}

/// The first blocks' size. After each `EQUALS` blocks it doubles: few blocks for many descriptors, and at most one in
/// `EQUALS` of them unused.
const BLOCK: u32 = 16;
const EQUALS: u32 = 8;
const BLOCKS: usize = place(MAX_INDEX).0 + 1;

/// All descriptors of one netpoller.
pub(crate) struct Table {
    blocks: [OnceLock<Box<[PollDesc]>>; BLOCKS],
    alloc: Mutex<Alloc>,
}

#[derive(Default)]
struct Alloc {
    free: Vec<u32>,
    used: u32,
    /// Set when the runtime ends: no descriptor is taken into use after everybody was woken (trap P10).
    shut: bool,
}

impl Table {
    pub(crate) fn new() -> Self {
        Table { blocks: [const { OnceLock::new() }; BLOCKS], alloc: Mutex::default() }
    }

    /// The descriptor that one of its slots names, in use or not.
    pub(crate) fn desc(&self, id: SlotId) -> &PollDesc {
        let (block, offset) = place(id.slot / 4);
        &self.blocks[block].get().expect("what has a name exists")[offset]
    }

    pub(crate) fn slot(&self, id: SlotId) -> &Slot {
        &self.desc(id).slots[id.slot as usize % 4]
    }

    /// Takes a descriptor into use, and names it. `None`: the runtime is gone.
    pub(crate) fn alloc(&self, start: Start) -> Option<SlotId> {
        let mut alloc = self.alloc.lock();
        if alloc.shut {
            return None;
        }
        let index = alloc.free.pop().unwrap_or_else(|| {
            // No process has so many open files: the kernel's table of them has INT_MAX bytes at most, for 2^28.
            assert!(alloc.used < MAX_INDEX, "the netpoller has no descriptor left");
            alloc.used += 1;
            alloc.used - 1
        });
        let (block, offset) = place(index);
        let indices = || first(block as u32)..first(block as u32 + 1);
        let desc = &self.blocks[block].get_or_init(|| indices().map(PollDesc::new).collect())[offset];
        for (slot, start) in desc.slots.iter().zip([start, start, Start::Try]) {
            slot.open(start);
        }
        Some(desc.id())
    }

    /// Ends a generation. The caller has taken the descriptor out of the kernel's set, and nobody waits on it.
    pub(crate) fn free(&self, id: SlotId, timers: &Timers, list: &mut WakeList) {
        let desc = self.desc(id);
        let mut alloc = self.alloc.lock();
        // Under the lock, so that `shut_all` meets either this generation, still whole, or none.
        desc.slots.iter().for_each(|slot| slot.retire(list));
        desc.deadlines.iter().for_each(|deadline| deadline.retire(timers));
        alloc.free.push(id.slot / 4);
    }

    /// Refuses new descriptors and wakes whoever waits on the old ones.
    pub(crate) fn shut_all(&self, list: &mut WakeList) {
        let mut alloc = self.alloc.lock();
        alloc.shut = true;
        for desc in self.blocks.iter().filter_map(OnceLock::get).flatten() {
            desc.shut(desc.id().fdseq, Shut::Gone, list);
        }
    }
}

/// Which block an index lies in, and where in it.
const fn place(index: u32) -> (usize, usize) {
    let n = index / BLOCK + EQUALS;
    let doubled = (n / EQUALS).ilog2();
    let block = (doubled * EQUALS) + (n >> doubled) - EQUALS;
    (block as usize, (index - first(block)) as usize)
}

/// The first index of a block.
const fn first(block: u32) -> u32 {
    let (doubled, within) = (block / EQUALS, block % EQUALS);
    (((EQUALS + within) << doubled) - EQUALS) * BLOCK
}

#[cfg(all(test, not(gopark_loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_index_has_one_place() {
        let mut expected = (0, 0);
        for index in 0..100_000 {
            assert_eq!(place(index), expected);
            expected.1 += 1;
            if expected.1 == (BLOCK as usize) << (expected.0 / EQUALS as usize) {
                expected = (expected.0 + 1, 0);
            }
        }
        let (block, offset) = place(MAX_INDEX - 1);
        assert_eq!(first(block as u32) + offset as u32, MAX_INDEX - 1);
    }

    /// Traps P1 and P2: every bit of the name counts.
    #[test]
    fn a_name_survives_the_kernel() {
        for (slot, fdseq) in [(0, 0), (28, 1), (u32::MAX, u32::MAX), (4, 1 << 31)] {
            let id = SlotId { slot, fdseq };
            assert_eq!(SlotId::unpack(id.pack()), id);
        }
    }

    /// Traps P1, P11: an event for an earlier socket passes the descriptor's new owner by.
    #[test]
    fn reuse_and_late_edge() {
        let table = Table::new();
        let mut list = WakeList::default();
        let old = table.alloc(Start::Nil).unwrap();
        let address = std::ptr::from_ref(table.desc(old));
        table.free(old, &Timers::default(), &mut list);
        let new = table.alloc(Start::Nil).unwrap();
        assert_eq!(new.slot, old.slot);
        assert_ne!(new.fdseq, old.fdseq);
        let desc = table.desc(new);
        assert_eq!(std::ptr::from_ref(desc), address);
        desc.slot(Side::Read).edge(old.fdseq, true, &mut list);
        assert_eq!(desc.slot(Side::Read).ready(), Ok(false));
        desc.slot(Side::Read).edge(new.fdseq, true, &mut list);
        assert_eq!(desc.slot(Side::Read).ready(), Ok(true));
    }

    /// Trap P10: nothing is taken into use once everybody was woken.
    #[test]
    fn shut_then_alloc() {
        let table = Table::new();
        let mut list = WakeList::default();
        let id = table.alloc(Start::Try).unwrap();
        table.shut_all(&mut list);
        assert_eq!(table.slot(id).ready(), Err(Shut::Gone));
        assert_eq!(table.alloc(Start::Try), None);
        table.free(id, &Timers::default(), &mut list);
    }
}
