//! Section `boot`: how long a kernel waits for its allocator, `FrameAllocator::new` on memory of several sizes.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use dirigible_frames::{Config, FrameAllocator, Pfn};
use serde_json::{Value, json};

use crate::Run;
use crate::peers::{Contestant, with_config};
use crate::progress;
use crate::report::{Figure, Report, short};

/// What is managed, in frames; 1, 16 and 64 GiB.
const SIZES: [usize; 3] = [1 << 18, 1 << 22, 1 << 24];
const SMOKE_SIZES: [usize; 3] = [1 << 12, 1 << 13, 1 << 14];
const GIB: f64 = (1 << 18) as f64;
/// For which the time is extrapolated, GiB.
const EXTRAPOLATED: f64 = 1024.0;

/// How many ranges are reserved, and how long each is: neither begins nor ends with a block.
const RESERVED: [usize; 2] = [0, 64];
const RESERVED_FRAMES: u64 = 37;

/// Each is repeated so often, if there is time. A look ends after the first.
const REPEATS: usize = 5;
const BUDGETS: [Duration; 2] = [Duration::from_secs(3), Duration::ZERO];

/// The figures for one size, ms.
struct Row {
    frames: usize,
    reserved: usize,
    bytes: usize,
    /// With metadata memory that nobody has touched.
    fresh: Figure,
    /// The same memory a second time.
    again: Figure,
}

/// All that was measured; empty if this crate does not take part.
pub struct Boot {
    rows: Vec<Row>,
}

/// Boots with each size.
pub fn run(run: &Run) -> Boot {
    let ours = run.contestants.contains(&Contestant::Dirigible);
    let sizes = if run.scale.is_smoke() {
        SMOKE_SIZES
    } else {
        SIZES
    };
    let budget = BUDGETS[usize::from(!run.scale.is_full())];
    let cases = RESERVED
        .into_iter()
        .flat_map(|reserved| sizes.map(|frames| (frames, reserved)));
    let rows = cases.filter(|_| ours).map(|(frames, reserved)| {
        progress::show(&format!(
            "boot: {} GiB, {reserved} ranges",
            frames as f64 / GIB
        ));
        measure(frames, reserved, budget)
    });
    Boot {
        rows: rows.collect(),
    }
}

fn measure(frames: usize, reserved: usize, budget: Duration) -> Row {
    let step = frames / (reserved + 1);
    let range = |number: usize| {
        let first = Pfn::new((number * step) as u64 + 5);
        first..first.plus(RESERVED_FRAMES)
    };
    let ranges: Vec<Range<Pfn>> = (1..=reserved).map(range).collect();
    with_config(frames, 2, |config| {
        let config = Config {
            reserved: &ranges,
            ..*config
        };
        let bytes = FrameAllocator::metadata_bytes(&config).expect("a sound configuration");
        let mut row = Row {
            frames,
            reserved,
            bytes,
            fresh: Figure::default(),
            again: Figure::default(),
        };
        let begun = Instant::now();
        for _ in 0..REPEATS {
            // Zeroed memory of this size is a fresh mapping: its pages come with the first touch.
            let mut memory = vec![0; bytes];
            for figure in [&mut row.fresh, &mut row.again] {
                let start = Instant::now();
                let allocator = FrameAllocator::new(&config, &mut memory).expect("enough metadata");
                figure.add(start.elapsed().as_secs_f64() * 1e3);
                let managed = frames as u64 - reserved as u64 * RESERVED_FRAMES;
                assert_eq!(allocator.managed_frames(), managed);
                assert_eq!(allocator.free_frames(), managed);
            }
            if begun.elapsed() > budget {
                break;
            }
        }
        row
    })
}

impl Row {
    fn gib(&self) -> f64 {
        self.frames as f64 / GIB
    }

    fn per_gib(&self, figure: &Figure) -> Option<f64> {
        Some(figure.median()? / self.gib())
    }
}

fn fine(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"))
}

impl Boot {
    /// The largest size extrapolated to [`EXTRAPOLATED`], ms: fresh memory, and again.
    fn extrapolated(&self, reserved: usize) -> Option<[f64; 2]> {
        let with = self.rows.iter().filter(|row| row.reserved == reserved);
        let largest = with.max_by_key(|row| row.frames)?;
        let scaled = |figure| Some(largest.per_gib(figure)? * EXTRAPOLATED);
        Some([scaled(&largest.fresh)?, scaled(&largest.again)?])
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "boot: ms for FrameAllocator::new, medians of up to {REPEATS}; fresh: its memory comes by page faults;"
        )?;
        writeln!(f, "again: the same memory once more, without them")?;
        writeln!(
            f,
            "{:28} {:>12} {:>12} {:>10} {:>10} {:>16} {:>16}",
            "", "MiB metadata", "fresh", "again", "fresh/GiB", "again/GiB", "quartiles fresh"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:28} {:>12} {:>12} {:>10} {:>10} {:>16} {:>16}",
                format!("{} GiB, {} reserved ranges", row.gib(), row.reserved),
                row.bytes >> 20,
                fine(row.fresh.median()),
                fine(row.again.median()),
                fine(row.per_gib(&row.fresh)),
                fine(row.per_gib(&row.again)),
                row.fresh.spread(),
            )?;
        }
        for reserved in RESERVED {
            if let Some([fresh, again]) = self.extrapolated(reserved) {
                writeln!(
                    f,
                    "{:41} {:>12} {:>10}",
                    format!("1 TiB, {reserved} reserved ranges, extrapolated"),
                    short(fresh),
                    short(again)
                )?;
            }
        }
        writeln!(f)
    }
}

impl Report for Boot {
    fn json(&self) -> Value {
        let result = |row: &Row| {
            json!({
                "gib": row.gib(), "reserved_ranges": row.reserved, "metadata_bytes": row.bytes,
                "fresh": row.fresh.json(), "again": row.again.json(),
                "fresh_per_gib": row.per_gib(&row.fresh), "again_per_gib": row.per_gib(&row.again),
            })
        };
        let extrapolated = |reserved| {
            self.extrapolated(reserved).map(|[fresh, again]| {
                json!({ "gib": EXTRAPOLATED, "reserved_ranges": reserved, "fresh": fresh, "again": again })
            })
        };
        json!({
            "unit": "ms",
            "results": self.rows.iter().map(result).collect::<Vec<_>>(),
            "extrapolated": RESERVED.into_iter().filter_map(extrapolated).collect::<Vec<_>>(),
        })
    }
}
