//! Plots as SVG: rows of bars or dots, each with the range of its rounds and its figure beside it.
//!
//! One file serves light and dark pages: it has a card of its own to stand on, and takes the reader's choice of colours. No
//! font is named that a reader would have to have, so the places of texts leave room.

use bench::rounds::Spread;
use svg::Document;
use svg::node::element::{Circle, Line as Stroke, Rectangle, Style, Text, Title};

use crate::balancer::Kind;
use crate::summary::{Course, Line};

/// Where things are, in pixels: the plot between `LEFT` and `RIGHT`, what is plotted left of it, figures right of it.
const WIDTH: f64 = 860.0;
const MARGIN: f64 = 18.0;
const LEFT: f64 = 318.0;
const RIGHT: f64 = 680.0;
/// The place of the head: title, hint and legend.
const HEAD: f64 = 96.0;
const ROW: f64 = 17.0;
/// Between two groups of rows.
const GAP: f64 = 12.0;
/// Of a bar.
const THICKNESS: f64 = 11.0;
/// Of a line of the foot.
const FOOT_LINE: f64 = 17.0;

/// A wider axis of ratios would leave nothing of the bars that matter: what is beyond is cut off, and its figure tells.
const WIDEST_RATIO: f64 = 3.0;
const NARROWEST_RATIO: f64 = 1.25;

const STYLE: &str = "
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.soft { fill: #59636e; font-size: 12px }
.card { fill: #ffffff; stroke: #d1d9e0 }
.grid { stroke: #d1d9e0 }
.one, .range { stroke: #1f2328 }
.direct { fill: #8c959f }
.haproxy { fill: #2f72d6 }
.haproxy-splice { fill: #8f6fd8 }
.nginx { fill: #2e9e58 }
.balancerd, .before { fill: #d9722b }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.soft { fill: #9198a1 }
.card { fill: #0d1117; stroke: #3d444d }
.grid { stroke: #3d444d }
.one, .range { stroke: #e6edf3 }
.haproxy { fill: #5b9bf5 }
.haproxy-splice { fill: #ab8df0 }
.nginx { fill: #43b872 }
.balancerd, .before { fill: #ef8a45 }
}
";

/// A plot.
pub(crate) struct Chart {
    title: String,
    hint: String,
    axis: Axis,
    groups: Vec<Group>,
}

/// Rows about one thing.
struct Group {
    what: String,
    rows: Vec<Row>,
}

struct Row {
    kind: Kind,
    spread: Spread,
    text: String,
}

/// From what a value is to where it is.
#[derive(Clone, Copy)]
enum Axis {
    /// Bars that begin at 0, with a line at 1.
    Ratio { end: f64 },
    /// Dots between two moments, in seconds, on a logarithmic axis.
    Seconds { first: f64, last: f64 },
}

impl Chart {
    /// Bars of balancerd's figure as a multiple of that of HAProxy and of nginx, and of HAProxy that always splices where
    /// that is what makes the difference.
    pub(crate) fn of_ratios(title: &str, hint: &str, lines: &[&Line]) -> Self {
        let group = |line: &&Line| {
            let row = |kind| {
                let spread = line.ratio(kind)?;
                let text = format!("{:.2} ({:.2} to {:.2})", spread.median, spread.least, spread.greatest);
                Some(Row { kind, spread, text })
            };
            let bases = [Kind::Haproxy, Kind::HaproxySplice, Kind::Nginx].into_iter();
            let bases = bases.filter(|base| *base != Kind::HaproxySplice || line.figure.bulk);
            Group { what: line.figure.what.clone(), rows: bases.filter_map(row).collect() }
        };
        let groups: Vec<_> = lines.iter().map(group).filter(|group| !group.rows.is_empty()).collect();
        let greatest = greatest(&groups, |spread| spread.greatest).unwrap_or(0.0);
        let end = (greatest.clamp(NARROWEST_RATIO, WIDEST_RATIO) * 4.0).ceil() / 4.0;
        Self { title: title.to_owned(), hint: hint.to_owned(), axis: Axis::Ratio { end }, groups }
    }

    /// Dots of latencies.
    pub(crate) fn of_latencies(title: &str, courses: &[&Course]) -> Self {
        let row = |(kind, spread): &(Kind, Spread)| {
            let [median, least, greatest] = [spread.median, spread.least, spread.greatest].map(milliseconds);
            Row { kind: *kind, spread: *spread, text: format!("{median} ({least} to {greatest})") }
        };
        let group =
            |course: &&Course| Group { what: course.what.clone(), rows: course.values.iter().map(row).collect() };
        let groups: Vec<_> = courses.iter().map(group).collect();
        let least = groups.iter().flat_map(|group| &group.rows).map(|row| row.spread.least).reduce(f64::min);
        let least = least.unwrap_or(1e-4);
        let greatest = greatest(&groups, |spread| spread.greatest).unwrap_or(1e-2);
        let first = steps().take_while(|step| *step <= least).last().unwrap_or(least);
        let last = steps().find(|step| *step >= greatest && *step > first).unwrap_or(greatest);
        Self {
            title: title.to_owned(),
            hint: "milliseconds, logarithmic; further left is better".to_owned(),
            axis: Axis::Seconds { first, last },
            groups,
        }
    }

    /// The SVG, with `foot` below the plot.
    pub(crate) fn draw(&self, foot: &[String]) -> String {
        let rows: f64 = self.groups.iter().map(|group| ROW * group.rows.len() as f64 + GAP).sum();
        let bottom = HEAD + rows;
        let height = bottom + 34.0 + FOOT_LINE * foot.len() as f64 + MARGIN / 2.0;
        let card = Rectangle::new().set("class", "card").set("x", 0.5).set("y", 0.5).set("rx", 6);
        let mut document = Document::new()
            .set("viewBox", (0.0, 0.0, WIDTH, height))
            .set("width", WIDTH)
            .set("height", height)
            .set("role", "img")
            .add(Title::new(self.title.clone()))
            .add(Style::new(STYLE))
            .add(card.set("width", WIDTH - 1.0).set("height", height - 1.0))
            .add(text(&self.title, MARGIN, 30.0).set("class", "title"))
            .add(
                text(&format!("{}. Thin lines: the range of the rounds.", self.hint), MARGIN, 50.0)
                    .set("class", "soft"),
            );
        document = self.legend(document);
        for (value, label) in self.axis.ticks() {
            let x = self.axis.place(value);
            let class = if matches!(self.axis, Axis::Ratio { .. }) && value == 1.0 { "one" } else { "grid" };
            document = document
                .add(line((x, HEAD - 6.0), (x, bottom)).set("class", class))
                .add(text(&label, x, bottom + 16.0).set("class", "soft").set("text-anchor", "middle"));
        }
        let mut y = HEAD;
        for group in &self.groups {
            let middle = y + ROW * group.rows.len() as f64 / 2.0;
            document = document.add(text(&group.what, MARGIN, middle + 4.5));
            for row in &group.rows {
                document = self.row(document, row, y + ROW / 2.0);
                y += ROW;
            }
            y += GAP;
        }
        for (index, words) in foot.iter().enumerate() {
            let y = bottom + 36.0 + FOOT_LINE * (index as f64 + 0.5);
            document = document.add(text(words, MARGIN, y).set("class", "soft"));
        }
        format!("{document}\n")
    }

    /// What the colours mean: those that are in the plot.
    fn legend(&self, mut document: Document) -> Document {
        let mut kinds: Vec<Kind> = self.groups.iter().flat_map(|group| &group.rows).map(|row| row.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let mut x = MARGIN;
        for kind in kinds {
            let words = match self.axis {
                Axis::Ratio { .. } => format!("against {}", kind.name()),
                Axis::Seconds { .. } => kind.name().to_owned(),
            };
            let mark = Rectangle::new().set("class", kind.name()).set("x", x).set("y", 63.0).set("rx", 2);
            document = document
                .add(mark.set("width", THICKNESS).set("height", THICKNESS))
                .add(text(&words, x + 17.0, 73.0).set("class", "soft"));
            x += 38.0 + 6.6 * words.len() as f64;
        }
        document
    }

    /// One bar or dot around `y`.
    fn row(&self, document: Document, row: &Row, y: f64) -> Document {
        let [value, least, greatest] =
            [row.spread.median, row.spread.least, row.spread.greatest].map(|value| self.axis.place(value));
        let range = line((least, y), (greatest, y)).set("class", "range");
        let figure = text(&row.text, RIGHT + 12.0, y + 4.0).set("class", "soft");
        let document = match self.axis {
            Axis::Ratio { .. } => {
                let bar = Rectangle::new().set("class", row.kind.name()).set("x", LEFT).set("y", y - THICKNESS / 2.0);
                document.add(bar.set("width", value - LEFT).set("height", THICKNESS).set("rx", 1)).add(range)
            }
            Axis::Seconds { .. } => {
                let dot = Circle::new().set("class", row.kind.name()).set("cx", value).set("cy", y);
                document.add(range).add(dot.set("r", THICKNESS / 2.0))
            }
        };
        document.add(figure)
    }
}

impl Axis {
    /// Where `value` is; at the edge when it is beyond.
    fn place(self, value: f64) -> f64 {
        let part = match self {
            Self::Ratio { end } => value / end,
            Self::Seconds { first, last } => (value / first).ln() / (last / first).ln(),
        };
        let place = LEFT + (RIGHT - LEFT) * part.clamp(0.0, 1.0);
        // A tenth of a pixel is all that is seen, and files stay small.
        (place * 10.0).round() / 10.0
    }

    /// Values that have a line, and what stands at it.
    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Ratio { end } => {
                let step = if end > 1.5 { 0.5 } else { 0.25 };
                let values = (0..).map(|number| f64::from(number) * step).take_while(|value| *value <= end);
                values.map(|value| (value, value.to_string())).collect()
            }
            Self::Seconds { first, last } => {
                let values = steps().filter(|step| (first..=last).contains(step));
                values.map(|value| (value, format!("{}", (value * 1e6).round() / 1e3))).collect()
            }
        }
    }
}

/// 1, 2 and 5 of each power of ten, from a microsecond to a minute.
fn steps() -> impl Iterator<Item = f64> {
    (-6..2).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
}

/// Seconds in milliseconds, with three digits that count.
fn milliseconds(seconds: f64) -> String {
    let value = seconds * 1e3;
    let decimals = if value < 1.0 {
        3
    } else if value < 10.0 {
        2
    } else {
        1
    };
    format!("{value:.decimals$}")
}

fn greatest(groups: &[Group], of: impl Fn(Spread) -> f64) -> Option<f64> {
    groups.iter().flat_map(|group| &group.rows).map(|row| of(row.spread)).reduce(f64::max)
}

fn text(words: &str, x: f64, y: f64) -> Text {
    Text::new(words).set("x", x).set("y", y)
}

fn line(from: (f64, f64), to: (f64, f64)) -> Stroke {
    Stroke::new().set("x1", from.0).set("y1", from.1).set("x2", to.0).set("y2", to.1)
}

#[cfg(test)]
mod tests {
    use bench::rounds::Rounds;

    use super::*;
    use crate::summary::Figure;

    fn line_of(rounds: &[(f64, f64)]) -> Line {
        let mut all = Rounds::new();
        for (ours, theirs) in rounds {
            all.push(vec![(Kind::Haproxy, *theirs), (Kind::Balancerd, *ours)]);
        }
        Line::new(Figure::less("CPU & memory", "us", 1), &[], &all, |value| Some(*value))
    }

    #[test]
    fn a_bar_is_as_long_as_its_ratio_and_its_range_as_the_rounds() {
        let line = line_of(&[(1.0, 2.0), (1.0, 4.0), (3.0, 4.0)]);
        let chart = Chart::of_ratios("title", "hint", &[&line]);
        assert!(matches!(chart.axis, Axis::Ratio { end: 1.25 }));
        let unit = (RIGHT - LEFT) / 1.25;
        let svg = chart.draw(&[]);
        assert!(svg.contains(&format!("width=\"{}\"", unit * 0.5)), "{svg}");
        let [from, to] = [0.25, 0.75].map(|ratio| ((LEFT + unit * ratio) * 10.0).round() / 10.0);
        assert!(svg.contains(&format!("x1=\"{from}\"")) && svg.contains(&format!("x2=\"{to}\"")), "{svg}");
        assert!(svg.contains("0.50 (0.25 to 0.75)"), "{svg}");
    }

    #[test]
    fn what_has_a_meaning_in_svg_is_written_as_text() {
        let svg = Chart::of_ratios("a < b", "hint", &[&line_of(&[(1.0, 2.0)])]).draw(&["2 > 1".to_owned()]);
        assert!(svg.contains("a &lt; b") && svg.contains("CPU &amp; memory") && svg.contains("2 &gt; 1"), "{svg}");
    }

    #[test]
    fn a_ratio_beyond_the_axis_ends_at_its_edge() {
        let chart = Chart::of_ratios("title", "hint", &[&line_of(&[(50.0, 1.0)])]);
        assert!((chart.axis.place(50.0) - RIGHT).abs() < f64::EPSILON);
    }

    #[test]
    fn latencies_stand_on_a_logarithmic_axis() {
        let axis = Axis::Seconds { first: 5e-4, last: 5e-3 };
        let middle = 5e-4 * 10_f64.sqrt();
        assert_eq!([5e-4, middle, 5e-3].map(|value| axis.place(value)), [LEFT, (LEFT + RIGHT) / 2.0, RIGHT]);
        assert_eq!(axis.ticks().into_iter().map(|(_, label)| label).collect::<Vec<_>>(), ["0.5", "1", "2", "5"]);
    }
}
