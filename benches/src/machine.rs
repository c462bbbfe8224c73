//! What the numbers were measured on, and who else was there.

use crate::Failure;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
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
    format!("{} x {model}, Linux {}, load average before: {load}", cpus(), kernel())
}

pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

pub(crate) fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
}

/// The compiler's version: what `rustc` says now, and by all likelihood what this was built with.
pub(crate) fn rustc_version() -> Result<String, Failure> {
    let output = rustc().arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').nth(1).map(str::to_owned).ok_or_else(|| Failure::run(format!("rustc --version said {text:?}")))
}

/// Today as 2026-01-31, in UTC.
pub(crate) fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date_of(since.as_secs() / 86_400)
}

/// By the days since 1970, as in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
fn date_of(days: u64) -> String {
    // Years begin in March here, so that the leap day is a year's last one.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year_of_era + next)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_around_the_ends_of_years_and_the_leap_day() {
        let dates = [0, 364, 365, 789, 790, 11_016, 20_778].map(date_of);
        let as_date_says =
            ["1970-01-01", "1970-12-31", "1971-01-01", "1972-02-29", "1972-03-01", "2000-02-29", "2026-11-21"];
        assert_eq!(dates, as_date_says);
    }
}
