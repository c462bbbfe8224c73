//! What the load client sends, and what it wants back. To an echo server, bytes that depend on the connection and on the
//! place in its stream, so that an echo that is lost, doubled, swapped or crossed shows; else one text over and over.

/// A prime, so that no message length divides it.
const PERIOD: usize = 65_521;

/// The most bytes that can be had in one piece.
pub(crate) const PIECE: usize = 65_536;

pub(crate) struct Pattern {
    bytes: Vec<u8>,
    /// After so many bytes it begins again.
    period: usize,
    /// By how much it is ahead in each further connection.
    shift: u64,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        let mut bytes: Vec<u8> = (0..PERIOD as u64).map(|place| mix(place) as u8).collect();
        bytes.extend_from_within(..);
        bytes.extend_from_within(..PIECE - PERIOD);
        Pattern { bytes, period: PERIOD, shift: 7919 }
    }

    /// The same text again and again.
    pub(crate) fn of(text: &[u8]) -> Self {
        Pattern { bytes: text.repeat(PIECE / text.len() + 2), period: text.len(), shift: 0 }
    }

    /// The `len` bytes (at most PIECE) that stand at `offset` of a connection's stream.
    pub(crate) fn piece(&self, conn: usize, offset: u64, len: usize) -> &[u8] {
        let start = (conn as u64 * self.shift + offset) as usize % self.period;
        &self.bytes[start..start + len]
    }
}

/// SplitMix64: a number that looks random for each one given.
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_up_and_differ_between_connections() {
        let pattern = Pattern::new();
        let whole = pattern.piece(3, 0, PIECE).to_vec();
        assert_eq!(whole[64..192], [pattern.piece(3, 64, 64), pattern.piece(3, 128, 64)].concat());
        assert_eq!(pattern.piece(0, PERIOD as u64 - 1, PIECE).len(), PIECE);
        assert_ne!(pattern.piece(3, 0, 64), pattern.piece(4, 0, 64));
        assert_ne!(pattern.piece(3, 0, 64), pattern.piece(3, 64, 64));
    }

    #[test]
    fn asks_nobody_to_block() {
        let pattern = Pattern::new();
        let block = crate::stall::BLOCK;
        assert!(pattern.bytes.windows(block.len()).all(|bytes| bytes != block));
    }
}
