//! The command lines of the examples: `--name value` or `--name=value`, in any order, each at most once.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::process::exit;
use std::str::FromStr;

/// What is left of the command line. Whatever is wrong with it is said on stderr, and ends the program with status 2.
pub(crate) struct Args {
    rest: Vec<String>,
}

impl Args {
    /// Reads the command line; `--help` prints `help` and ends the program.
    pub(crate) fn read(help: &str) -> Args {
        let rest: Vec<_> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        if rest.iter().any(|arg| arg == "--help" || arg == "-h") {
            print!("{help}");
            exit(0);
        }
        Args { rest }
    }

    /// `--addr HOST:PORT`.
    pub(crate) fn addr(&mut self, default: &str) -> String {
        self.host_port("--addr", default)
    }

    /// `HOST:PORT`. The host may be a name; it is looked up later.
    pub(crate) fn host_port(&mut self, name: &str, default: &str) -> String {
        let addr = self.value(name).unwrap_or_else(|| default.to_owned());
        match addr.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => addr,
            _ => fail(format_args!("{name} wants HOST:PORT, such as {default}, not {addr:?}")),
        }
    }

    /// `--workers N`. Without it, the runtime decides.
    pub(crate) fn workers(&mut self) -> Option<usize> {
        self.number("--workers", 1..=4096)
    }

    /// A number within a range.
    pub(crate) fn number<T>(&mut self, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        let text = self.value(name)?;
        match text.parse() {
            Ok(n) if range.contains(&n) => Some(n),
            _ => fail(format_args!("{name} wants a number from {} to {}, not {text:?}", range.start(), range.end())),
        }
    }

    /// Nothing else may be there.
    pub(crate) fn end(self) {
        if let Some(arg) = self.rest.first() {
            fail(format_args!("{arg:?} is no argument, or one that was given before; --help says what there is"));
        }
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let is_it = |arg: &String| arg.strip_prefix(name).is_some_and(|tail| tail.is_empty() || tail.starts_with('='));
        let at = self.rest.iter().position(is_it)?;
        if let Some((_, value)) = self.rest.remove(at).split_once('=') {
            return Some(value.to_owned());
        }
        if at == self.rest.len() {
            fail(format_args!("{name} wants a value after it"));
        }
        Some(self.rest.remove(at))
    }
}

/// Says what is wrong, and ends the program with status 2.
pub(crate) fn fail(what: impl Display) -> ! {
    eprintln!("{what}");
    exit(2)
}
