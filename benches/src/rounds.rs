//! Rounds of child processes, one for each runtime, that find out some figures and print them in one line.

use crate::args::Args;
use crate::child::Proc;
use crate::contest::{self, Progress, Rows, Samples};
use crate::peer::{AGAIN, Peer, Peers};
use crate::stats::Spread;
use crate::{Failure, go};
use std::time::Duration;

const CHILD_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Rounds {
    count: usize,
    peers: Vec<Peer>,
}

/// What the children are given: `benches NAME PEER --workers N NUMBER...`, and the numbers alone to Go's program.
pub(crate) struct Job<'a> {
    pub(crate) name: &'a str,
    /// What people know it as.
    pub(crate) bench: &'a str,
    pub(crate) workers: usize,
    pub(crate) numbers: &'a [u64],
    pub(crate) go: &'a str,
}

/// The figures of all rounds, for each peer.
pub(crate) struct Figures<const N: usize>(Rows<[f64; N]>);

impl Rounds {
    pub(crate) const USUAL: usize = 5;

    /// `--rounds` and `--peers`.
    pub(crate) fn options(args: &mut Args, quick: bool) -> Result<Self, Failure> {
        let count = args.number("--rounds", 1..=1000)?.unwrap_or(if quick { 1 } else { Rounds::USUAL });
        let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
        Rounds::new(count, peers.unwrap_or_else(|| Peers(vec![Peer::Tokio, Peer::Smol, Peer::Gopark]).and_go()))
    }

    pub(crate) fn new(count: usize, peers: Peers) -> Result<Self, Failure> {
        Ok(Rounds { count, peers: peers.runtimes_only()? })
    }

    /// All of them, in rotating order. gopark takes part twice, so that the noise can be seen.
    pub(crate) fn run<const N: usize>(self, job: &Job<'_>) -> Result<Figures<N>, Failure> {
        let mut entrants = Vec::new();
        for peer in self.peers {
            entrants.push((peer, peer.name()));
            entrants.extend((peer == Peer::Gopark).then_some((peer, AGAIN)));
        }
        let go =
            entrants.iter().any(|entrant| entrant.0 == Peer::Go).then(|| go::Program::build(job.go)).transpose()?;
        let numbers: Vec<String> = job.numbers.iter().map(u64::to_string).collect();
        let turn = |index: usize| {
            let child = match (&go, entrants[index].0) {
                (Some(go), Peer::Go) => Proc::start("go", go.command(job.workers).args(&numbers)),
                (_, peer) => {
                    let workers = job.workers.to_string();
                    let mut args = vec![job.name, peer.name(), "--workers", &workers];
                    args.extend(numbers.iter().map(String::as_str));
                    Proc::start_self(&args)
                }
            }?;
            Ok((read(job.name, child)?, 0.0))
        };
        let labels: Vec<_> = entrants.iter().map(|entrant| entrant.1).collect();
        let mut progress = Progress::new(self.count * entrants.len());
        progress.enter(job.bench);
        let (rows, _) = contest::play_rounds(&labels, self.count, Duration::ZERO, &mut progress, turn)?;
        progress.pause();
        Ok(Figures(rows))
    }
}

fn read<const N: usize>(name: &str, mut child: Proc) -> Result<[f64; N], Failure> {
    let line = child.line(CHILD_LIMIT)?;
    child.finish(CHILD_LIMIT)?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| Failure::run(format!("a child of `benches {name}` said {line:?}")))
}

impl<const N: usize> Figures<N> {
    pub(crate) fn samples(&self, each: impl Fn(&[f64; N]) -> f64) -> Samples {
        contest::pick(&self.0, each)
    }

    /// A line for each peer: medians and quartiles under the headings, in columns of that width.
    pub(crate) fn print(&self, headings: [&str; N], width: usize, each: impl Fn(f64) -> String) {
        println!("  {:<14}{}", "", headings.map(|name| format!("{name:<width$}")).concat().trim_end());
        for (label, rounds) in &self.0 {
            let columns = std::array::from_fn::<_, N, _>(|column| {
                let spread = Spread::of(rounds.iter().map(|figures| figures[column])).expect("a round at least");
                format!("{:<width$}", spread.show(&each))
            });
            println!("  {label:<14}{}", columns.concat().trim_end());
        }
    }

    /// The other way round: a line for each figure, a column for each peer.
    pub(crate) fn print_rows(&self, names: [&str; N], width: usize, each: impl Fn(f64) -> String) {
        let peers: String = self.0.iter().map(|(label, _)| format!("{label:<width$}")).collect();
        println!("  {:<16}{}", "", peers.trim_end());
        for (row, name) in names.iter().enumerate() {
            let columns = self.0.iter().map(|(_, rounds)| {
                let spread = Spread::of(rounds.iter().map(|figures| figures[row])).expect("a round at least");
                format!("{:<width$}", spread.show(&each))
            });
            println!("  {name:<16}{}", columns.collect::<String>().trim_end());
        }
    }
}

/// In a child: its peer, its workers and its numbers, which are called so.
pub(crate) fn child_args<const N: usize>(mut args: Args, names: [&str; N]) -> Result<(Peer, usize, [u64; N]), Failure> {
    let peer = args.word("a peer")?.parse().map_err(|()| Failure::usage("no such peer"))?;
    let workers = args.workers()?;
    let mut numbers = [0; N];
    for (number, name) in numbers.iter_mut().zip(names) {
        *number = args.word(name)?.parse().map_err(|_| Failure::usage(name))?;
    }
    args.finish()?;
    Ok((peer, workers, numbers))
}

/// In a child: what it has found out.
pub(crate) fn tell<const N: usize>(figures: [impl ToString; N]) {
    println!("{}", figures.map(|figure| figure.to_string()).join(" "));
}
