//! The report as text.

use dirigible_workload::report::{
    ColumnHost, Compiled, MemoryState, PassReport, Report, StallFigures, StallReport,
};

use crate::{
    args::Machine,
    checks,
    figures::{Runs, a_minute, cell, pass_label, percent_attainable},
    series_table,
    table::Table,
};

/// The tables of one or more runs, below `headline`.
pub fn text(headline: &str, reports: &[Report]) -> String {
    let runs = Runs(reports);
    let mut table = Table::new(runs.column_names());
    let passes = 0..runs.pass_names().len();
    series_table::rows(runs, &mut table);
    reference(runs, &mut table);
    events(runs, &mut table);
    for pass in passes.clone() {
        one_pass(runs, pass, &mut table);
    }
    whole_run(runs, &mut table);
    host(runs, &mut table);
    let mut text = format!("{headline}\n{table}");
    for pass in passes {
        text += &memory(runs, pass).to_string();
    }
    text += &format!("\n{}", series_table::NOTE);
    let remarks = checks::remarks(reports);
    for remark in remarks {
        text += &format!("{remark}\n");
    }
    text
}

/// Huge pages got, in per cent of the attainable, and how many.
fn reference(runs: Runs<'_>, table: &mut Table) {
    let passes = 0..runs.pass_names().len();
    table.section("Per cent of the attainable (what the totals of memory allow: one reference for all columns)");
    for pass in passes.clone() {
        runs.percent_row(table, pass, percent_attainable);
    }
    table.section("Huge pages");
    for pass in passes {
        let label = pass_label(&runs.pass_names()[pass]);
        runs.pass_row(table, pass, &label, 0, |pass| pass.allocated as f64);
        runs.pass_row(table, pass, "  of attainable", 0, |pass| {
            pass.attainable as f64
        });
        runs.pass_row(table, pass, "  of asked", 0, |pass| pass.asked as f64);
    }
}

/// All other figures of a pass.
fn one_pass(runs: Runs<'_>, pass: usize, table: &mut Table) {
    type Figure = fn(&PassReport) -> f64;
    const ROWS: &[(&str, usize, Figure)] = &[
        ("attempts", 0, |p| p.attempts as f64),
        ("got: a free block", 0, |p| p.got_free as f64),
        ("got: by compaction", 0, |p| p.got_compaction as f64),
        ("got: compaction after reclaim", 0, |p| p.got_reclaim as f64),
        ("failed: watermark", 0, |p| p.failed.watermark as f64),
        ("failed: deferred", 0, |p| p.failed.deferred as f64),
        ("failed: no block to empty", 0, |p| p.failed.no_block as f64),
        ("failed: block not emptied", 0, |p| p.failed.aborted as f64),
        ("cost of an attempt: median, us", 1, |p| {
            us(p.attempt_cost_ns.median)
        }),
        ("cost of an attempt: p99, us", 1, |p| {
            us(p.attempt_cost_ns.p99)
        }),
        ("cost of an attempt: max, us", 1, |p| {
            us(p.attempt_cost_ns.max)
        }),
        ("balloon, mean MiB", 1, |p| p.balloon_mean_mib.value()),
        ("balloon target, mean MiB", 1, |p| {
            p.balloon_target_mean_mib.value()
        }),
        ("balloon short of target, %", 1, |p| {
            p.balloon_shortfall.value()
        }),
        ("unmovable at the end (U), MiB", 1, |p| {
            p.unmovable
                .last()
                .map_or(0.0, |&frames| frames as f64 / 256.0)
        }),
        ("load at the end, MiB", 1, |p| p.load_mib.value()),
        ("  anonymous", 1, |p| p.load_anonymous_mib.value()),
        ("  kernel", 1, |p| p.load_kernel_mib.value()),
        ("pages of files at the end, MiB", 1, |p| p.files_mib.value()),
        ("hybrid blocks before", 0, |p| p.before.hybrid_blocks as f64),
        ("hybrid blocks at the end", 0, |p| p.hybrid_blocks as f64),
        ("blocks at the end: huge pages", 0, |p| {
            p.after.census.huge as f64
        }),
        ("  free", 0, |p| p.after.census.free as f64),
        ("  movable", 0, |p| p.after.census.movable as f64),
        ("  kernel", 0, |p| p.after.census.kernel as f64),
        ("  with reserved frames", 0, |p| {
            p.after.census.reserved as f64
        }),
        ("free frames stranded in them", 0, |p| {
            p.after.census.stranded_free_frames as f64
        }),
        ("pages moved: direct", 0, |p| p.moved_direct as f64),
        ("pages moved: background", 0, |p| p.moved_background as f64),
        ("pages moved per huge page", 1, |p| {
            p.moved_per_huge_page.value()
        }),
        ("moved to empty blocks", 0, |p| p.choice.moved as f64),
        ("  by the oracle", 0, |p| p.choice.oracle as f64),
        ("  ratio", 2, |p| p.choice.ratio.value()),
        ("balloon frames moved", 0, |p| p.balloon_frames_moved as f64),
        ("host messages for them", 0, |p| p.host_messages as f64),
    ];
    table.section(pass_label(&runs.pass_names()[pass]));
    for &(label, places, figure) in ROWS {
        // Which causes there are depends on the test: those that never occur are left out.
        let cause = ["got: ", "failed: ", "cost "]
            .iter()
            .any(|start| label.starts_with(start));
        let happened = || {
            runs.of_pass(pass, figure)
                .iter()
                .flatten()
                .any(|&value| value != 0.0)
        };
        if !cause || happened() {
            runs.pass_row(table, pass, label, places, figure);
        }
    }
}

/// Memory before a pass: buddyinfo, pagetypeinfo and the unusable-space index.
fn memory(runs: Runs<'_>, pass: usize) -> Table {
    let mut table = Table::new(
        ["blocks".to_string()]
            .into_iter()
            .chain((0..=10).map(order)),
    );
    table.section(format!(
        "Free runs by order before the pass: {}",
        pass_label(&runs.pass_names()[pass])
    ));
    let by_order = |values: &dyn Fn(&MemoryState, usize) -> Option<u64>, column: usize| {
        let of_order = |order: usize| {
            let states = runs
                .0
                .iter()
                .filter_map(|run| run.columns.get(column)?.passes.get(pass));
            let values: Vec<f64> = states
                .filter_map(|pass| values(&pass.before, order).map(|value| value as f64))
                .collect();
            cell(&values, 0)
        };
        (0..=10).map(of_order).collect::<Vec<_>>()
    };
    for (column, name) in runs.column_names().iter().enumerate() {
        let mut row = |label: String, blocks: &dyn Fn(&MemoryState) -> Option<u64>, rest| {
            let first = runs.of_columns(|known| {
                let state = known.passes.get(pass).filter(|_| known.name == *name)?;
                blocks(&state.before).map(|value| value as f64)
            });
            table.row(
                label,
                [cell(&first[column], 0)].into_iter().chain(rest).collect(),
            );
        };
        let buddy = by_order(&|state, order| state.buddyinfo.get(order).copied(), column);
        row(name.clone(), &|_| None, buddy);
        let types = runs
            .0
            .first()
            .and_then(|run| run.columns.get(column)?.passes.get(pass));
        let types = types.map_or(0, |pass| pass.before.pagetypeinfo.len());
        for kind in 0..types {
            let of = move |state: &MemoryState| state.pagetypeinfo.get(kind).cloned();
            let free = by_order(&|state, order| of(state)?.free.get(order).copied(), column);
            let known = runs.0[0].columns[column].passes[pass].before.pagetypeinfo[kind]
                .name
                .clone();
            row(
                format!("  {known}"),
                &|state| of(state).map(|kind| kind.blocks),
                free,
            );
        }
        let unusable = by_order(
            &|state, order| state.unusable_permille.get(order).copied(),
            column,
        );
        row("  unusable, thousandths".into(), &|_| None, unusable);
    }
    table
}

/// What is counted over the whole run.
fn whole_run(runs: Runs<'_>, table: &mut Table) {
    table.section("Whole run");
    runs.row(table, "MemTotal, MiB", 1, |c| c.mem_total_mib.value());
    runs.row(table, "elapsed on the guest's clock, s", 1, |c| {
        c.elapsed_ms as f64 / 1000.0
    });
    runs.row(table, "content errors", 0, |c| c.content_errors as f64);
    runs.row(table, "pages checked whole", 0, |c| c.pages_checked as f64);
    runs.row(table, "device errors", 0, |c| c.device_errors as f64);
    runs.row(table, "pages moved", 0, |c| c.pages_moved as f64);
    runs.row(table, "pages moved per huge page", 1, |c| {
        c.moved_per_huge_page.value()
    });
    runs.row(table, "moved to empty blocks", 0, |c| c.choice.moved as f64);
    runs.row(table, "  by the oracle", 0, |c| c.choice.oracle as f64);
    runs.row(table, "  ratio", 2, |c| c.choice.ratio.value());
    runs.row(table, "balloon frames moved", 0, |c| {
        c.balloon_frames_moved as f64
    });
    runs.row(table, "host messages for them", 0, |c| {
        c.host_messages as f64
    });
    runs.row(table, "host messages per frame", 4, |c| {
        c.messages_per_frame_moved.value()
    });
    runs.row(table, "host messages, all", 0, |c| {
        c.host_messages_total as f64
    });
    runs.row(table, "refused for the balloon's lock", 0, |c| {
        c.balloon_lock_refusals as f64
    });
    runs.row(table, "balloon under load, mean MiB", 1, |c| {
        c.balloon_mean_mib.value()
    });
    runs.row(table, "balloon target, mean MiB", 1, |c| {
        c.balloon_target_mean_mib.value()
    });
    runs.row(table, "balloon at its largest, MiB", 1, |c| {
        c.balloon_max_mib.value()
    });
    runs.row(table, "given back for want of memory", 0, |c| {
        c.oom_deflated as f64
    });
    stalls(runs, table);
    runs.row(table, "waits for memory", 0, |c| c.load.waits as f64);
    runs.row(table, "time waited, s", 1, |c| {
        c.load.waited_ms as f64 / 1000.0
    });
    runs.row(table, "files compiled", 0, |c| {
        c.load.compiled_in_all().0 as f64
    });
    let first = runs.0.first().and_then(|run| run.columns.first());
    let phases = first.map_or(&[][..], |column| &column.load.compiled);
    for Compiled { phase, .. } in phases {
        runs.row(table, &format!("  a minute, {phase}"), 1, |c| {
            let compiled = c.load.compiled.iter().find(|c| c.phase == *phase);
            let rate = compiled.and_then(|compiled| a_minute(compiled.files, compiled.ms));
            rate.unwrap_or(0.0)
        });
    }
    if let [only] = runs.0 {
        let hashes = only
            .columns
            .iter()
            .map(|column| column.targets_hash.clone());
        table.row("hash of the balloon's targets", hashes.collect());
    }
}

/// How long requests took that stalled.
fn stalls(runs: Runs<'_>, table: &mut Table) {
    type Of = fn(&StallReport) -> &StallFigures;
    const KINDS: [(&str, Of); 2] = [("base", |s| &s.base), ("huge", |s| &s.huge)];
    for (kind, of) in KINDS {
        runs.row(table, &format!("stalls, {kind} requests"), 0, |c| {
            of(&c.stalls).count as f64
        });
        runs.row(table, "  of which failed", 0, |c| {
            of(&c.stalls).failed as f64
        });
        runs.row(table, "  99.9 % took at most, us", 1, |c| {
            us(of(&c.stalls).p999_ns)
        });
        runs.row(table, "  longest, us", 1, |c| us(of(&c.stalls).max_ns));
    }
    runs.row(table, "starved by compaction at min", 0, |c| {
        c.stalls.min_failed as f64
    });
}

/// The events that occurred: the counters of a modern kernel, in the order of `/proc/vmstat`.
fn events(runs: Runs<'_>, table: &mut Table) {
    table.section("vm events of the whole run");
    let first = runs.0.first().and_then(|run| run.columns.first());
    for (name, _) in first.map_or(&[][..], |column| &column.vmstat.0) {
        let values = runs.of_columns(|column| Some(column.vmstat.get(name) as f64));
        if values.iter().flatten().any(|&value| value != 0.0) {
            table.row(name, values.iter().map(|values| cell(values, 0)).collect());
        }
    }
}

/// What was measured on the host.
fn host(runs: Runs<'_>, table: &mut Table) {
    let Some(first) = runs.0.first().and_then(|run| run.host.as_ref()) else {
        return;
    };
    // Under QEMU, QEMU discards memory and does not count its calls.
    let hosted = runs.0.iter().all(|run| run.machine != Machine::Qemu.name());
    let process_madvise = match (hosted, first.facts.process_madvise) {
        (false, _) => "",
        (true, true) => ", with process_madvise",
        (true, false) => ", without process_madvise",
    };
    table.section(format!(
        "Host: {}, {} CPUs{process_madvise}",
        first.facts.kernel, first.facts.cpus
    ));
    let row = |table: &mut Table, label: &str, places, figure: &dyn Fn(&ColumnHost) -> f64| {
        let of_column = |index: usize| {
            let hosts = runs
                .0
                .iter()
                .filter_map(|run| run.host.as_ref()?.columns.get(index));
            cell(&hosts.map(figure).collect::<Vec<_>>(), places)
        };
        table.row(
            label,
            (0..runs.column_names().len()).map(of_column).collect(),
        );
    };
    row(table, "running time, s", 1, &|host| {
        host.wall_ms as f64 / 1000.0
    });
    row(table, "  user", 1, &|host| host.user_ms as f64 / 1000.0);
    row(table, "  system", 1, &|host| host.system_ms as f64 / 1000.0);
    if hosted {
        row(table, "calls that discard memory", 0, &|host| {
            host.discard_calls as f64
        });
    }
    row(table, "resident, balloon empty, MiB", 1, &|host| {
        host.residency.empty_balloon_mib.value()
    });
    row(table, "resident, balloon full, MiB", 1, &|host| {
        host.residency.full_balloon_mib.value()
    });
    row(table, "  in the balloon then", 1, &|host| {
        host.residency.balloon_mib.value()
    });
    for (pass, name) in runs.pass_names().iter().enumerate() {
        let label = pass_label(name);
        let of =
            move |host: &ColumnHost| host.attempts.get(pass).map_or(Default::default(), |a| a.ns);
        row(table, &format!("{label}: median attempt, us"), 1, &|host| {
            us(of(host).median)
        });
        row(table, "  p99", 1, &|host| us(of(host).p99));
        row(table, "  max", 1, &|host| us(of(host).max));
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

fn order(order: usize) -> String {
    order.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_table_of_one_run() {
        insta::assert_snapshot!(text("hosted machine, a made-up run", &[fixture::report(1)]));
    }

    #[test]
    fn the_table_of_several_runs() {
        let reports: Vec<Report> = (1..=4).map(fixture::report).collect();
        insta::assert_snapshot!(text("hosted machine, four made-up runs", &reports));
    }

    #[test]
    fn under_qemu_the_hosts_own_calls_are_not_counted() {
        let mut report = fixture::report(1);
        report.machine = "qemu".into();
        let text = text("", &[report]);
        assert!(
            !text.contains("madvise") && !text.contains("discard memory"),
            "{text}"
        );
    }

    #[test]
    fn a_report_without_host_or_columns_is_a_table_too() {
        let mut report = fixture::report(1);
        report.host = None;
        assert!(!text("", &[report.clone()]).contains("Host:"));
        report.columns.clear();
        assert!(text("head", &[report]).starts_with("head\n"));
        assert!(text("head", &[]).starts_with("head\n"));
    }
}
