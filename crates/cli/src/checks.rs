//! Faults, which make a result invalid, and warnings, which make columns hard to compare.

use dirigible_workload::{
    report::{ColumnReport, MOST_SHORTFALL, PassReport, Report},
    timeline::Timeline,
};

/// The largest difference of the load of two columns, as a part of it.
const LOAD_DEVIATION: f64 = 0.02;

/// Lines below the table: faults and warnings.
pub fn remarks(reports: &[Report]) -> Vec<String> {
    let of_run = |report: &Report| {
        let prefix = match reports.len() {
            1 => String::new(),
            _ => format!("seed {}, ", report.parameters.seed),
        };
        let faults = faults(report)
            .into_iter()
            .map(|text| format!("FAULT: {text}"));
        let warnings = warnings(report)
            .into_iter()
            .map(|text| format!("note: {text}"));
        faults
            .chain(warnings)
            .map(|text| text.replacen(": ", &format!(": {prefix}"), 1))
            .collect()
    };
    reports
        .iter()
        .flat_map(|report| -> Vec<String> { of_run(report) })
        .collect()
}

/// What must not be overlooked: faults, and rows that do not count.
pub fn verdicts(reports: &[Report]) -> Vec<String> {
    let seed = |report: &Report| match reports.len() {
        1 => String::new(),
        _ => format!("seed {}, ", report.parameters.seed),
    };
    let mut verdicts: Vec<String> = reports
        .iter()
        .flat_map(|report| {
            let prefix = seed(report);
            let told = move |fault| format!("FAULT: {prefix}{fault}");
            faults(report).into_iter().map(told)
        })
        .collect();
    let all: Vec<_> = reports.iter().flat_map(disqualified).collect();
    let most = all.iter().map(|(_, pass)| pass.balloon_shortfall).max();
    if let Some(most) = most {
        let named = |(column, pass): &(&ColumnReport, &PassReport)| {
            format!("{}, {}", column.name, pass.name)
        };
        let which = match reports.len() {
            1 if all.len() <= 2 => all.iter().map(named).collect::<Vec<_>>().join("; "),
            _ => {
                let columns = reports.iter().flat_map(|report| &report.columns);
                let passes: usize = columns.map(|column| column.passes.len()).sum();
                format!("{} of {passes} results, named by --full", all.len())
            }
        };
        verdicts.push(format!(
            "DISQUALIFIED (!): {which}: the balloon was more than {MOST_SHORTFALL} % short of its target (up to {most} %)"
        ));
    }
    verdicts
}

/// The passes that do not count.
fn disqualified(report: &Report) -> impl Iterator<Item = (&ColumnReport, &PassReport)> {
    report.columns.iter().flat_map(|column| {
        let passes = column.passes.iter().filter(|pass| pass.disqualified);
        passes.map(move |pass| (column, pass))
    })
}

/// The faults of a run: with any, it has failed.
pub fn faults(report: &Report) -> Vec<String> {
    report.columns.iter().flat_map(column_faults).collect()
}

/// The faults of a column.
pub fn column_faults(column: &ColumnReport) -> Vec<String> {
    let counts = [
        (column.content_errors, "content errors"),
        (column.device_errors, "device errors"),
        (column.disk.read_errors, "blocks that could not be read"),
        (column.disk.write_errors, "blocks that could not be written"),
        (
            column.disk.abandoned_frames,
            "frames lost to a disk that cannot be stopped",
        ),
        (column.disk.lost_blocks, "blocks lost to the file store"),
        (column.disk.lost_inodes, "inodes lost to the file store"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count != 0);
    let counts = counts.map(|(count, what)| format!("{count} {what}"));
    counts
        .chain(broken_identities(column))
        .map(|text| format!("{}: {text}", column.name))
        .collect()
}

/// Identities between counters that do not hold. At the end of a run nothing is isolated, so they have to.
fn broken_identities(column: &ColumnReport) -> Vec<String> {
    let event = |name: &str| column.vmstat.get(name);
    let mut broken = Vec::new();
    let mut equal = |whole: &str, parts: &[&str]| {
        let sum: u64 = parts.iter().map(|part| event(part)).sum();
        if event(whole) != sum {
            broken.push(format!(
                "{whole} is {} and {} is {sum}",
                event(whole),
                parts.join(" + ")
            ));
        }
    };
    equal("compact_stall", &["compact_success", "compact_fail"]);
    equal(
        "compact_balloon_isolated",
        &["compact_balloon_migrated", "compact_balloon_returned"],
    );
    equal("compact_balloon_released", &["compact_balloon_migrated"]);
    broken
}

/// The warnings of a run.
fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for (column, pass) in disqualified(report) {
        warnings.push(format!(
                "{}, {}: DISQUALIFIED: the balloon held {} MiB of {}, {} % too little (more than {MOST_SHORTFALL} %)",
                column.name,
                pass.name,
                pass.balloon_mean_mib,
                pass.balloon_target_mean_mib,
                pass.balloon_shortfall
            ));
    }
    for column in &report.columns {
        for failure in &column.load.failures {
            warnings.push(format!(
                "{}: {} times the program `{}` gave up: {}",
                column.name, failure.times, failure.program, failure.failure
            ));
        }
    }
    warnings.extend(late(report));
    let Some((first, others)) = report.columns.split_first() else {
        return warnings;
    };
    for other in others {
        for (pass, reference) in other.passes.iter().zip(&first.passes) {
            let (load, expected) = (pass.load_mib.value(), reference.load_mib.value());
            if (load - expected).abs() > LOAD_DEVIATION * expected {
                warnings.push(format!(
                    "{}: {} holds a load of {load:.1} MiB and {} of {expected:.1} MiB, which differ by more than 2 %",
                    pass.name, other.name, first.name
                ));
            }
        }
    }
    warnings
}

/// The columns whose rested pass began late: cleaning up took longer than the plan has for it.
fn late(report: &Report) -> Vec<String> {
    let timeline = Timeline::new(&report.parameters);
    let planned = timeline.phases.iter().find(|phase| phase.name == "rested");
    let Some(planned) = planned.map(|phase| phase.at / 1_000_000) else {
        return Vec::new();
    };
    let late = |column: &ColumnReport| {
        let pass = column.passes.iter().find(|pass| pass.name == "rested")?;
        let seconds = pass.start_ms.saturating_sub(planned) / 1000;
        (seconds > 0).then(|| format!("{}: the rested pass began {seconds} s late", column.name))
    };
    report.columns.iter().filter_map(late).collect()
}

#[cfg(test)]
mod tests {
    use dirigible_workload::report::{Tenths, VmStat};

    use super::*;
    use crate::fixture;

    #[test]
    fn a_sound_report_has_no_remarks() {
        assert_eq!(remarks(&[fixture::report(1)]), [""; 0]);
    }

    #[test]
    fn content_errors_and_broken_identities_are_faults() {
        let mut report = fixture::report(1);
        report.columns[1].content_errors = 3;
        report.columns[2].vmstat = VmStat(vec![
            ("compact_stall".into(), 5),
            ("compact_fail".into(), 4),
        ]);
        assert_eq!(
            faults(&report),
            [
                "movable: 3 content errors",
                "steered: compact_stall is 5 and compact_success + compact_fail is 4"
            ]
        );
    }

    /// A column must not win by failing to inflate, or by carrying less.
    #[test]
    fn pitfall_92_a_small_balloon_or_load_is_told() {
        let mut report = fixture::report(1);
        let change = |pass: &mut PassReport, shortfall: f64, load: f64| {
            pass.balloon_shortfall = Tenths::from_value(shortfall);
            pass.disqualified = pass.balloon_shortfall > MOST_SHORTFALL;
            pass.load_mib = Tenths::from_value(pass.load_mib.value() * load);
        };
        change(&mut report.columns[1].passes[0], 2.0, 0.985);
        assert_eq!(warnings(&report), [""; 0]);
        change(&mut report.columns[1].passes[0], 2.1, 0.97);
        let warnings = warnings(&report);
        assert!(
            warnings[0].contains(
                "movable, pass1: DISQUALIFIED: the balloon held 382.2 MiB of 383.0, 2.1 %"
            ),
            "{warnings:?}"
        );
        assert!(
            warnings[1].contains("pass1: movable holds a load of"),
            "{warnings:?}"
        );
        assert_eq!(warnings.len(), 2);
    }
}
