//! A histogram of nanoseconds in buckets that grow with the value, after HdrHistogram.

/// Each power of two is cut into this many buckets, so that a percentile is off by less than 1 %.
const CUTS: u64 = 128;
const CUT_BITS: u32 = CUTS.trailing_zeros();
const BUCKETS: usize = (64 - CUT_BITS as usize + 1) * CUTS as usize;

pub(crate) struct Hist {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Hist {
    pub(crate) fn new() -> Self {
        Hist { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.buckets[bucket_of(ns)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The value that `share` (0 to 1) of all values do not exceed; 0 where there are none.
    pub(crate) fn at(&self, share: f64) -> u64 {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return top_of(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < CUTS {
        return ns as usize;
    }
    let shift = ns.ilog2() - CUT_BITS;
    ((u64::from(shift) + 1) * CUTS + (ns >> shift) - CUTS) as usize
}

/// The largest value that falls into a bucket.
fn top_of(index: usize) -> u64 {
    let (row, cut) = (index as u64 / CUTS, index as u64 % CUTS);
    match row {
        0 => cut,
        _ => ((CUTS + cut) << (row - 1)) + ((1 << (row - 1)) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_close() {
        let mut last = 0;
        for ns in (0..100_000).chain([u64::MAX / 3, u64::MAX]) {
            let index = bucket_of(ns);
            assert!(index >= last && index < BUCKETS);
            assert!(top_of(index) >= ns && (top_of(index) - ns) as f64 <= ns as f64 / 100.0);
            last = index;
        }
    }

    #[test]
    fn percentiles() {
        let mut hist = Hist::new();
        assert_eq!(hist.at(0.99), 0);
        (1..=100).for_each(|ns| hist.record(ns));
        assert_eq!([hist.at(0.0), hist.at(0.5), hist.at(0.99), hist.at(1.0)], [1, 50, 99, 100]);
        hist.record(1_000_000);
        assert_eq!(hist.at(1.0), 1_000_000);
    }
}
