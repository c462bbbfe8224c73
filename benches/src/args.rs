//! Command lines: options may stand in any order, each at most once, as `--name value` or `--name=value`.

use crate::{Failure, sys};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Open files that are no connections.
const SPARE_FILES: u64 = 64;

/// What is left of a command line.
pub(crate) struct Args {
    rest: Vec<String>,
}

impl Args {
    pub(crate) fn new(rest: Vec<String>) -> Self {
        Args { rest }
    }

    /// Takes the first argument, which must be no option.
    pub(crate) fn word(&mut self, wants: &str) -> Result<String, Failure> {
        match self.rest.first() {
            Some(word) if !word.starts_with('-') => Ok(self.rest.remove(0)),
            Some(option) => Err(Failure::usage(format!("{wants} must come before {option}"))),
            None => Err(Failure::usage(format!("{wants} is missing"))),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        match self.rest.iter().position(|arg| arg == name) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        for at in 0..self.rest.len() {
            if self.rest[at] == name {
                if at + 1 == self.rest.len() {
                    return Err(Failure::usage(format!("{name} wants a value")));
                }
                self.rest.remove(at);
                return Ok(Some(self.rest.remove(at)));
            }
            if let Some(value) = self.rest[at].strip_prefix(name).and_then(|tail| tail.strip_prefix('=')) {
                let value = value.to_owned();
                self.rest.remove(at);
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// A value of any type that can be read from text; `wants` says in words what it should be.
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &str, wants: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let value = text.parse().map_err(|_| Failure::usage(format!("{name} wants {wants}, not {text:?}")))?;
        Ok(Some(value))
    }

    /// A number within a range; anything else is refused with the range in the message.
    pub(crate) fn number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd + Display + Copy,
    {
        let wants = format!("a number from {} to {}", range.start(), range.end());
        match self.parsed::<T>(name, &wants)? {
            Some(n) if !range.contains(&n) => Err(Failure::usage(format!("{name} wants {wants}, not {n}"))),
            other => Ok(other),
        }
    }

    /// Whether help is the first thing asked for.
    pub(crate) fn asks_for_help_first(&self) -> bool {
        self.rest.first().is_some_and(|arg| ["--help", "-h", "help"].contains(&&arg[..]))
    }

    /// `--conns`, which must fit in the limit of open files.
    pub(crate) fn connections(&mut self) -> Result<usize, Failure> {
        let most = sys::raise_nofile_limit()?.saturating_sub(SPARE_FILES).clamp(1, 1 << 20);
        Ok(self.number("--conns", 1..=most as usize)?.unwrap_or(64))
    }

    /// `--rate`, messages per second and connection.
    pub(crate) fn rate(&mut self) -> Result<Option<f64>, Failure> {
        self.number("--rate", 1.0..=1e6)
    }

    /// `--patience`, in seconds, for each cell.
    pub(crate) fn patience(&mut self) -> Result<Duration, Failure> {
        Ok(Duration::from_secs(self.number("--patience", 0..=86_400)?.unwrap_or(0)))
    }

    pub(crate) fn workers(&mut self) -> Result<usize, Failure> {
        Ok(self.number("--workers", 1..=256)?.unwrap_or(2))
    }

    /// Whatever nobody took is a mistake.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.rest.first() {
            None => Ok(()),
            Some(arg) => Err(Failure::usage(format!("unexpected argument {arg:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn options_in_any_order_and_spelling() {
        let mut args = args("raw --secs=0.5 --quick --conns 64");
        assert_eq!(args.word("a peer").unwrap(), "raw");
        assert_eq!(args.number("--conns", 1..=100).unwrap(), Some(64));
        assert_eq!(args.number("--secs", 0.1..=9.0).unwrap(), Some(0.5));
        assert!(args.flag("--quick") && !args.flag("--quick"));
        args.finish().unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        let message = |failure: Failure| failure.to_string();
        assert_eq!(message(args("--conns").number("--conns", 1..=9).unwrap_err()), "--conns wants a value");
        assert_eq!(
            message(args("--conns 10").number("--conns", 1..=9).unwrap_err()),
            "--conns wants a number from 1 to 9, not 10"
        );
        assert_eq!(
            message(args("--secs NaN").number("--secs", 0.1..=9.0).unwrap_err()),
            "--secs wants a number from 0.1 to 9, not NaN"
        );
        assert_eq!(message(args("--wat").finish().unwrap_err()), "unexpected argument \"--wat\"");
        let mut twice = args("--quick --quick");
        assert!(twice.flag("--quick"));
        assert!(twice.finish().is_err());
    }
}
