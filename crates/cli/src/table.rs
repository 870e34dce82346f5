//! A text table: labels on the left, columns of figures right-aligned.

use std::fmt;

/// Sections of rows, each under a title and the head; rows may have fewer cells than the head.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<String>,
    /// The least width of the labels.
    labels: usize,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
enum Row {
    Figures { label: String, cells: Vec<String> },
    Section(String),
}

impl Table {
    /// An empty table whose columns are called `head`.
    pub fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            labels: 24,
            rows: Vec::new(),
        }
    }

    /// The same, with labels no wider than they need.
    pub fn with_narrow_labels(self) -> Self {
        Self { labels: 0, ..self }
    }

    /// Adds the head as a row with a label.
    pub fn head_row(&mut self, label: impl Into<String>) {
        let head = self.head.clone();
        self.row(label, head);
    }

    /// Adds a row.
    pub fn row(&mut self, label: impl Into<String>, cells: Vec<String>) {
        self.rows.push(Row::Figures {
            label: label.into(),
            cells,
        });
    }

    /// Begins a section: an empty line, the title and the head above the rows that follow.
    pub fn section(&mut self, title: impl Into<String>) {
        self.rows.push(Row::Section(title.into()));
    }

    fn widths(&self) -> (usize, Vec<usize>) {
        let mut label_width = self.labels;
        let mut widths: Vec<usize> = self.head.iter().map(|cell| width(cell).max(5)).collect();
        for row in &self.rows {
            let Row::Figures { label, cells } = row else {
                continue;
            };
            label_width = label_width.max(width(label));
            for (at_least, cell) in widths.iter_mut().zip(cells) {
                *at_least = width(cell).max(*at_least);
            }
        }
        (label_width, widths)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (label_width, widths) = self.widths();
        let line = |f: &mut fmt::Formatter<'_>, label: &str, cells: &[String]| {
            let mut text = format!("{label:<label_width$}");
            for (cell, width) in cells.iter().zip(&widths) {
                text += &format!("   {cell:>width$}");
            }
            writeln!(f, "{}", text.trim_end())
        };
        for row in &self.rows {
            match row {
                Row::Figures { label, cells } => line(f, label, cells)?,
                Row::Section(title) => {
                    write!(f, "\n{title}\n")?;
                    line(f, "", &self.head)?;
                }
            }
        }
        Ok(())
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_aligned_on_the_right_and_lines_end_without_blanks() {
        let mut table = Table::new(["pinned", "movable"]);
        table.section("Per cent");
        table.row("Pass 1", vec!["47".into(), "85 (38)".into()]);
        table.section("Events");
        table.row(
            "a_very_long_name_of_an_event",
            vec!["1".into(), "1234567890".into()],
        );
        table.row("short", vec![]);
        insta::assert_snapshot!(table.to_string(), @r"

        Per cent
                                       pinned      movable
        Pass 1                             47      85 (38)

        Events
                                       pinned      movable
        a_very_long_name_of_an_event        1   1234567890
        short
        ");
    }
}
