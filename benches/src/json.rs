//! Just enough JSON to write results.

use std::fmt::{self, Display, Write};

pub(crate) enum Json {
    Int(u64),
    Num(f64),
    Text(String),
    List(Vec<Json>),
    /// A list with a line for each item.
    Lines(Vec<Json>),
    Map(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn map<const N: usize>(entries: [(&str, Json); N]) -> Json {
        Json::Map(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    pub(crate) fn list(items: impl IntoIterator<Item = Json>) -> Json {
        Json::List(items.into_iter().collect())
    }

    pub(crate) fn lines(items: impl IntoIterator<Item = Json>) -> Json {
        Json::Lines(items.into_iter().collect())
    }

    pub(crate) fn text(text: impl Into<String>) -> Json {
        Json::Text(text.into())
    }
}

impl Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Int(n) => write!(f, "{n}"),
            Json::Num(n) if n.is_finite() => write!(f, "{n}"),
            Json::Num(_) => f.write_str("null"),
            Json::Text(text) => quoted(f, text),
            Json::List(items) => separated(f, ["[", ",", "]"], items, |f, item| item.fmt(f)),
            Json::Lines(items) => separated(f, ["[\n", ",\n", "\n]"], items, |f, item| item.fmt(f)),
            Json::Map(entries) => separated(f, ["{", ",", "}"], entries, |f, (name, value)| {
                quoted(f, name)?;
                f.write_char(':')?;
                value.fmt(f)
            }),
        }
    }
}

fn separated<T>(
    f: &mut fmt::Formatter<'_>,
    [open, between, close]: [&str; 3],
    items: &[T],
    each: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    f.write_str(open)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        each(f, item)?;
    }
    f.write_str(close)
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_parsers_read() {
        let value = Json::map([
            ("a", Json::list([Json::Int(1), Json::Num(0.5), Json::Num(f64::NAN)])),
            ("lines", Json::lines([Json::Int(1), Json::Int(2)])),
            ("b\n", Json::text("\"\\\u{1}é")),
        ]);
        assert_eq!(value.to_string(), "{\"a\":[1,0.5,null],\"lines\":[\n1,\n2\n],\"b\\u000a\":\"\\\"\\\\\\u0001é\"}");
    }
}
