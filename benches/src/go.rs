//! Go's peers, built from the sources in benches/peers where a Go toolchain is in PATH.

use crate::Failure;
use crate::child::{Proc, TempDir};
use std::fs;
use std::process::Command;
use std::time::Duration;

const BUILD_LIMIT: Duration = Duration::from_secs(300);

pub(crate) const ECHO: &str = include_str!("../peers/echo.go");
pub(crate) const BLOCKING: &str = include_str!("../peers/blocking.go");
pub(crate) const DEADLINES: &str = include_str!("../peers/deadlines.go");
pub(crate) const HTTP: &str = include_str!("../peers/http.go");
pub(crate) const MICRO: &str = include_str!("../peers/micro.go");
pub(crate) const PROXY: &str = include_str!("../peers/proxy.go");
pub(crate) const SLEEPERS: &str = include_str!("../peers/sleepers.go");

/// A program built into a directory of its own, which goes when this does.
pub(crate) struct Program {
    dir: TempDir,
}

pub(crate) fn in_path() -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("go").is_file()))
}

impl Program {
    pub(crate) fn build(source: &str) -> Result<Self, Failure> {
        if !in_path() {
            return Err(Failure::run("go is not in PATH"));
        }
        let dir = TempDir::new()?;
        fs::write(dir.path().join("peer.go"), source)?;
        let mut command = Command::new("go");
        command.current_dir(dir.path()).args(["build", "-o", "peer", "peer.go"]);
        Proc::start("go build", &mut command)?.finish(BUILD_LIMIT)?;
        Ok(Program { dir })
    }

    /// The program with as many Ps as the others have workers.
    pub(crate) fn command(&self, workers: usize) -> Command {
        let mut command = Command::new(self.dir.path().join("peer"));
        command.env("GOMAXPROCS", workers.to_string());
        command
    }
}
