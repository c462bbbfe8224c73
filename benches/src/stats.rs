//! Medians, and how far the rounds lie apart.

use crate::json::Json;

/// The median of some rounds and the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// None where there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        // Between two values in proportion.
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Spread { median: at(0.5), low: at(0.25), high: at(0.75) })
    }

    /// `median (low..high)`, each written by `each`; the median alone where there is nothing else.
    pub(crate) fn show(&self, each: impl Fn(f64) -> String) -> String {
        match self.low == self.high {
            true => each(self.median),
            false => format!("{} ({}..{})", each(self.median), each(self.low), each(self.high)),
        }
    }

    pub(crate) fn json(self) -> Json {
        let [median, low, high] = [self.median, self.low, self.high].map(|value| Json::Num(rounded(value)));
        Json::map([("median", median), ("low", low), ("high", high)])
    }
}

/// The spread of some values, and all of them.
pub(crate) fn samples_json(values: impl Iterator<Item = f64> + Clone) -> Json {
    let samples = Json::list(values.clone().map(|value| Json::Num(rounded(value))));
    let mut entries = vec![("samples".to_owned(), samples)];
    if let Some(Json::Map(spread)) = Spread::of(values).map(Spread::json) {
        entries.splice(0..0, spread);
    }
    Json::Map(entries)
}

/// To five digits: no measurement here has more.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Within which bounds the median of all possible values lies, with a certainty of 95 % at least, if these are some at
/// random: the binomial distribution says so, whatever theirs is. None where there are fewer than six.
pub(crate) fn median_within(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    // How likely it is that so many values, and no more, lie below the median.
    let mut exactly = 0.5_f64.powi(n.try_into().ok()?);
    let (mut at_most, mut cut) = (exactly, 0);
    while at_most <= 0.025 {
        exactly *= (n - cut) as f64 / (cut + 1) as f64;
        at_most += exactly;
        cut += 1;
    }
    (cut > 0).then(|| (values[cut - 1], values[n - cut]))
}

/// None where there are no values.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// Whole numbers with a comma after each three digits.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Nanoseconds in the unit that reads best.
pub(crate) fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1_000.0 => format!("{ns:.0} ns"),
        ns if ns < 100_000.0 => format!("{:.1} us", ns / 1e3),
        ns if ns < 1_000_000.0 => format!("{:.0} us", ns / 1e3),
        ns if ns < 100_000_000.0 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.0} ms", ns / 1e6),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// `1 worker`, `2 workers`.
pub(crate) fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(crate) fn bytes(count: usize) -> String {
    match count {
        count if count >= 1024 && count % 1024 == 0 => format!("{} KiB", count / 1024),
        count => format!("{count} bytes"),
    }
}

pub(crate) fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_odd_even_one_and_none() {
        assert_eq!(Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]), Some(Spread { median: 3.0, low: 2.0, high: 4.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, low: 1.75, high: 3.25 }));
        assert_eq!(Spread::of([7.0]).unwrap().show(ratio), "7.00");
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn geometric_mean_of_a_double_and_a_half_is_one() {
        assert!((geometric_mean([2.0, 0.5]).unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn bounds_of_the_median_as_in_the_tables() {
        let upto = |n: u32| median_within((1..=n).map(f64::from));
        assert_eq!([upto(0), upto(5)], [None, None]);
        assert_eq!([upto(6), upto(9), upto(20)], [Some((1.0, 6.0)), Some((2.0, 8.0)), Some((6.0, 15.0))]);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([thousands(999.0), thousands(1234.4), thousands(1e6)], ["999", "1,234", "1,000,000"]);
        assert_eq!([duration(19.4), duration(5_250.0), duration(349e6)], ["19 ns", "5.2 us", "349 ms"]);
    }
}
