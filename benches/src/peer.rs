//! The contestants, and their servers as child processes.

use crate::child::Proc;
use crate::gopark_peer::Gopark;
use crate::place::Place;
use crate::smol_peer::Smol;
use crate::stall::Stall;
use crate::tokio_peer::Tokio;
use crate::{Failure, child, go, may_peer, raw, raw_proxy, runtime};
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
    Smol,
    May,
    Gopark,
    Go,
}

impl Peer {
    const ALL: [Peer; 6] = [Peer::Raw, Peer::Tokio, Peer::Smol, Peer::May, Peer::Gopark, Peer::Go];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Raw => "raw",
            Peer::Tokio => "tokio",
            Peer::Smol => "smol",
            Peer::May => "may",
            Peer::Gopark => OURS,
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
    pub(crate) const WANTS: &str = "some of raw, tokio, smol, may, gopark and go, with commas between them";

    /// Those that can do more than serve.
    pub(crate) fn runtimes_only(self) -> Result<Vec<Peer>, Failure> {
        match self.0.iter().find(|peer| [Peer::Raw, Peer::May].contains(peer)) {
            Some(peer) => Err(Failure::usage(format!("{peer} is an echo server here and nothing else"))),
            None => Ok(self.0),
        }
    }

    /// Without some.
    pub(crate) fn without(&self, others: &[Peer]) -> Peers {
        Peers(self.0.iter().copied().filter(|peer| !others.contains(peer)).collect())
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

/// What a server is there for.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    /// Where a message may ask for it, its handler keeps its thread.
    Echo(Option<Stall>),
    Http,
    Proxy(SocketAddr),
}

/// `benches serve`: becomes a server until stdin closes.
pub(crate) fn serve(peer: Peer, addr: SocketAddr, service: Service, workers: usize) -> Result<(), Failure> {
    // raw sees to that itself, with the one thread that it has.
    if peer != Peer::Raw {
        child::exit_with_stdin()?;
    }
    let served = match (peer, service) {
        (Peer::Tokio, _) => runtime::serve::<Tokio>(addr, service, workers),
        (Peer::Smol, _) => runtime::serve::<Smol>(addr, service, workers),
        (Peer::Gopark, _) => runtime::serve::<Gopark>(addr, service, workers),
        (Peer::May, Service::Echo(stall)) => {
            may_peer::serve(addr, workers, move |stream| may_peer::echo(stream, stall))
        }
        (Peer::May, Service::Http) => may_peer::serve(addr, workers, may_peer::http),
        (Peer::Raw, Service::Echo(None)) => raw::serve(addr, workers, false),
        (Peer::Raw, Service::Http) => raw::serve(addr, workers, true),
        (Peer::Raw, Service::Proxy(target)) => raw_proxy::serve(addr, target),
        (Peer::Raw, Service::Echo(Some(_))) => return Err(Failure::usage("raw has one loop and no handlers to block")),
        (Peer::May, Service::Proxy(_)) => return Err(Failure::usage("may is an echo server here and no proxy")),
        (Peer::Go, _) => {
            return Err(Failure::usage(
                "serve has raw, tokio, smol, may and gopark; go's servers are in benches/peers",
            ));
        }
    };
    served.map_err(|error| Failure::run(format!("{peer} at {addr}: {error}")))
}

/// One line of a comparison.
#[derive(Clone, Copy)]
pub(crate) struct Entrant {
    pub(crate) label: &'static str,
    peer: Peer,
}

/// Whose figures the others are held against.
pub(crate) const OURS: &str = "gopark";

/// The name of the second raw, which shows by how much equals differ.
pub(crate) const CONTROL: &str = "raw again";

/// The name of the second gopark, which does the same.
pub(crate) const AGAIN: &str = "gopark again";

/// The name of the gopark that nobody blocks.
pub(crate) const UNTOLD: &str = "gopark, no BLOCK";

/// All that take part, and what they need.
pub(crate) struct Lineup {
    pub(crate) entrants: Vec<Entrant>,
    go: Option<go::Program>,
    service: Service,
}

impl Lineup {
    /// Echo servers. With a control, raw takes part twice.
    pub(crate) fn new(peers: &Peers, control: bool) -> Result<Self, Failure> {
        Lineup::of(peers, control.then_some((Peer::Raw, CONTROL)), Service::Echo(None))
    }

    /// Echo servers. gopark takes part twice.
    pub(crate) fn with_ours_again(peers: &Peers) -> Result<Self, Failure> {
        Lineup::of(peers, Some((Peer::Gopark, AGAIN)), Service::Echo(None))
    }

    /// HTTP servers, with a control.
    pub(crate) fn of_http(peers: &Peers) -> Result<Self, Failure> {
        Lineup::of(peers, Some((Peer::Raw, CONTROL)), Service::Http)
    }

    /// Proxies, with a control.
    pub(crate) fn of_proxies(peers: &Peers, target: SocketAddr) -> Result<Self, Failure> {
        match peers.0.contains(&Peer::May) {
            true => Err(Failure::usage("may is an echo server here and no proxy")),
            false => Lineup::of(peers, Some((Peer::Raw, CONTROL)), Service::Proxy(target)),
        }
    }

    /// Echo servers with handlers that block when told. gopark takes part a second time, as one that is not told.
    pub(crate) fn of_blockers(peers: &Peers, stall: Stall) -> Result<Self, Failure> {
        match peers.0.contains(&Peer::Raw) {
            true => Err(Failure::usage("raw has one loop and no handlers to block")),
            false => Lineup::of(peers, Some((Peer::Gopark, UNTOLD)), Service::Echo(Some(stall))),
        }
    }

    /// The control is who takes part twice, and his name the second time.
    fn of(peers: &Peers, control: Option<(Peer, &'static str)>, service: Service) -> Result<Self, Failure> {
        let mut entrants = Vec::new();
        for &peer in &peers.0 {
            entrants.push(Entrant { label: peer.name(), peer });
            entrants.extend(control.filter(|control| control.0 == peer).map(|(_, label)| Entrant { label, peer }));
        }
        let source = match service {
            Service::Echo(None) => go::ECHO,
            Service::Echo(Some(_)) => go::BLOCKING,
            Service::Http => go::HTTP,
            Service::Proxy(_) => go::PROXY,
        };
        let go = peers.0.contains(&Peer::Go).then(|| go::Program::build(source)).transpose()?;
        Ok(Lineup { entrants, go, service })
    }

    pub(crate) fn labels(&self) -> Vec<&'static str> {
        self.entrants.iter().map(|entrant| entrant.label).collect()
    }

    /// A fresh server process. raw is the yardstick and has one thread, however many workers the others have.
    pub(crate) fn start(&self, entrant: Entrant, workers: usize, place: &Place) -> Result<Server, Failure> {
        let workers = if entrant.peer == Peer::Raw { 1 } else { workers };
        let workers_text = workers.to_string();
        let special = match self.service {
            Service::Echo(None) => None,
            Service::Echo(Some(stall)) => Some(format!("--stall={stall}")),
            Service::Http => Some("--http".to_owned()),
            Service::Proxy(target) => Some(format!("--target={target}")),
        };
        let mut args = vec!["serve", entrant.peer.name(), "--workers", &workers_text];
        args.extend(special.as_deref());
        let mut proc = place.on_server_cpus(|| match &self.go {
            Some(go) if entrant.peer == Peer::Go => {
                Proc::start("go", go.command(workers).args(special.iter().filter_map(|text| text.split('=').nth(1))))
            }
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
