//! Section `metadata`: what the books cost.

use std::fmt;

use serde_json::{Value, json};

use crate::Run;
use crate::peers::Contestant;
use crate::progress;
use crate::report::Report;

/// Frames for which the metadata is counted: 4 GiB, as in the runs.
const FRAMES: usize = 1 << 20;
const GIBS: usize = FRAMES >> 18;

/// Descriptors and metadata of this crate are to be no more than this, per cent of the memory.
const AIM: f64 = 0.32;

/// Bytes of metadata for [`FRAMES`].
pub struct Metadata {
    rows: Vec<Row>,
}

struct Row {
    contestant: Contestant,
    state: &'static str,
    bytes: usize,
}

/// Asks every allocator.
pub fn run(run: &Run) -> Metadata {
    progress::show("metadata");
    let of = |&contestant: &Contestant| {
        let states = contestant.metadata(FRAMES).into_iter();
        states.map(move |(state, bytes)| Row {
            contestant,
            state,
            bytes,
        })
    };
    Metadata {
        rows: run.contestants.iter().flat_map(of).collect(),
    }
}

impl Row {
    fn per_cent(&self) -> f64 {
        self.bytes as f64 * 100.0 / (FRAMES * 4096) as f64
    }
}

impl Metadata {
    /// What this crate needs for the machine of the runs.
    fn ours(&self) -> Option<usize> {
        let ours = self
            .rows
            .iter()
            .find(|row| row.contestant == Contestant::Dirigible);
        ours.map(|row| row.bytes)
    }

    /// Ours divided by `row`, for a row of somebody else.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let theirs = (row.contestant != Contestant::Dirigible).then_some(row.bytes)?;
        Some(self.ours()? as f64 / theirs as f64)
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:56} {:>13} {:>12} {:>13}",
            "metadata, 4 GiB managed", "bytes per GiB", "% of memory", "ours/theirs"
        )?;
        for row in &self.rows {
            let name = format!("{}: {}", row.contestant.name(), row.state);
            let ratio = self
                .ratio(row)
                .map_or_else(String::new, |r| format!("{r:.1}"));
            let (bytes, per_cent) = (row.bytes / GIBS, row.per_cent());
            writeln!(f, "{name:56} {bytes:>13} {per_cent:>12.4} {ratio:>13}")?;
        }
        writeln!(
            f,
            "aim of dirigible-frames: at most {AIM} %, the descriptor of each frame included\n"
        )
    }
}

impl Report for Metadata {
    fn json(&self) -> Value {
        let result = |row: &Row| {
            json!({
                "allocator": row.contestant.name(), "state": row.state, "bytes_per_gib": row.bytes / GIBS,
                "per_cent": row.per_cent(), "ours_divided_by_it": self.ratio(row),
            })
        };
        json!({ "aim_per_cent": AIM, "results": self.rows.iter().map(result).collect::<Vec<_>>() })
    }
}
