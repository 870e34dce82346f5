//! The table of the 2012 patch series: its rows in its order.

use dirigible_workload::{
    report::ColumnHost,
    series::{Counters, ROWS, Unit},
};

use crate::{
    figures::{Runs, cell, percent_asked},
    table::Table,
};

/// What must be known to read the table.
pub const NOTE: &str = "\
User and System: the process on the host. Elapsed: the guest's clock. Page Ins and Outs: KiB. Velocity: pages a second.
Page rescued immediate: always 0, in Linux too; the counter was proposed in 2012 and never merged.
!: does not count, because the balloon was short of its target.
";

/// Adds the success rates, the durations and what the run cost.
pub fn rows(runs: Runs<'_>, table: &mut Table) {
    table.section("STRESS-HIGHALLOC: huge pages got, per cent of those asked for (difference to the first column)");
    for pass in 0..runs.pass_names().len() {
        runs.percent_row(table, pass, percent_asked);
    }
    table.section("Duration, s");
    duration(runs, table);
    table.section("The series' rows");
    for row in &ROWS {
        let (places, scale, unit) = match row.unit {
            Unit::Count => (0, 1.0, ""),
            Unit::Percent => (0, 1.0, "%"),
            Unit::PerSecond => (3, 1000.0, ""),
        };
        let values = runs.of_columns(|column| {
            let counters = Counters {
                vmstat: &column.vmstat,
                elapsed_ms: column.elapsed_ms,
            };
            Some(row.value(counters) as f64 / scale)
        });
        let cells = values
            .iter()
            .map(|values| format!("{}{unit}", cell(values, places)));
        table.row(row.label, cells.collect());
    }
}

fn duration(runs: Runs<'_>, table: &mut Table) {
    type Of = fn(&ColumnHost) -> u64;
    const HOST: [(&str, Of); 2] = [
        ("User", |host| host.user_ms),
        ("System", |host| host.system_ms),
    ];
    for (label, of) in HOST {
        let of_column = |index: usize| {
            let hosts = runs
                .0
                .iter()
                .filter_map(|run| run.host.as_ref()?.columns.get(index));
            let seconds: Vec<f64> = hosts.map(|host| of(host) as f64 / 1000.0).collect();
            cell(&seconds, 2)
        };
        // Without the host's measurements there is nothing to say.
        if runs.0.iter().any(|run| run.host.is_some()) {
            table.row(
                label,
                (0..runs.column_names().len()).map(of_column).collect(),
            );
        }
    }
    runs.row(table, "Elapsed", 2, |column| {
        column.elapsed_ms as f64 / 1000.0
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_rows_stand_in_the_series_order() {
        let reports = [fixture::report(1)];
        let mut table = Table::new(Runs(&reports).column_names());
        rows(Runs(&reports), &mut table);
        let text = table.to_string();
        let labels = [
            "Pass 1",
            "Pass 2",
            "while Rested",
            "User",
            "System",
            "Elapsed",
        ];
        let mut rest = text.lines();
        for label in labels.into_iter().chain(ROWS.map(|row| row.label)) {
            let found = rest.any(|line| line.starts_with(label));
            assert!(found, "{label} is missing or out of order: {text}");
        }
        assert!(text.contains("85 (39)"), "{text}");
        assert!(text.contains("100%"), "{text}");
    }
}
