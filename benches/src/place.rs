//! Which CPUs the server and the client may use.

use crate::{Failure, sys};

#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Wherever the kernel puts them.
    Free,
    /// The server on one CPU, the client on another or on the same.
    Pinned { server: usize, client: usize },
}

impl Place {
    /// Both on one CPU.
    pub(crate) fn together() -> Result<Self, Failure> {
        match sys::affinity()?[..] {
            [cpu, ..] => Ok(Place::Pinned { server: cpu, client: cpu }),
            [] => Err(Failure::run("this process may use no CPU at all")),
        }
    }

    /// On the first two CPUs that this process may use.
    pub(crate) fn pinned() -> Result<Self, Failure> {
        match sys::affinity()?[..] {
            [server, client, ..] => Ok(Place::Pinned { server, client }),
            _ => Err(Failure::run("no pinned cells: this process may use one CPU only")),
        }
    }

    /// Runs `start` where the server belongs: a child inherits the CPUs of the thread that starts it.
    pub(crate) fn on_server_cpus<T>(&self, start: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Place::Free => start(),
            Place::Pinned { server, .. } => on_cpu(*server, start),
        }
    }

    pub(crate) fn on_client_cpus<T>(&self, load: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Place::Free => load(),
            Place::Pinned { client, .. } => on_cpu(*client, load),
        }
    }
}

fn on_cpu<T>(cpu: usize, run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let before = sys::affinity()?;
    sys::set_affinity(&[cpu])?;
    let result = run();
    sys::set_affinity(&before)?;
    result
}
