//! `benches duel`: gopark beside its peers in all that it has an aim for, and how far it is from each.

use crate::args::Args;
use crate::cells::{self, Cell};
use crate::contest::{self, Load, Metric, Outcome, Progress, Rows, Samples};
use crate::drawing;
use crate::figures::{self, Aim, Kind, Row, Unit};
use crate::json::Json;
use crate::peer::{Lineup, Peer, Peers};
use crate::place::Place;
use crate::rounds::Rounds;
use crate::{Failure, light, machine, micro, sleepers, spread, stats, syscalls, together};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const HELP: &str = "\
benches duel [--quick] [--rounds K] [--secs S] [--only CELL|PART,..] [--peers A,..] [--patience S] [--json FILE]
             [--svg FILE] [--markdown FILE]

gopark beside its peers in all that it has an aim for. First the cells: echo servers under full load, where each connection
sends its next message when the last one is back; and HTTP servers, where a message is one request, or 16 at once. Per
cell, K rounds (9); per round, each peer once for S seconds (1), from a fresh process, in rotating order. Then the parts,
each of which is a bench of its own and says more (`benches PART --help`), with as many rounds as there unless --rounds
says how many. Last a table: medians, a ratio to a peer with its quartiles for each aim, and whether gopark reaches it. An
aim in nanoseconds means something on the machine that it was set on only; beside it stands its ratio to tokio's figure
there. All of it takes some twenty minutes.

  --only ..         some cells, by name or by the start of it: 2w/1 2w/64 2w/512 2w/4000 2w/64x16k 2w/http1 2w/http16
                    and the same with 1p/
                    2w: two workers, nobody pinned. 1p: one worker, server pinned to one CPU and client to another
                    and some parts: together light syscalls spread micro sleepers
  --peers A,..      some of raw, tokio, smol, may, gopark and go; raw,tokio,smol,gopark by default, and go where it is in
                    PATH; each takes part in what it can do
  --patience S      repeats rounds in which other processes took over 15 % of the CPUs, up to S seconds (0) per cell
  --json FILE       all samples, and docs/performance.json unless --quick, --only or --peers is given
  --svg FILE        the table as a drawing, and docs/performance.svg likewise
  --markdown FILE   tables of all cells
  --quick           one short round of each; says only that every byte was echoed and that all can be counted

raw is a bare epoll loop with one thread, in the 2w cells too. It takes part twice, and `raw again/raw` shows the noise:
what differs by no more than that does not differ. Where there is no raw, gopark is its own control. Ratios are formed
within one round; shown are medians and, in parentheses, quartiles. What other processes took of the CPUs is shown too:
where it is more than a few percent, the figures are worth little.

What it does not measure: a network (all is loopback, where sender and receiver share the kernel's work), connecting and
closing, more than two workers, memory, fairness between connections, servers that do anything but echo, or parse more of
HTTP than where a head ends. The client is one thread and in the way: of throughput where it takes longer per message than
the server, and of latency always, as a message waits for its turn in the client too, and as a closed loop sends less to a
slow server.
";

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Together,
    Light,
    Syscalls,
    Spread,
    Micro,
    Sleepers,
}

impl Part {
    const ALL: [Part; 6] = [Part::Together, Part::Light, Part::Syscalls, Part::Spread, Part::Micro, Part::Sleepers];

    fn name(self) -> &'static str {
        match self {
            Part::Together => "together",
            Part::Light => "light",
            Part::Syscalls => "syscalls",
            Part::Spread => "spread",
            Part::Micro => "micro",
            Part::Sleepers => "sleepers",
        }
    }

    /// Those who can take part.
    fn of(self, peers: &Peers) -> Peers {
        match self {
            Part::Together | Part::Light | Part::Syscalls => peers.without(&[]),
            Part::Spread => peers.without(&[Peer::Raw, Peer::May, Peer::Go]),
            Part::Micro | Part::Sleepers => peers.without(&[Peer::Raw, Peer::May]),
        }
    }
}

fn select(only: Option<&str>) -> Result<(Vec<Cell>, Vec<Part>), Failure> {
    let Some(only) = only else { return Ok((Cell::all().collect(), Part::ALL.to_vec())) };
    let (mut cells, mut parts) = (Vec::new(), Vec::new());
    for wanted in only.split(',') {
        if let Some(part) = Part::ALL.into_iter().find(|part| part.name() == wanted) {
            parts.push(part);
            continue;
        }
        let exact = Cell::all().any(|cell| cell.name() == wanted);
        let fits = |name: &str| if exact { name == wanted } else { name.starts_with(wanted) };
        let before = cells.len();
        cells.extend(Cell::all().filter(|cell| fits(&cell.name())));
        if cells.len() == before {
            let cells = Cell::all().map(|cell| cell.name());
            let names: Vec<String> = cells.chain(Part::ALL.map(|part| part.name().to_owned())).collect();
            return Err(Failure::usage(format!("--only wants some of {}, not {wanted:?}", names.join(" "))));
        }
    }
    Ok((cells, parts))
}

/// What the command line says of all parts.
struct Plan {
    quick: bool,
    rounds: Option<usize>,
    secs: f64,
    patience: Duration,
}

impl Plan {
    fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { usual })
    }
}

/// All that was measured.
#[derive(Default)]
struct Found {
    cells: Vec<(Cell, Outcome)>,
    together: Vec<(usize, Rows<together::Cost>)>,
    light: Vec<light::Cell>,
    syscalls: Option<syscalls::Figures>,
    spread: Option<spread::Figures>,
    micro: Option<micro::Figures>,
    sleepers: Option<(sleepers::Figures, u64)>,
}

pub(crate) fn main(mut args: Args) -> Result<(), Failure> {
    let quick = args.flag("--quick");
    let rounds = args.number("--rounds", 1..=1000)?;
    let secs = args.number("--secs", 0.01..=3600.0)?.unwrap_or(if quick { 0.15 } else { 1.0 });
    let plan = Plan { quick, rounds, secs, patience: args.patience()? };
    let only = args.text("--only")?;
    let peers = args.parsed::<Peers>("--peers", Peers::WANTS)?;
    let whole = !quick && only.is_none() && peers.is_none();
    let mut output = |name, default: &str| {
        let usual = || whole.then(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(default));
        args.text(name).map(|given| given.map(PathBuf::from).or_else(usual))
    };
    let (json, svg) = (output("--json", "performance.json")?, output("--svg", "performance.svg")?);
    let markdown = args.text("--markdown")?.map(PathBuf::from);
    args.finish()?;
    let (mut cells, mut parts) = select(only.as_deref())?;
    // Better to be told now than after twenty minutes.
    for path in [&json, &svg, &markdown].into_iter().flatten() {
        fs::OpenOptions::new().append(true).create(true).open(path).map_err(|error| unwritten(path, &error))?;
    }

    if let Err(why) = Place::pinned() {
        cells.retain(|cell| !cell.pinned);
        parts.retain(|&part| part != Part::Together);
        if cells.is_empty() && parts.is_empty() {
            return Err(why);
        }
        eprintln!("{why}");
    }
    let peers = peers.unwrap_or_else(|| Peers(vec![Peer::Raw, Peer::Tokio, Peer::Smol, Peer::Gopark]).and_go());
    let machine = machine::describe();
    let mut found = Found::default();
    let (lineup, of_http) = (Lineup::new(&peers, true)?, Lineup::of_http(&peers)?);
    play_cells(cells, (&lineup, &of_http), &plan, &mut found)?;
    for part in parts {
        let peers = part.of(&peers);
        if !peers.0.is_empty() {
            play_part(part, peers, &plan, &mut found)?;
        }
    }
    let rows = rows(&found);
    let others = found.others();
    println!("{machine}\n{others}\n\n{}", figures::summary(&rows));

    let write = |path: &Path, text: String| fs::write(path, text).map_err(|error| unwritten(path, &error));
    if let Some(path) = json {
        write(&path, format!("{}\n", as_json(&machine, &plan, &rows, &found)))?;
        eprintln!("all figures are in {}", path.display());
    }
    if let Some(path) = svg {
        write(&path, drawing::svg(&rows, &[&format!("{}: {machine}", machine::date()), &others]))?;
        eprintln!("the drawing is in {}", path.display());
    }
    if let Some(path) = markdown {
        let tables = Metric::ALL.map(|metric| cells::table(metric, &lineup, &found.cells)).join("\n");
        let head = format!("{machine}; {} rounds of {secs} s each; medians (and quartiles).", plan.rounds(9));
        write(&path, format!("{head} {others}.\n\n{tables}"))?;
    }
    Ok(())
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::run(format!("{}: {error}", path.display()))
}

fn play_cells(
    cells: Vec<Cell>,
    (echo, http): (&Lineup, &Lineup),
    plan: &Plan,
    found: &mut Found,
) -> Result<(), Failure> {
    let rounds = plan.rounds(9);
    let mut progress = Progress::new(cells.len() * rounds * echo.entrants.len());
    for cell in cells {
        progress.enter(&cell.name());
        let setting = cell.setting(rounds, plan.secs, plan.patience)?;
        let outcome = contest::play(if cell.is_http() { http } else { echo }, &setting, &mut progress)?;
        progress.pause();
        println!("{}: {}\n{}", cell.name(), cell.title(), outcome.show());
        found.cells.push((cell, outcome));
    }
    if !found.cells.is_empty() {
        println!("{}", cells::table(Metric::Throughput, echo, &found.cells));
    }
    Ok(())
}

fn play_part(part: Part, peers: Peers, plan: &Plan, found: &mut Found) -> Result<(), Failure> {
    const WORKERS: usize = 2;
    match part {
        Part::Together => {
            for conns in [1, 64] {
                let load = Load::full(conns, 64, plan.secs.min(together::SECS));
                let samples = together::measure(&peers, &load, plan.rounds(together::ROUNDS))?;
                together::print(&load, &samples);
                found.together.push((conns, samples));
            }
        }
        Part::Light => {
            let &Plan { secs, patience, .. } = plan;
            let rounds = plan.rounds(light::ROUNDS);
            let plan = light::Plan { rounds, secs, conns: 64, rate: 100.0, workers: WORKERS, patience };
            found.light = light::measure(&peers, &plan)?;
            found.light.iter().for_each(light::Cell::print);
        }
        Part::Syscalls => {
            let figures = syscalls::measure(&peers, WORKERS, plan.rounds(syscalls::ROUNDS), plan.secs, None)?;
            figures.print();
            found.syscalls = Some(figures);
        }
        Part::Spread => {
            let figures = spread::measure(peers, plan.rounds(spread::ROUNDS))?;
            spread::print(&figures);
            found.spread = Some(figures);
        }
        Part::Micro => {
            let figures = micro::measure(Rounds::new(plan.rounds(Rounds::USUAL), peers)?, WORKERS, plan.quick)?;
            micro::print(&figures, WORKERS);
            found.micro = Some(figures);
        }
        Part::Sleepers => {
            let count = sleepers::some(plan.quick);
            let rounds = Rounds::new(plan.rounds(Rounds::USUAL), peers)?;
            let figures = sleepers::measure(rounds, WORKERS, count, plan.quick)?;
            sleepers::print(&figures, WORKERS, count);
            found.sleepers = Some((figures, count));
        }
    }
    println!();
    Ok(())
}

impl Found {
    /// What the machine did besides, where that was most.
    fn others(&self) -> String {
        let outcomes = self.cells.iter().map(|cell| &cell.1).chain(self.light.iter().map(|cell| &cell.outcome));
        let shares = outcomes.filter_map(Outcome::others).map(|share| share.median);
        let most = shares.max_by(f64::total_cmp).map_or("an unknown share".to_owned(), stats::percent);
        format!("Other processes took {most} of the CPUs in the worst cell")
    }
}

/// What there is an aim for. The aims in nanoseconds are for the machine that docs/performance.md speaks of.
fn rows(found: &Found) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |kind, name, unit, aims, samples: Option<Samples>| {
        rows.extend(samples.map(|samples| Row { kind, name, unit, aims, samples }));
    };
    let (nanos, per_second) = (Unit::Nanos, Unit::PerSecond);

    let together = |conns, each: fn(&together::Cost) -> f64| {
        found.together.iter().find(|(of, _)| *of == conns).map(|(_, costs)| contest::pick(costs, each))
    };
    let kind = Kind::Together;
    // What a monitor thread takes is in the first, and not in the second.
    let aims = &[Aim::Of(0.97, "tokio"), Aim::Of(1.0, "raw")];
    row(kind, "echo, 64 connections of 64 B, 1 worker", nanos, aims, together(64, |cost| cost.all));
    row(kind, "the same, the busiest thread alone", nanos, aims, together(64, together::Cost::busiest));
    let rates = together(1, |cost| 1e9 / cost.all);
    row(kind, "1 connection, round trips per CPU second", per_second, &[Aim::Best], rates);

    let cell = |name: &str, metric| {
        found.cells.iter().find(|(cell, _)| cell.name() == name).map(|(_, outcome)| outcome.samples(metric))
    };
    let throughput = |name| cell(name, Metric::Throughput);
    let kind = Kind::Throughput;
    row(kind, "echo, 64 x 64 B, 2 workers", per_second, &[Aim::Of(1.12, "tokio")], throughput("2w/64"));
    row(kind, "echo, 64 x 16 KiB, 2 workers", per_second, &[Aim::Of(1.1, "tokio")], throughput("2w/64x16k"));
    row(kind, "HTTP, 64 connections, 2 workers", per_second, &[Aim::Of(1.05, "tokio")], throughput("2w/http1"));
    row(kind, "HTTP, 16 requests at once, 2 workers", per_second, &[Aim::Of(1.05, "tokio")], throughput("2w/http16"));
    row(kind, "HTTP, 16 requests at once, pinned", per_second, &[Aim::Of(0.95, "raw")], throughput("1p/http16"));

    let p99 = |name| cell(name, Metric::P99);
    row(Kind::P99, "echo, 512 connections, pinned", nanos, &[Aim::Of(1.1, "raw")], p99("1p/512"));
    row(Kind::P99, "echo, 4,000 connections, pinned", nanos, &[Aim::Of(1.1, "raw")], p99("1p/4000"));

    let light = |name| found.light.iter().find(|cell| cell.name == name).map(|cell| cell.outcome.samples(Metric::Cpu));
    row(Kind::Light, "64 x 100 messages/s, 2 workers, not pinned", nanos, &[Aim::Of(1.1, "raw")], light("free"));
    row(Kind::Light, "the same, all on one CPU", nanos, &[Aim::Of(1.1, "raw")], light("together"));
    row(Kind::Light, "the same, 1 worker, pinned apart", nanos, &[Aim::Of(1.1, "raw")], light("apart"));

    let calls = found.syscalls.as_ref().map(|figures| figures.all(64));
    row(Kind::Syscalls, "echo, 64 connections, 2 workers", Unit::Calls, &[Aim::Value(2.10)], calls);
    let faster = found.spread.as_ref().map(spread::faster);
    row(Kind::Spread, "1,000 tasks of 20 us, times faster", Unit::Times, &[Aim::Value(1.8)], faster);

    // Nanoseconds as they were set, on a faster machine, and the same as ratios to what tokio had there.
    let micro = |name| found.micro.as_ref().map(|figures| micro::row(figures, name));
    row(Kind::Micro, "spawn, from inside", nanos, &[Aim::Value(180.0), Aim::Of(0.47, "tokio")], micro("spawn inside"));
    row(
        Kind::Micro,
        "spawn, from outside",
        nanos,
        &[Aim::Value(170.0), Aim::Of(0.49, "tokio")],
        micro("spawn outside"),
    );
    row(Kind::Micro, "yield", nanos, &[Aim::Value(19.0), Aim::Of(0.90, "tokio")], micro("yield"));
    row(
        Kind::Micro,
        "pair of tasks, by oneshot",
        nanos,
        &[Aim::Value(400.0), Aim::Of(0.83, "tokio")],
        micro("oneshot pairs"),
    );
    row(Kind::Micro, "message through a channel", nanos, &[Aim::Value(80.0), Aim::Of(0.90, "tokio")], micro("channel"));
    row(Kind::Micro, "chained spawn", nanos, &[Aim::Value(110.0), Aim::Of(0.64, "tokio")], micro("chained spawn"));
    row(
        Kind::Micro,
        "1,000 wakes, from inside",
        nanos,
        &[Aim::Value(50.0), Aim::Of(0.83, "tokio")],
        micro("storm inside"),
    );
    row(
        Kind::Micro,
        "1,000 wakes, from outside",
        nanos,
        &[Aim::Value(75.0), Aim::Of(0.86, "tokio")],
        micro("storm outside"),
    );
    row(Kind::Micro, "sleep, beyond the clock's reading", nanos, &[Aim::Value(17.0)], micro("sleep"));
    row(
        Kind::Micro,
        "sleep, a million alive",
        nanos,
        &[Aim::Value(120.0), Aim::Of(0.61, "tokio")],
        micro("million sleeps"),
    );

    let sleepers = |name| found.sleepers.as_ref().map(|(figures, _)| sleepers::column(figures, name));
    let each = sleepers("CPU time").zip(found.sleepers.as_ref()).map(|(mut samples, (_, count))| {
        samples.iter_mut().flat_map(|row| &mut row.1).for_each(|time| *time /= *count as f64);
        samples
    });
    row(
        Kind::Sleepers,
        "sleeps up to 100 ms: CPU time each",
        nanos,
        &[Aim::Value(1.5e3), Aim::Of(0.84, "tokio")],
        each,
    );
    row(
        Kind::Sleepers,
        "sleeps up to 100 ms: late, p50",
        nanos,
        &[Aim::Value(0.1e6), Aim::Of(0.07, "tokio")],
        sleepers("late, p50"),
    );
    row(
        Kind::Sleepers,
        "sleeps up to 100 ms: late, p99",
        nanos,
        &[Aim::Value(8e6), Aim::Of(0.80, "tokio")],
        sleepers("late, p99"),
    );
    rows
}

fn as_json(machine: &str, plan: &Plan, rows: &[Row], found: &Found) -> Json {
    let cells = found.cells.iter();
    let cells = cells.map(|(cell, outcome)| Json::map([("cell", Json::text(cell.name())), ("peers", outcome.json())]));
    Json::map([
        ("machine", Json::text(machine)),
        ("kernel", Json::text(machine::kernel())),
        ("rustc", Json::text(machine::rustc_version().unwrap_or_else(|_| "unknown".into()))),
        ("date", Json::text(machine::date())),
        ("rounds", Json::Int(plan.rounds(9) as u64)),
        ("secs", Json::Num(plan.secs)),
        ("others", Json::text(found.others())),
        ("rows", figures::json(rows)),
        ("cells", Json::lines(cells)),
        ("light", Json::lines(found.light.iter().map(light::Cell::json))),
    ])
}
