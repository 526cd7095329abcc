//! Tables of figures, and the medians and percentiles in them.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

/// An empty table, for a terminal or as Markdown.
#[must_use]
pub fn table(markdown: bool) -> Table {
    let mut table = Table::new();
    table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
    table
}

/// Puts the columns of numbers, all from `first` on, to the right.
pub fn align(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// A number with so many decimals, or a dash.
#[must_use]
pub fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// The middle value, or the mean of the two middle ones.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// The least value that so many of 1000 values do not exceed (nearest rank); `sorted` ascends.
#[must_use]
pub fn percentile(sorted: &[Duration], of_1000: usize) -> Option<Duration> {
    let rank = (sorted.len() * of_1000).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn percentiles_follow_nearest_rank() {
        let values: Vec<_> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!(percentile(&values, 500), Some(Duration::from_micros(100)));
        assert_eq!(percentile(&values, 990), Some(Duration::from_micros(198)));
        assert_eq!(percentile(&values, 999), Some(Duration::from_micros(200)));
        assert_eq!(percentile(&values[..1], 990), Some(Duration::from_micros(1)));
        assert_eq!(percentile(&[], 500), None);
    }
}
