//! Checks the claims of docs/experiment.md against the experiment's figures.

use std::{fmt::Write, fs, path::Path};

use serde_json::Value;

/// A table of all cells in `folder`, and each claim about the main ones with its figures.
///
/// # Errors
///
/// A file that cannot be read.
pub fn of_folder(folder: &Path) -> Result<String, String> {
    let entries = fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")?
                    .to_string(),
            )
        })
        .collect();
    names.sort();
    let mut text = String::from(
        "| cell | seeds | pass | column | % of asked | % of attainable | hybrid blocks | moved per huge page | load MiB |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut claims = String::new();
    for name in names {
        let cell = Cell::read(&folder.join(format!("{name}.json")))?;
        cell.rows(&name, &mut text);
        match name.as_str() {
            "cycle" | "held" => cell.claims(&name, &mut claims),
            "no-balloon" => cell.control(&mut claims),
            _ => {}
        }
    }
    Ok(format!("{text}\n{claims}"))
}

/// The runs of one file.
struct Cell {
    runs: Vec<Value>,
}

/// One figure of several runs.
struct Figures(Vec<f64>);

impl Figures {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    fn text(&self) -> String {
        format!("{:.1} ({:.1}-{:.1})", self.median(), self.min(), self.max())
    }
}

impl Cell {
    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let mut whole: Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        let runs = match whole.get_mut("runs").map(Value::take) {
            Some(Value::Array(runs)) => runs,
            _ => vec![whole],
        };
        Ok(Self { runs })
    }

    fn column_names(&self) -> Vec<String> {
        names(self.runs.first().and_then(|run| run.get("columns")))
    }

    fn pass_names(&self) -> Vec<String> {
        names(
            self.runs
                .first()
                .and_then(|run| run.pointer("/columns/0/passes")),
        )
    }

    fn has_all_columns(&self) -> bool {
        self.column_names() == ["pinned", "movable", "steered"]
    }

    /// A figure of a column.
    fn column(&self, column: usize, key: &str) -> Figures {
        let of = |run: &Value| run.pointer(&format!("/columns/{column}/{key}"))?.as_f64();
        Figures(self.runs.iter().filter_map(of).collect())
    }

    /// A figure of a pass of a column.
    fn pass(&self, column: usize, pass: usize, key: &str) -> Figures {
        self.column(column, &format!("passes/{pass}/{key}"))
    }

    fn rows(&self, cell: &str, text: &mut String) {
        for (pass, pass_name) in self.pass_names().iter().enumerate() {
            for (column, column_name) in self.column_names().iter().enumerate() {
                let of = |key| self.pass(column, pass, key).text();
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "| {cell} | {} | {pass_name} | {column_name} | {} | {} | {} | {} | {} |",
                    self.runs.len(),
                    of("percent_asked"),
                    of("percent_attainable"),
                    of("hybrid_blocks"),
                    of("moved_per_huge_page"),
                    of("load_mib"),
                );
            }
        }
    }

    /// The claims about the three columns, `pinned`, `movable` and `steered`.
    fn claims(&self, cell: &str, text: &mut String) {
        if !self.has_all_columns() {
            return;
        }
        let (pinned, movable, steered) = (0, 1, 2);
        let mut claim = |holds: bool, what: String| {
            let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
            let _ = writeln!(text, "* {cell}: {what}: **{verdict}**");
        };
        for (pass, name) in self.pass_names().iter().enumerate() {
            let attainable = self.pass(steered, pass, "percent_attainable");
            claim(
                attainable.median() >= 97.0,
                format!(
                    "{name}: steered gets at least 97 % of the attainable: {}",
                    attainable.text()
                ),
            );
            let (ours, theirs) = (
                self.pass(steered, pass, "percent_asked"),
                self.pass(movable, pass, "percent_asked"),
            );
            let spread = (ours.max() - ours.min()).max(theirs.max() - theirs.min());
            claim(
                ours.median() >= theirs.median() - spread,
                format!(
                    "{name}: steered is not below movable by more than the spread: {} against {}",
                    ours.text(),
                    theirs.text()
                ),
            );
            let hybrids = self.pass(steered, pass, "hybrid_blocks");
            claim(
                hybrids.max() == 0.0,
                format!(
                    "{name}: steered has no hybrid block at the end: {}",
                    hybrids.text()
                ),
            );
            let (ours, theirs) = (
                self.pass(steered, pass, "moved_per_huge_page"),
                self.pass(movable, pass, "moved_per_huge_page"),
            );
            claim(
                ours.median() < theirs.median(),
                format!(
                    "{name}: steered moves fewer pages per huge page: {} against {}",
                    ours.text(),
                    theirs.text()
                ),
            );
            let loads: Vec<f64> = (0..3)
                .map(|column| self.pass(column, pass, "load_mib").median())
                .collect();
            let (least, most) = (Figures(loads.clone()).min(), Figures(loads).max());
            claim(
                most - least < 0.02 * most,
                format!("{name}: the load differs by less than 2 %: {least:.1} to {most:.1} MiB"),
            );
        }
        let gain = self.pass(movable, 0, "percent_asked").median()
            - self.pass(pinned, 0, "percent_asked").median();
        claim(
            gain >= 25.0,
            format!("pass1: movable gets at least 25 points more than pinned: {gain:.1}"),
        );
        let (ours, theirs) = (
            self.column(steered, "moved_per_huge_page"),
            self.column(movable, "moved_per_huge_page"),
        );
        claim(
            ours.median() <= 1.05 * theirs.median(),
            format!(
                "whole run: steered moves at most 5 % more pages per huge page: {} against {}",
                ours.text(),
                theirs.text()
            ),
        );
        let messages = self.column(steered, "messages_per_frame_moved");
        claim(
            messages.max() <= 0.04,
            format!(
                "whole run: steered needs at most 0.04 host messages per balloon frame moved: {:.4} ({:.4}-{:.4})",
                messages.median(),
                messages.min(),
                messages.max()
            ),
        );
        for (column, name) in self.column_names().iter().enumerate() {
            let errors = self.column(column, "content_errors").max();
            claim(
                errors == 0.0,
                format!("{name}: no content errors: {errors}"),
            );
        }
        for (column, name) in self.column_names().iter().enumerate() {
            let of = |key: &str| self.host(column, key);
            let fallen: Vec<f64> = of("empty_balloon_mib")
                .iter()
                .zip(of("full_balloon_mib"))
                .map(|(empty, full)| empty - full)
                .collect();
            for (fallen, balloon) in fallen.into_iter().zip(of("balloon_mib")) {
                claim(
                    (fallen - balloon).abs() <= 0.02 * balloon,
                    format!(
                        "{name}: resident memory falls by the balloon, within 2 %: {fallen:.1} of {balloon:.1} MiB"
                    ),
                );
            }
        }
    }

    /// The control: without a balloon `pinned` must score what `movable` scores.
    fn control(&self, text: &mut String) {
        for (pass, name) in self.pass_names().iter().enumerate() {
            let (pinned, movable) = (
                self.pass(0, pass, "percent_asked"),
                self.pass(1, pass, "percent_asked"),
            );
            let holds = (pinned.median() - movable.median()).abs() <= 1.0;
            let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
            let _ = writeln!(
                text,
                "* no balloon: {name}: pinned scores what movable scores, within 1 point: {} against {}: **{verdict}**",
                pinned.text(),
                movable.text()
            );
        }
    }

    /// A figure of a column's residency in the first run; only that one is evaluated.
    fn host(&self, column: usize, key: &str) -> Vec<f64> {
        let path = format!("/host/columns/{column}/residency/{key}");
        self.runs
            .iter()
            .take(1)
            .filter_map(|run| run.pointer(&path)?.as_f64())
            .collect()
    }
}

fn names(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items
        .filter_map(|item| Some(item.get("name")?.as_str()?.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(Figures(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Figures(vec![4.0, 1.0]).median(), 2.5);
        assert_eq!(Figures(vec![4.0, 1.0]).text(), "2.5 (1.0-4.0)");
        assert!(Figures(vec![]).median().is_nan());
    }
}
