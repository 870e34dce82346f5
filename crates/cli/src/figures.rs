//! Figures of several runs as cells: one number for one run, median and range for more.

use dirigible_workload::report::{ColumnReport, PassReport, Report};

use crate::{
    summary::{Spread, spread},
    table::Table,
};

/// The runs whose figures a table shows; all have the same columns and passes.
#[derive(Clone, Copy)]
pub struct Runs<'a>(pub &'a [Report]);

impl<'a> Runs<'a> {
    /// Names of the columns.
    pub fn column_names(self) -> Vec<String> {
        let first = self.0.first();
        first.map_or(Vec::new(), |run| {
            run.columns.iter().map(|c| c.name.clone()).collect()
        })
    }

    /// Names of the passes.
    pub fn pass_names(self) -> Vec<String> {
        let first = self.0.first().and_then(|run| run.columns.first());
        first.map_or(Vec::new(), |column| {
            column.passes.iter().map(|p| p.name.clone()).collect()
        })
    }

    /// A figure of each column over the runs.
    pub fn of_columns(self, figure: impl Fn(&'a ColumnReport) -> Option<f64>) -> Vec<Vec<f64>> {
        let runs = |index: usize| {
            let columns = self.0.iter().filter_map(move |run| run.columns.get(index));
            columns.filter_map(&figure).collect()
        };
        (0..self.column_names().len()).map(runs).collect()
    }

    /// A figure of one pass of each column over the runs.
    pub fn of_pass(self, pass: usize, figure: impl Fn(&'a PassReport) -> f64) -> Vec<Vec<f64>> {
        self.of_columns(|column| column.passes.get(pass).map(&figure))
    }

    /// Adds a row with a figure of each column.
    pub fn row(
        self,
        table: &mut Table,
        label: &str,
        places: usize,
        figure: impl Fn(&'a ColumnReport) -> f64,
    ) {
        let values = self.of_columns(|column| Some(figure(column)));
        table.row(
            label,
            values.iter().map(|values| cell(values, places)).collect(),
        );
    }

    /// Adds a row with a figure of one pass of each column.
    pub fn pass_row(
        self,
        table: &mut Table,
        pass: usize,
        label: &str,
        places: usize,
        figure: impl Fn(&'a PassReport) -> f64,
    ) {
        let values = self.of_pass(pass, figure);
        table.row(
            label,
            values.iter().map(|values| cell(values, places)).collect(),
        );
    }

    /// Adds a row of per cent, cut off to whole numbers and not rounded, with the difference to the first column in
    /// brackets, and a `!` where the pass does not count.
    pub fn percent_row(
        self,
        table: &mut Table,
        pass: usize,
        figure: impl Fn(&'a PassReport) -> f64,
    ) {
        let values = self.of_pass(pass, figure);
        let marks = self.of_pass(pass, |pass| f64::from(u8::from(pass.disqualified)));
        let Some(first) = values.first().and_then(|first| spread(first)) else {
            return;
        };
        let cells = values
            .iter()
            .enumerate()
            .map(|(index, values)| match spread(values) {
                None => "-".into(),
                Some(Spread { median, min, max }) => {
                    let mut text = format!("{:.0}", median.floor());
                    if index > 0 {
                        text += &format!(" ({:.0})", median.floor() - first.median.floor());
                    }
                    if marks[index].contains(&1.0) {
                        text += "!";
                    }
                    text + &range(min.floor(), max.floor(), 0)
                }
            });
        table.row(pass_label(&self.pass_names()[pass]), cells.collect());
    }
}

/// `files` in `ms` milliseconds as files a minute; `None` where no time has passed.
pub fn a_minute(files: u64, ms: u64) -> Option<f64> {
    (ms > 0).then(|| files as f64 * 60_000.0 / ms as f64)
}

/// Huge pages got, in per cent of those asked for: not rounded, as it is to be cut off.
pub fn percent_asked(pass: &PassReport) -> f64 {
    percent(pass.allocated, pass.asked)
}

/// Huge pages got, in per cent of the attainable, likewise.
pub fn percent_attainable(pass: &PassReport) -> f64 {
    percent(pass.allocated, pass.attainable)
}

fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => 100.0 * part as f64 / whole as f64,
    }
}

/// The figure, or median and range of several.
pub fn cell(values: &[f64], places: usize) -> String {
    match (values, spread(values)) {
        (_, None) => String::new(),
        ([only], _) => number(*only, places),
        (_, Some(Spread { median, min, max })) => number(median, places) + &range(min, max, places),
    }
}

/// The range after a median; empty if all runs agree.
fn range(min: f64, max: f64, places: usize) -> String {
    if min == max {
        String::new()
    } else {
        format!(" [{min:.places$}-{max:.places$}]")
    }
}

/// With `places` decimal places; the median of two whole numbers keeps its half.
fn number(value: f64, places: usize) -> String {
    match places {
        0 if value.fract() != 0.0 => format!("{value:.1}"),
        _ => format!("{value:.places$}"),
    }
}

/// A pass's name in the table: `pass1-thp` is `Pass 1, THP`.
pub fn pass_label(name: &str) -> String {
    let (pass, test) = name.split_once('-').unwrap_or((name, ""));
    let mut label = match pass {
        "pass1" => "Pass 1".to_string(),
        "pass2" => "Pass 2".to_string(),
        "rested" => "while Rested".to_string(),
        other => other.to_string(),
    };
    if !test.is_empty() {
        label += &format!(", {}", test.to_uppercase());
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        assert_eq!(cell(&[], 0), "");
        assert_eq!(cell(&[47.0], 0), "47");
        assert_eq!(cell(&[47.25], 1), "47.2");
        assert_eq!(cell(&[3.0, 1.0, 2.0], 0), "2 [1-3]");
        assert_eq!(cell(&[3.0, 3.0], 0), "3");
        assert_eq!(cell(&[1.0, 2.0], 0), "1.5 [1-2]");
        assert_eq!(cell(&[1.0, 2.0], 2), "1.50 [1.00-2.00]");
    }

    /// The series cuts per cent off. Rounded to tenths first, this would be 85.
    #[test]
    fn pitfall_82_per_cent_are_cut_off_and_not_rounded_before() {
        let pass = PassReport {
            allocated: 1653,
            asked: 1945,
            attainable: 1653,
            ..PassReport::default()
        };
        assert_eq!(percent_asked(&pass).floor(), 84.0);
        assert_eq!(percent_attainable(&pass).floor(), 100.0);
        assert_eq!(percent_asked(&PassReport::default()), 0.0);
    }

    #[test]
    fn labels() {
        assert_eq!(pass_label("pass1"), "Pass 1");
        assert_eq!(pass_label("pass2-thp"), "Pass 2, THP");
        assert_eq!(pass_label("rested"), "while Rested");
    }
}
