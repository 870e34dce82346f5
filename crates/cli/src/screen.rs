//! The result on one screen: what was got, what could be had, what it cost, and how to see the rest.

use dirigible_workload::{
    report::{ColumnReport, PassReport, Report},
    series::{Counters, ROWS},
};

use crate::{
    checks,
    figures::{Runs, a_minute, pass_label, percent_asked, percent_attainable},
    summary::{Spread, spread},
    table::Table,
};

/// Columns of the screen.
const WIDTH: usize = 100;

/// The screen below `headline`, for one or more runs.
pub fn text(headline: &str, reports: &[Report]) -> String {
    let runs = Runs(reports);
    let passes = runs.pass_names();
    let mut table = Table::new(runs.column_names()).with_narrow_labels();
    table.head_row("got, % of asked/had");
    for (pass, name) in passes.iter().enumerate() {
        table.row(pass_label(name), got(runs, pass));
    }
    table.row("", vec![]);
    costs(runs, &mut table);
    let mut lines = folded(headline, &[';', ',']);
    // A folded headline takes the empty line's place.
    if lines.lines().count() == 1 {
        lines.push('\n');
    }
    for (number, line) in table.to_string().lines().enumerate() {
        // One line for all columns.
        if number == passes.len() + 1 {
            lines += &reference(runs);
        }
        lines += &format!("{line}\n");
    }
    lines += "All figures: --full. Everything as JSON: --json FILE. What they mean: docs/experiment.md\n";
    for verdict in checks::verdicts(reports) {
        lines += &folded(&verdict, &[' ']);
    }
    lines
}

/// `text` in lines of the screen's width, broken after one of these characters.
fn folded(text: &str, after: &[char]) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for part in text.split_inclusive(after) {
        let length = part.chars().count();
        if width > 0 && width + length > WIDTH {
            lines.push('\n');
            width = 0;
        }
        let part = if width == 0 { part.trim_start() } else { part };
        lines += part;
        width += part.chars().count();
    }
    // No blank stands at the end of a line.
    let trimmed: Vec<&str> = lines.lines().map(str::trim_end).collect();
    trimmed.join("\n") + "\n"
}

/// A pass of each column: per cent of those asked for and of the attainable.
fn got(runs: Runs<'_>, pass: usize) -> Vec<String> {
    let of = |figure: fn(&PassReport) -> f64| runs.of_pass(pass, figure);
    let (asked, attainable) = (of(percent_asked), of(percent_attainable));
    let disqualified = of(|pass| f64::from(u8::from(pass.disqualified)));
    let cells = asked.iter().zip(&attainable).zip(&disqualified);
    cells
        .map(|((asked, attainable), disqualified)| {
            let mark = if disqualified.contains(&1.0) { "!" } else { "" };
            let (Some(asked), Some(attainable)) = (spread(asked), spread(attainable)) else {
                return "-".into();
            };
            let whole = |value: f64| format!("{:.0}", value.floor());
            let pair =
                |of: fn(Spread) -> f64| format!("{}/{}", whole(of(asked)), whole(of(attainable)));
            let (median, min, max) = (pair(|s| s.median), pair(|s| s.min), pair(|s| s.max));
            let range = if min == max {
                String::new()
            } else {
                format!(" [{min}-{max}]")
            };
            format!("{median}{mark}{range}")
        })
        .collect()
}

/// The line that says what could be had.
fn reference(runs: Runs<'_>) -> String {
    let of = |figure: fn(&PassReport) -> u64| -> Vec<String> {
        let of_pass = |pass| {
            let first = runs.of_pass(pass, |pass| figure(pass) as f64);
            let median = first.first().and_then(|values| spread(values));
            median.map_or(String::new(), |spread| format!("{:.0}", spread.median))
        };
        (0..runs.pass_names().len()).map(of_pass).collect()
    };
    let asked = of(|pass| pass.asked);
    let Some(first) = asked.first() else {
        return String::new();
    };
    format!(
        "could be had, by totals of memory: {} of {first} huge pages\n",
        of(|pass| pass.attainable).join(", ")
    )
}

/// What it cost.
fn costs(runs: Runs<'_>, table: &mut Table) {
    type Figure = fn(&ColumnReport) -> Option<f64>;
    let mut row = |label: &str, places: usize, figure: Figure| {
        let values = runs.of_columns(figure);
        table.row(
            label,
            values.iter().map(|values| cell(values, places)).collect(),
        );
    };
    row("moved per huge page", 1, |c| {
        Some(c.moved_per_huge_page.value())
    });
    row("compaction success, %", 1, |c| {
        share(c, "compact_success", "compact_fail")
    });
    row("compaction stalls", 0, |c| event(c, "compact_stall"));
    row("scanned, direct", 0, |c| event(c, "pgscan_direct"));
    row("scanned, kswapd", 0, |c| event(c, "pgscan_kswapd"));
    row("file writes, reclaim", 0, |c| series(c, "Page writes file"));
    row("THP fault success, %", 1, |c| {
        share(c, "thp_fault_alloc", "thp_fault_fallback")
    });
    row("refaults of files", 0, |c| {
        event(c, "workingset_refault_file")
    });
    row("files compiled a min.", 1, |c| {
        let (files, ms) = c.load.compiled_in_all();
        a_minute(files, ms)
    });
    row("balloon short, % most", 1, |c| {
        let of = |pass: &PassReport| pass.balloon_shortfall.value();
        c.passes.iter().map(of).reduce(f64::max)
    });
    let disk = |event: &'static str| runs.of_columns(move |c| Some(c.vmstat.get(event) as f64));
    let pairs = disk("pgpgin").into_iter().zip(disk("pgpgout"));
    let pair = |(read, written): (Vec<f64>, Vec<f64>)| {
        let median = |values: &[f64]| cell(&spread(values).map_or(vec![], |s| vec![s.median]), 0);
        format!("{}/{}", median(&read), median(&written))
    };
    table.row("disk in/out, KiB", pairs.map(pair).collect());
    let elapsed = runs.of_columns(|c| Some(c.elapsed_ms as f64 / 1000.0));
    table.row(
        "running time, guest s",
        elapsed.iter().map(|values| cell(values, 1)).collect(),
    );
}

fn event(column: &ColumnReport, name: &str) -> Option<f64> {
    Some(column.vmstat.get(name) as f64)
}

/// A row of the series.
fn series(column: &ColumnReport, label: &str) -> Option<f64> {
    let counters = Counters {
        vmstat: &column.vmstat,
        elapsed_ms: column.elapsed_ms,
    };
    let row = ROWS.iter().find(|row| row.label == label)?;
    Some(row.value(counters) as f64)
}

/// How many of 100 events were of the first kind; `None` if there were none of either.
fn share(column: &ColumnReport, good: &str, bad: &str) -> Option<f64> {
    let (good, bad) = (column.vmstat.get(good), column.vmstat.get(bad));
    (good + bad > 0).then(|| 100.0 * good as f64 / (good + bad) as f64)
}

/// The figure, or median and range of several; large numbers in thousands (`k`).
fn cell(values: &[f64], places: usize) -> String {
    let Some(Spread { median, min, max }) = spread(values) else {
        return "-".into();
    };
    let number = |value: f64| match value {
        value if value >= 1_000_000.0 => format!("{:.0}k", value / 1000.0),
        value => format!("{value:.places$}"),
    };
    if min == max {
        return number(median);
    }
    format!("{} [{}-{}]", number(median), number(min), number(max))
}

#[cfg(test)]
mod tests {
    use dirigible_workload::report::Tenths;

    use super::*;
    use crate::fixture;

    fn fits(text: &str) {
        assert!(text.lines().count() <= 24, "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(WIDTH), "{text}");
    }

    const HEADLINE: &str = "hosted machine, profile paper, seed 1; memory 4G; balloon 1G in steps of 256M, one each \
                            60s, cycle";

    #[test]
    fn the_screen_of_one_run() {
        let text = text(HEADLINE, &[fixture::report(1)]);
        fits(&text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_screen_of_several_runs() {
        let reports: Vec<Report> = (1..=4).map(fixture::report).collect();
        let text = text(HEADLINE, &reports);
        fits(&text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn six_tests_fit_too() {
        let mut report = fixture::report(1);
        for column in &mut report.columns {
            let passes = column.passes.clone();
            column.passes.extend(passes);
        }
        fits(&text(HEADLINE, &[report]));
    }

    #[test]
    fn a_row_that_does_not_count_is_marked_and_said_in_words() {
        let mut report = fixture::report(1);
        let pass = &mut report.columns[1].passes[0];
        pass.balloon_shortfall = Tenths::from_value(3.4);
        pass.disqualified = true;
        let text = text(HEADLINE, &[report]);
        let marked = text
            .lines()
            .find(|line| line.starts_with("Pass 1"))
            .unwrap();
        assert!(marked.contains("!") && !marked.ends_with('!'), "{marked}");
        assert!(text.contains("DISQUALIFIED (!): movable, pass1"), "{text}");
        fits(&text);
    }

    #[test]
    fn faults_are_on_the_screen() {
        let mut report = fixture::report(1);
        report.columns[2].content_errors = 2;
        let text = text(HEADLINE, &[report]);
        assert!(text.contains("FAULT: steered: 2 content errors"), "{text}");
    }

    #[test]
    fn long_headlines_are_folded() {
        let long = format!(
            "{HEADLINE}; load x 0.7; disk 16G; disk speed x 0.1; the host answers after 20ms"
        );
        let text = text(&long, &[fixture::report(1)]);
        fits(&text);
        assert!(text.contains("\nload x 0.7; disk 16G"), "{text}");
    }

    #[test]
    fn nothing_is_a_screen_too() {
        let mut report = fixture::report(1);
        report.columns.clear();
        fits(&text("head", &[report]));
        fits(&text("head", &[]));
    }

    #[test]
    fn large_numbers_are_short() {
        assert_eq!(cell(&[999_999.0], 0), "999999");
        assert_eq!(cell(&[3_104_073.0], 0), "3104k");
        assert_eq!(cell(&[1.0, 2_000_000.0, 3_000_000.0], 0), "2000k [1-3000k]");
        assert_eq!(cell(&[1.25], 1), "1.2");
    }
}
