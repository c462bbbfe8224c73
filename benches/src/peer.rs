//! The contestants, and their servers as child processes.

use crate::child::Proc;
use crate::gopark_peer::Gopark;
use crate::place::Place;
use crate::tokio_peer::Tokio;
use crate::{Failure, child, go, raw, raw_proxy, runtime};
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Peer {
    Raw,
    Tokio,
    Gopark,
    Go,
}

impl Peer {
    const ALL: [Peer; 4] = [Peer::Raw, Peer::Tokio, Peer::Gopark, Peer::Go];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Raw => "raw",
            Peer::Tokio => "tokio",
            Peer::Gopark => "gopark",
            Peer::Go => "go",
        }
    }
}

impl Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Peer {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Peer::ALL.into_iter().find(|peer| peer.name() == name).ok_or(())
    }
}

/// Several peers, as in `raw,tokio`.
pub(crate) struct Peers(pub(crate) Vec<Peer>);

impl Peers {
    pub(crate) const WANTS: &str = "some of raw, tokio, gopark and go, with commas between them";

    /// Those that can do more than serve.
    pub(crate) fn runtimes_only(self) -> Result<Vec<Peer>, Failure> {
        match self.0.contains(&Peer::Raw) {
            true => Err(Failure::usage("raw is a server and nothing else: it has no tasks")),
            false => Ok(self.0),
        }
    }

    /// With Go at the end where it is in PATH.
    pub(crate) fn and_go(mut self) -> Self {
        match go::in_path() {
            true => self.0.push(Peer::Go),
            false => eprintln!("go is not in PATH and takes no part"),
        }
        self
    }
}

impl FromStr for Peers {
    type Err = ();

    fn from_str(list: &str) -> Result<Self, ()> {
        let peers: Vec<Peer> = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
        match (1..peers.len()).any(|at| peers[..at].contains(&peers[at])) {
            true => Err(()),
            false => Ok(Peers(peers)),
        }
    }
}

/// `benches serve`: becomes an echo server, or a proxy to that target, until stdin closes.
pub(crate) fn serve(peer: Peer, addr: SocketAddr, target: Option<SocketAddr>, workers: usize) -> Result<(), Failure> {
    if peer == Peer::Go {
        return Err(Failure::usage("serve has raw, tokio and gopark; go's servers are in benches/peers"));
    }
    child::exit_with_stdin()?;
    let served = match peer {
        Peer::Tokio => runtime::serve::<Tokio>(addr, target, workers),
        Peer::Gopark => runtime::serve::<Gopark>(addr, target, workers),
        Peer::Raw | Peer::Go => match target {
            None => raw::serve(addr, workers),
            Some(target) => raw_proxy::serve(addr, target),
        },
    };
    served.map_err(|error| Failure::run(format!("{peer} at {addr}: {error}")))
}

/// One line of a comparison.
#[derive(Clone, Copy)]
pub(crate) struct Entrant {
    pub(crate) label: &'static str,
    peer: Peer,
}

/// The name of the second raw, which shows by how much equals differ.
pub(crate) const CONTROL: &str = "raw again";

/// All that take part, and what they need.
pub(crate) struct Lineup {
    pub(crate) entrants: Vec<Entrant>,
    go: Option<go::Program>,
    /// Where proxies lead; without it they are echo servers.
    target: Option<SocketAddr>,
}

impl Lineup {
    /// Echo servers. With a control, raw takes part twice.
    pub(crate) fn new(peers: &Peers, control: bool) -> Result<Self, Failure> {
        Lineup::of(peers, control, None)
    }

    /// Proxies, with a control.
    pub(crate) fn of_proxies(peers: &Peers, target: SocketAddr) -> Result<Self, Failure> {
        Lineup::of(peers, true, Some(target))
    }

    fn of(peers: &Peers, control: bool, target: Option<SocketAddr>) -> Result<Self, Failure> {
        let mut entrants = Vec::new();
        for &peer in &peers.0 {
            entrants.push(Entrant { label: peer.name(), peer });
            if peer == Peer::Raw && control {
                entrants.push(Entrant { label: CONTROL, peer });
            }
        }
        let source = if target.is_some() { go::PROXY } else { go::ECHO };
        let go = peers.0.contains(&Peer::Go).then(|| go::Program::build(source)).transpose()?;
        Ok(Lineup { entrants, go, target })
    }

    /// A fresh server process. raw is the yardstick and has one thread, however many workers the others have.
    pub(crate) fn start(&self, entrant: Entrant, workers: usize, place: &Place) -> Result<Server, Failure> {
        let workers = if entrant.peer == Peer::Raw { 1 } else { workers };
        let workers_text = workers.to_string();
        let target = self.target.map(|target| target.to_string());
        let mut args = vec!["serve", entrant.peer.name(), "--workers", &workers_text];
        args.extend(target.iter().flat_map(|target| ["--target", target]));
        let mut proc = place.on_server_cpus(|| match &self.go {
            Some(go) if entrant.peer == Peer::Go => Proc::start("go", go.command(workers).args(&target)),
            _ => Proc::start_self(&args),
        })?;
        let line = proc.line(START_LIMIT)?;
        match line.strip_prefix("listening on ").and_then(|addr| addr.parse().ok()) {
            Some(addr) => Ok(Server { proc, addr }),
            None => Err(Failure::run(format!("{} says {line:?} and not where it listens", entrant.label))),
        }
    }
}

pub(crate) struct Server {
    proc: Proc,
    addr: SocketAddr,
}

impl Server {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn pid(&self) -> i32 {
        self.proc.pid()
    }

    /// Closes its stdin and demands a clean end.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.proc.finish(END_LIMIT)
    }
}
