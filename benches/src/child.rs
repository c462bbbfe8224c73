//! Child processes, none of which outlives this one: each is killed and reaped when its owner is dropped, or by the
//! signal thread when a signal ends this process; and should this process be killed hard, each ends by itself, as its
//! stdin closes.

use crate::Failure;
use crate::sys::{self, Epoll};
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What must not be left behind. A child's number is in here from its start to its reaping, both of which happen under
/// the lock, so that a number found here never belongs to a stranger.
struct Leftovers {
    pids: Vec<i32>,
    dirs: Vec<PathBuf>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers { pids: Vec::new(), dirs: Vec::new() });

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that cleans up when SIGINT, SIGTERM or SIGHUP arrives. To be called before any other thread
/// starts.
pub(crate) fn clean_up_on_signal() -> io::Result<()> {
    let signals = sys::EndSignals::block()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let signal = signals.wait();
        let left = leftovers();
        left.pids.iter().for_each(|&pid| sys::signal(pid, libc::SIGKILL));
        while sys::has_child() {
            thread::sleep(Duration::from_millis(1));
        }
        left.dirs.iter().for_each(|dir| drop(fs::remove_dir_all(dir)));
        std::process::exit(128 + signal);
    })?;
    Ok(())
}

/// Ends this process when its stdin closes, which it does at the latest when the process that holds the other end dies.
pub(crate) fn exit_with_stdin() -> io::Result<()> {
    thread::Builder::new().name("stdin".into()).spawn(|| {
        // An error is an end too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    })?;
    Ok(())
}

/// The same for who has one thread and is to have no other, since that would make its system calls dearer: stdin is among
/// what it waits for.
pub(crate) fn watch_stdin(epoll: &Epoll, token: u64) -> io::Result<()> {
    match epoll.add(&io::stdin(), sys::EPOLLIN, token) {
        // A file.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => exit_with_stdin(),
        result => result,
    }
}

/// That has news.
pub(crate) fn read_stdin() {
    // An error is an end too.
    if !matches!(io::stdin().read(&mut [0; 64]), Ok(1..)) {
        std::process::exit(0);
    }
}

pub(crate) struct Proc {
    name: String,
    child: Child,
    /// What came on stdout after the last line that was asked for.
    pending: Vec<u8>,
}

impl Proc {
    /// Starts a child with its stdin and stdout at hand; its stderr is ours.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut left = leftovers();
        let child = command.spawn().map_err(|error| Failure::run(format!("{name} does not start: {error}")))?;
        left.pids.push(child.id() as i32);
        Ok(Proc { name: name.to_owned(), child, pending: Vec::new() })
    }

    /// This same program with other arguments.
    pub(crate) fn start_self(args: &[&str]) -> Result<Self, Failure> {
        Proc::start(args.get(1).unwrap_or(&args[0]), Command::new("/proc/self/exe").args(args))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of the child's stdout.
    pub(crate) fn line(&mut self, limit: Duration) -> Result<String, Failure> {
        let until = Instant::now() + limit;
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line = self.pending.drain(..=end).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let stdout = self.child.stdout.as_mut().expect("stdout is a pipe");
            if !sys::readable_within(stdout.as_fd(), until.saturating_duration_since(Instant::now()))? {
                return Err(Failure::run(format!("{} said nothing for {limit:?}", self.name)));
            }
            let mut chunk = [0; 4096];
            match stdout.read(&mut chunk)? {
                0 => return Err(Failure::run(format!("{} ended before it said what it should", self.name))),
                n => self.pending.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Closes the child's stdin, waits for its end, and demands exit status 0.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<(), Failure> {
        drop(self.child.stdin.take());
        let until = Instant::now() + limit;
        loop {
            match self.reap()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(Failure::run(format!("{} ended badly: {status}", self.name))),
                None if Instant::now() >= until => {
                    return Err(Failure::run(format!("{} had to be killed: it did not end in {limit:?}", self.name)));
                }
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut left = leftovers();
        let status = self.child.try_wait()?;
        if status.is_some() {
            let pid = self.pid();
            left.pids.retain(|&other| other != pid);
        }
        Ok(status)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // `kill` does nothing to a child that was reaped.
        let _ = self.child.kill();
        while matches!(self.reap(), Ok(None)) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A directory that is gone when its owner is.
pub(crate) struct TempDir {
    path: PathBuf,
}

impl TempDir {
    pub(crate) fn new() -> io::Result<Self> {
        let mut left = leftovers();
        let mut attempt = 0;
        let path = loop {
            let path = std::env::temp_dir().join(format!("gopark-benches-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                // A process of the same number was killed hard and left its own.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                result => break result.map(|()| path)?,
            }
        };
        left.dirs.push(path.clone());
        Ok(TempDir { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let mut left = leftovers();
        let _ = fs::remove_dir_all(&self.path);
        left.dirs.retain(|dir| *dir != self.path);
    }
}
