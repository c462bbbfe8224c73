//! The table of `duel` as a drawing. Less is better in all of it: what is better when it is more is turned round.

use crate::figures::{self, Row};
use crate::peer::OURS;
use crate::stats::Spread;
use std::fmt::Write;

const WIDTH: f64 = 880.0;
/// Where ratios are 0, how much is 1, and what no longer fits.
const ZERO: f64 = 300.0;
const ONE: f64 = 200.0;
const MOST: f64 = 2.4;
const MARGIN: f64 = 24.0;
const BAR: f64 = 9.0;
const STEP: f64 = 11.0;

/// Colours for paper and for a dark screen.
const STYLE: &str = "
  text { font: 11px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 }
  .kind { font-size: 12px; font-weight: 600 }
  .small { font-size: 9px; fill: #59636e }
  .ours { font-weight: 600; fill: #0b57d0 }
  .paper { fill: #ffffff }
  .grid { stroke: #d9dee3; stroke-width: 1 }
  .one { stroke: #59636e; stroke-width: 1 }
  .noise { fill: #59636e; opacity: .16 }
  .whisker { stroke: #1f2328; stroke-width: 1; opacity: .75 }
  .aim { fill: #1f2328; stroke: #ffffff; stroke-width: 1 }
  .gopark { fill: #1a6df0 }
  .tokio { fill: #e8833a }
  .smol { fill: #46a758 }
  .go { fill: #12a5b8 }
  .may { fill: #c2578f }
  .raw, .threads { fill: #a3abb5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .ours { fill: #79b0ff }
    .paper { fill: #0d1117 }
    .grid { stroke: #2a313a }
    .one { stroke: #9198a1 }
    .noise { fill: #9198a1 }
    .whisker { stroke: #e6edf3 }
    .aim { fill: #e6edf3; stroke: #0d1117 }
    .gopark { fill: #4a90ff }
    .tokio { fill: #d9772f }
    .smol { fill: #3f9950 }
    .go { fill: #1596a8 }
    .raw, .threads { fill: #6b7480 }
  }
";

/// A drawing of all rows, with some lines in small print.
pub(crate) fn svg(rows: &[Row], print: &[&str]) -> String {
    let mut drawing = Drawing { body: String::new(), y: 0.0 };
    drawing.head(rows);
    for rows in figures::by_kind(rows) {
        drawing.kind(rows);
    }
    drawing.y += 10.0;
    for line in print {
        drawing.y += 13.0;
        drawing.text(MARGIN, "small", line);
    }
    let (height, body) = (drawing.y + 14.0, drawing.body);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"gopark beside its peers\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height:.0}\"/>\n{body}</svg>\n"
    )
}

struct Drawing {
    body: String,
    /// How far down things are.
    y: f64,
}

fn at(ratio: f64) -> f64 {
    ZERO + ratio.min(MOST) * ONE
}

/// Who has a bar in a row, what he has, and as a ratio to the reference.
fn bars(row: &Row) -> Vec<(&'static str, Spread, Spread)> {
    let bar = |peer| Some((peer, row.spread(peer)?, row.cost(peer, row.reference()?)?));
    let mut bars: Vec<_> = row.peers().filter_map(bar).collect();
    bars.sort_by_key(|bar| bar.0 != OURS);
    bars
}

impl Drawing {
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("writing to a string");
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let (y, text) = (self.y, text.replace('&', "&amp;").replace('<', "&lt;"));
        self.put(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!("<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>"));
    }

    fn diamond(&mut self, x: f64, y: f64) {
        self.put(format_args!("<path class=\"aim\" d=\"M{x:.1} {:.1}l4 5l-4 5l-4 -5z\"/>", y - 5.0));
    }

    /// Title and legend.
    fn head(&mut self, rows: &[Row]) {
        self.y = 34.0;
        self.text(MARGIN, "title", "gopark beside its peers: less is better");
        self.y += 18.0;
        self.text(
            MARGIN,
            "small",
            "Costs as ratios to the bare loop (raw) or plain threads where they take part, else to the best other runtime; \
             throughput is turned round.",
        );
        self.y += 22.0;
        let mut peers: Vec<&str> = Vec::new();
        for peer in rows.iter().flat_map(Row::peers) {
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        peers.sort_by_key(|&peer| peer != OURS);
        let mut x = MARGIN;
        for peer in peers {
            self.rect(peer, (x, self.y - BAR), (BAR, BAR));
            self.text(x + 14.0, if peer == OURS { "ours" } else { "" }, peer);
            x += 30.0 + 7.0 * peer.len() as f64;
        }
        x += 10.0;
        self.diamond(x, self.y - 4.0);
        self.text(x + 9.0, "", "aim");
        x += 50.0;
        let y = self.y - 4.0;
        self.whisker((x, x + 18.0), y);
        self.text(x + 25.0, "", "quartiles");
        x += 95.0;
        self.rect("noise", (x, self.y - 11.0), (18.0, 14.0));
        self.text(x + 25.0, "", "how far a peer strays from himself (A/A)");
    }

    fn whisker(&mut self, (low, high): (f64, f64), y: f64) {
        self.line("whisker", (low, y), (high, y));
        for x in [low, high] {
            self.line("whisker", (x, y - 3.0), (x, y + 3.0));
        }
    }

    /// A heading, the grid, and a group of bars for each row.
    fn kind(&mut self, rows: &[Row]) {
        let kind = rows[0].kind;
        self.y += 34.0;
        self.text(MARGIN, "kind", kind.title());
        let height: f64 = rows.iter().map(|row| bars(row).len().max(1) as f64 * STEP + 8.0).sum();
        let (top, bottom) = (self.y + 8.0, self.y + 8.0 + height);
        for ratio in [0.5, 1.0, 1.5, 2.0] {
            let x = at(ratio);
            self.line(if ratio == 1.0 { "one" } else { "grid" }, (x, top), (x, bottom));
            self.text(x - 6.0, "small", &format!("{ratio:.1}"));
        }
        if let Some((_, Spread { low, high, .. })) = figures::control(rows, kind) {
            self.rect("noise", (at(low), top), (at(high) - at(low), bottom - top));
        }
        self.y = top;
        for row in rows {
            self.y += 4.0;
            self.group(row);
            self.y += 4.0;
        }
    }

    fn group(&mut self, row: &Row) {
        let top = self.y;
        self.y = top + BAR;
        self.text(MARGIN + 8.0, "", row.name);
        self.y = top;
        for (peer, value, cost) in bars(row) {
            let middle = self.y + BAR / 2.0;
            self.rect(peer, (ZERO, self.y), (at(cost.median) - ZERO, BAR));
            let mut label = row.unit.show(value.median);
            let mut end = at(cost.median);
            if cost.low < cost.high && cost.low < MOST {
                self.whisker((at(cost.low), at(cost.high)), middle);
                end = end.max(at(cost.high));
            }
            if cost.median > MOST {
                write!(label, ", {:.1} times", cost.median).expect("writing to a string");
            }
            if let Some(aim) = row.aim_at().filter(|_| peer == OURS) {
                self.diamond(at(aim), middle);
                end = end.max(at(aim) + 4.0);
            }
            self.y += BAR - 1.0;
            self.text(end + 6.0, if peer == OURS { "small ours" } else { "small" }, &label);
            self.y += STEP - BAR + 1.0;
        }
        self.y = self.y.max(top + STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Aim, Kind, Unit};

    #[test]
    fn every_tag_is_closed_and_no_number_is_odd() {
        let samples =
            vec![("raw", vec![1.0, 2.0]), ("tokio", vec![90.0, 99.0]), (OURS, vec![1.0, 1.5]), ("go", vec![])];
        let row = |unit, samples| Row { kind: Kind::P99, name: "<a & b>", unit, aims: &[Aim::Of(1.0, "raw")], samples };
        let rows = [row(Unit::Nanos, samples.clone()), row(Unit::PerSecond, samples), row(Unit::Calls, Vec::new())];
        let svg = svg(&rows, &["a machine"]);
        assert!(svg.contains("&lt;a &amp; b>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let opened = svg.matches('<').count() - svg.matches("</").count();
        assert_eq!(opened, svg.matches("</").count() + svg.matches("/>").count(), "{svg}");
    }
}
