//! Pure computation, sized in steps and not by the clock: the same work wherever and whenever it runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// So many steps of computation that the compiler can neither skip nor join.
pub(crate) fn compute(steps: u64) {
    let mut x = black_box(88_172_645_463_325_252_u64);
    for _ in 0..steps {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
}

/// How many steps take that time: after the fastest of several measurements, in which nothing came between.
pub(crate) fn steps_in(time: Duration) -> u64 {
    const STEPS: u64 = 1_000_000;
    let fastest = (0..20)
        .map(|_| {
            let start = Instant::now();
            compute(STEPS);
            start.elapsed()
        })
        .min()
        .expect("twenty measurements");
    (STEPS as f64 * time.as_secs_f64() / fastest.as_secs_f64()) as u64
}
