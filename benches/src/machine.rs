//! What the numbers were measured on, and who else was there.

use std::{fs, io};

/// One line: CPUs, kernel, and the load that was there already.
pub(crate) fn describe() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("CPUs of an unnamed model", |(_, model)| model);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("unknown");
    format!("{} x {model}, Linux {}, load average before: {load}", cpus(), read("/proc/sys/kernel/osrelease").trim())
}

/// How many CPUs there are, whether or not this process may use them.
pub(crate) fn cpus() -> usize {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let lines = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    lines.count().max(1)
}

/// The clock ticks that all CPUs together have spent since the machine started.
pub(crate) struct Ticks {
    all: u64,
    idle: u64,
}

impl Ticks {
    pub(crate) fn now() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        // cpu user nice system idle iowait irq softirq steal; what follows is counted in user and nice as well.
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        match ticks[..] {
            [_, _, _, idle, iowait, ..] => Ok(Ticks { all: ticks.iter().sum(), idle: idle + iowait }),
            _ => Err(io::Error::other("/proc/stat does not begin with the sum of all CPUs")),
        }
    }

    /// The share of all CPUs that was busy from an earlier moment to this one; 0 where no tick lies between.
    pub(crate) fn busy_since(&self, earlier: &Ticks) -> f64 {
        let all = (self.all - earlier.all).max(1) as f64;
        1.0 - (self.idle.saturating_sub(earlier.idle) as f64 / all).min(1.0)
    }
}
