//! What all sections print: medians with their spread, tables, and the ratios below them.

use std::fmt;

use serde_json::{Value, json};

use crate::peers::Contestant;

/// What a section found.
pub trait Report: fmt::Display {
    /// The same for machines.
    fn json(&self) -> Value;
    /// Panics if the allocators did not do what was asked of them: for runs that are not timed.
    fn check(&self) {}
}

/// The middle value, `None` of nothing. Sorts `values`.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// One figure, taken in each pass.
#[derive(Clone, Debug, Default)]
pub struct Figure(Vec<f64>);

impl Figure {
    /// Notes the sample of one pass, if it has one.
    pub fn add(&mut self, sample: impl Into<Option<f64>>) {
        self.0.extend(sample.into());
    }

    /// How many passes had a sample.
    pub fn samples(&self) -> usize {
        self.0.len()
    }

    /// The median over the passes.
    pub fn median(&self) -> Option<f64> {
        median(&mut self.0.clone())
    }

    /// The largest sample.
    pub fn max(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    /// First and third quartile.
    fn quartiles(&self) -> Option<[f64; 2]> {
        let mut sorted = self.0.clone();
        median(&mut sorted)?;
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Some([at(0.25), at(0.75)])
    }

    /// The quartiles as "9.8..10.4".
    pub fn spread(&self) -> String {
        self.quartiles().map_or_else(missing, |[first, third]| {
            format!("{}..{}", short(first), short(third))
        })
    }

    /// Median, quartiles, extremes, and how many samples there are.
    pub fn json(&self) -> Value {
        let Some([first, third]) = self.quartiles() else {
            return Value::Null;
        };
        let min = self.0.iter().copied().min_by(f64::total_cmp);
        json!({
            "median": self.median(), "q1": first, "q3": third,
            "min": min, "max": self.max(), "samples": self.samples(),
        })
    }
}

fn missing() -> String {
    "-".to_owned()
}

/// A figure with as many digits as mean something.
pub fn short(value: f64) -> String {
    match value {
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A ratio likewise.
fn ratio(value: f64) -> String {
    match value {
        v if v < 0.01 => format!("{v:.1e}"),
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 10.0 => format!("{v:.2}"),
        v => format!("{v:.1}"),
    }
}

/// Some of `values` as text.
pub fn texts(values: &[Option<f64>], text: fn(f64) -> String) -> Vec<String> {
    let text = |value: &Option<f64>| value.map_or_else(missing, text);
    values.iter().map(text).collect()
}

/// A table with a row for each allocator and ratios below.
pub struct Grid {
    text: String,
    /// The widths of the names of rows and of a column.
    widths: [usize; 2],
    ours: Option<Vec<Option<f64>>>,
    peers: Vec<(String, Vec<Option<f64>>)>,
}

impl Grid {
    /// An empty one; `widths` are those of the names and of a column.
    pub fn new(title: &str, widths: [usize; 2], columns: &[&str]) -> Self {
        let mut grid = Self {
            text: format!("{title}\n"),
            widths,
            ours: None,
            peers: Vec::new(),
        };
        grid.line("", columns);
        grid
    }

    /// A line of text.
    pub fn line<T: AsRef<str>>(&mut self, name: &str, cells: &[T]) {
        let [names, column] = self.widths;
        let mut line = format!("{name:names$}");
        for cell in cells {
            line += &format!(" {:>width$}", cell.as_ref(), width = column - 1);
        }
        self.text += line.trim_end();
        self.text.push('\n');
    }

    /// The row of an allocator.
    pub fn row(&mut self, contestant: Contestant, values: &[Option<f64>]) {
        self.row_as(contestant, &texts(values, short), values);
    }

    /// The same, written as `shown`; ratios are of `values`.
    pub fn row_as(&mut self, contestant: Contestant, shown: &[String], values: &[Option<f64>]) {
        self.line(contestant.name(), shown);
        if contestant == Contestant::Dirigible {
            self.ours = Some(values.to_vec());
        } else {
            self.peers
                .push((contestant.name().to_owned(), values.to_vec()));
        }
    }

    /// Something to divide by that has no row of its own here.
    pub fn divisor(&mut self, name: &str, values: &[Option<f64>]) {
        self.peers.push((name.to_owned(), values.to_vec()));
    }

    /// Writes what ours is, divided by the others.
    pub fn ratios(&mut self) {
        let Some(ours) = self.ours.clone() else {
            return;
        };
        if self.peers.is_empty() {
            return;
        }
        self.line::<&str>("dirigible-frames divided by", &[]);
        for (name, values) in std::mem::take(&mut self.peers) {
            self.ratio_line(&format!("  {name}"), &divided(&ours, &values));
        }
    }

    /// A line of ratios.
    pub fn ratio_line(&mut self, name: &str, values: &[Option<f64>]) {
        self.line(name, &texts(values, ratio));
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Each of `values` divided by its counterpart, where there are both.
pub fn divided(values: &[Option<f64>], by: &[Option<f64>]) -> Vec<Option<f64>> {
    let divide = |(value, by): (&Option<f64>, &Option<f64>)| Some((*value)? / (*by)?);
    values.iter().zip(by).map(divide).collect()
}

/// The figure of allocator number `which` as JSON, if it is ours with its ratios to the peers'.
pub fn figure_json<'a>(
    contestants: &[Contestant],
    which: usize,
    of: impl Fn(usize) -> &'a Figure,
) -> Value {
    let mut value = of(which).json();
    if contestants[which] == Contestant::Dirigible && value.is_object() {
        let ours = of(which).median();
        let peers = contestants
            .iter()
            .enumerate()
            .filter(|peer| peer.0 != which);
        let ratio = |(peer, contestant): (usize, &Contestant)| {
            let ratio = ours? / of(peer).median()?;
            Some((contestant.name().to_owned(), json!(ratio)))
        };
        value["divided_by"] = Value::Object(peers.filter_map(ratio).collect());
    }
    value
}
