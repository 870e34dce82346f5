//! What `cargo test` checks of the bench's own tools.

use std::time::{Duration, Instant};

use crate::args::{Args, Section};
use crate::gate::{self, Span};
use crate::histogram::Histogram;

/// All of them.
pub fn all() {
    histogram();
    overlap();
    arguments();
}

fn histogram() {
    let values = (0..64).flat_map(|shift| {
        [
            1u64 << shift,
            (1 << shift) | (1 << shift >> 1),
            u64::MAX >> shift,
        ]
    });
    for value in values {
        let histogram = Histogram::new();
        histogram.add(value);
        // Something larger, so that the maximum does not stand in for the bucket's end.
        histogram.add(u64::MAX);
        let found = histogram.quantile(0.5).expect("two values");
        assert!(
            found >= value && found - value <= value / 64,
            "{value} as {found}"
        );
    }
    assert_eq!(Histogram::new().quantile(0.5), None);
}

fn overlap() {
    let zero = Instant::now();
    let span = |start, end| {
        let at = |ms| zero + Duration::from_millis(ms);
        Span::new(at(start), at(end), 1000)
    };
    let ns = |spans: &[Span], cores| gate::round(spans, cores).map(f64::round);
    assert_eq!(ns(&[span(0, 10)], 2), Some(10_000.0));
    assert_eq!(ns(&[span(0, 10), span(1, 10)], 2), Some(9_500.0));
    assert_eq!(
        ns(&[span(0, 10), span(5, 15)], 2),
        None,
        "a third of the time together"
    );
    // Threads 0 and 2 share core 0 and run one after the other, as 1 and 3 on core 1.
    let four = [span(0, 5), span(1, 6), span(5, 10), span(6, 11)];
    assert_eq!(ns(&four, 2), Some(5_000.0));
    assert_eq!(ns(&four, 4), None);
    assert_eq!(ns(&[span(0, 5), span(5, 10)], 1), Some(5_000.0));
}

fn arguments() {
    let parse = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        Args::parse(&words)
    };
    let some = parse(&["--bench", "--only", "boot,speed"]).expect("two sections");
    assert_eq!(some.sections, [Section::Boot, Section::Speed]);
    assert_eq!(parse(&[]).expect("nothing").sections, Section::ALL);
    for wrong in [
        &["--only"][..],
        &["--only", "sped"],
        &["--fast"],
        &["--passes", "0"],
        &["nobody"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
