//! What a handler does that it should not: it keeps its thread.

use crate::work;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A message that begins so asks for it.
pub(crate) const BLOCK: &[u8] = b"BLOCK";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    Sleep,
    Spin,
    Lock,
}

/// How, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stall {
    Sleep {
        ms: u64,
    },
    /// Computes, and looks at no clock.
    Spin {
        steps: u64,
    },
    /// Waits for a mutex that another thread holds.
    Lock {
        ms: u64,
    },
}

impl Stall {
    pub(crate) const WANTS: &str = "sleep:MILLISECONDS, lock:MILLISECONDS or spin:STEPS";

    pub(crate) fn new(how: How, length: Duration) -> Stall {
        let ms = length.as_millis() as u64;
        match how {
            How::Sleep => Stall::Sleep { ms },
            How::Spin => Stall::Spin { steps: work::steps_in(length) },
            How::Lock => Stall::Lock { ms },
        }
    }

    /// What a handler does before it echoes.
    #[inline]
    pub(crate) fn on_message(stall: Option<Stall>, message: &[u8]) {
        if let Some(stall) = stall.filter(|_| message.starts_with(BLOCK)) {
            stall.now();
        }
    }

    fn now(self) {
        match self {
            Stall::Sleep { ms } => thread::sleep(Duration::from_millis(ms)),
            Stall::Spin { steps } => work::compute(steps),
            Stall::Lock { ms } => {
                let (mutex, is_held) = (Mutex::new(()), Barrier::new(2));
                thread::scope(|scope| {
                    scope.spawn(|| {
                        let _guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
                        is_held.wait();
                        thread::sleep(Duration::from_millis(ms));
                    });
                    is_held.wait();
                    drop(mutex.lock());
                });
            }
        }
    }
}

impl Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            How::Sleep => "sleep",
            How::Spin => "spin",
            How::Lock => "lock",
        })
    }
}

impl FromStr for How {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [How::Sleep, How::Spin, How::Lock].into_iter().find(|how| how.to_string() == name).ok_or(())
    }
}

impl Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stall::Sleep { ms } => write!(f, "{}:{ms}", How::Sleep),
            Stall::Spin { steps } => write!(f, "{}:{steps}", How::Spin),
            Stall::Lock { ms } => write!(f, "{}:{ms}", How::Lock),
        }
    }
}

impl FromStr for Stall {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (how, much) = text.split_once(':').ok_or(())?;
        let much = much.parse().map_err(drop)?;
        Ok(match how.parse()? {
            How::Sleep => Stall::Sleep { ms: much },
            How::Spin => Stall::Spin { steps: much },
            How::Lock => Stall::Lock { ms: much },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn is_read_as_it_is_written() {
        for stall in [Stall::Sleep { ms: 1 }, Stall::Spin { steps: 2 }, Stall::Lock { ms: 3 }] {
            assert_eq!(stall.to_string().parse(), Ok(stall));
        }
        for wrong in ["sleep", "sleep:", "nap:1", "spin:-1"] {
            assert_eq!(wrong.parse::<Stall>(), Err(()));
        }
    }

    #[test]
    fn only_a_message_that_asks_for_it_takes_so_long() {
        let took = |stall, message| {
            let start = Instant::now();
            Stall::on_message(stall, message);
            start.elapsed()
        };
        let length = Duration::from_millis(50);
        for how in [How::Sleep, How::Lock] {
            assert!(took(Some(Stall::new(how, length)), b"BLOCK it") >= length);
        }
        let hour = Some(Stall::Sleep { ms: 3_600_000 });
        took(hour, b"a BLOCK");
        took(None, b"BLOCK");
    }
}
