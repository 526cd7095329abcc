//! The report in the documents: figures between two marks of each, and the plots beside them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::balancer::Kind;
use crate::chart::Chart;
use crate::machine::Machine;
use crate::summary::{Better, Line, Section, summary};

/// Around what is replaced; everything else in a document is written by hand.
const BEGIN: &str = "<!-- relay --report: begin -->";
const END: &str = "<!-- relay --report: end -->";

/// The documents and the folder of the plots, below the checkout.
const README: &str = "README.md";
const BENCHMARKS: &str = "docs/benchmarks.md";
const PLOTS: &str = "docs/benchmarks";

/// The plots: what each file is called and shows.
const COSTS: (&str, &str) = ("costs.svg", "What balancerd costs, as a part of what others cost for the same work");
const THROUGHPUT: (&str, &str) = ("throughput.svg", "Throughput of balancerd, as a multiple of that of others");
const LATENCY: (&str, &str) = ("latency.svg", "Latency of small requests");

/// Where a report goes.
pub(crate) struct Documents {
    checkout: PathBuf,
    readme: String,
    benchmarks: String,
}

/// How it was measured.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    /// Rounds, seconds, processors.
    pub(crate) how: String,
    /// Whether it was only a trial.
    pub(crate) quick: bool,
}

impl Documents {
    /// Reads the documents of `checkout`, so that a report that has no place fails before anything is measured.
    pub(crate) fn open(checkout: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<String> {
            let path = checkout.join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            replaced(&text, "").with_context(|| format!("no {BEGIN} with {END} behind it in {}", path.display()))?;
            Ok(text)
        };
        Ok(Self { checkout: checkout.to_path_buf(), readme: read(README)?, benchmarks: read(BENCHMARKS)? })
    }

    /// Writes tables and plots.
    pub(crate) fn write(&self, run: &Run, sections: &[Section]) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = self.checkout.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        fs::create_dir_all(self.checkout.join(PLOTS)).with_context(|| format!("create {PLOTS}"))?;
        let told = run.told()?;
        for (name, text) in plots(&told, sections) {
            write(&format!("{PLOTS}/{name}"), &text)?;
        }
        let marked = "both marks, which were there when it was opened";
        write(README, &replaced(&self.readme, &short(&told, sections)).context(marked)?)?;
        write(BENCHMARKS, &replaced(&self.benchmarks, &long(&told, sections)).context(marked)?)
    }
}

impl Run {
    /// What stands below plots and, in one line, above tables: where, with what, and how it was measured.
    fn told(&self) -> Result<[String; 3]> {
        let quick = if self.quick { "quick trial run with rough figures: " } else { "" };
        let how = format!("{quick}{}; {}", self.how, self.machine.load()?);
        Ok([self.machine.place(), self.machine.versions(), how])
    }
}

/// `text` with `body` between the marks; nothing when it has not both of them in their order.
fn replaced(text: &str, body: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{body}{END}{after}"))
}

fn lines(sections: &[Section]) -> Vec<&Line> {
    sections.iter().flat_map(|section| &section.lines).collect()
}

fn plots(told: &[String; 3], sections: &[Section]) -> Vec<(&'static str, String)> {
    let of = |better| lines(sections).into_iter().filter(|line| line.figure.better == better).collect::<Vec<_>>();
    let ratios = |(name, title): (&'static str, &str), better, hint: &str| {
        (name, Chart::of_ratios(title, hint, &of(better)).draw(told))
    };
    let latencies: Vec<_> = sections.iter().flat_map(|section| &section.latencies).collect();
    vec![
        ratios(COSTS, Better::Less, "shorter is better; left of 1 balancerd needs less"),
        ratios(THROUGHPUT, Better::More, "longer is better; right of 1 balancerd does more"),
        (LATENCY.0, Chart::of_latencies(LATENCY.1, &latencies).draw(told)),
    ]
}

/// What stands above tables.
fn head(told: &[String; 3]) -> String {
    format!("{}.", told.join("; "))
}

fn image((name, title): (&str, &str), folder: &str) -> String {
    format!("![{title}]({folder}/{name})\n\n")
}

/// The part of the README.
fn short(told: &[String; 3], sections: &[Section]) -> String {
    let lines: Vec<_> = lines(sections).into_iter().filter(|line| line.ratio(Kind::Haproxy).is_some()).collect();
    format!("{}\n{}\n\n{}\n", image(COSTS, PLOTS), head(told), summary(&lines, false)).replace("\n\n\n", "\n\n")
}

/// The part of the benchmarks' page.
fn long(told: &[String; 3], sections: &[Section]) -> String {
    let mut text = format!("{}\n\n## Summary\n\n{}\n\n", head(told), summary(&lines(sections), true));
    text.push_str("## Plots\n\n");
    for plot in [COSTS, THROUGHPUT, LATENCY] {
        text.push_str(&image(plot, "benchmarks"));
    }
    for section in sections {
        text.push_str(&format!("## {}\n\n{}\n\n", section.title, section.markdown()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced_and_can_be_again() {
        let once = replaced(&format!("before\n{BEGIN}\nold\n{END}\nafter\n"), "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "newer\n").unwrap(), format!("before\n{BEGIN}\nnewer\n{END}\nafter\n"));
    }

    #[test]
    fn a_document_without_both_marks_in_order_takes_no_report() {
        for text in ["", BEGIN, END, &format!("{END}{BEGIN}")] {
            assert!(replaced(text, "new").is_none(), "{text}");
        }
    }
}
