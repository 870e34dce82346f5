//! The whole machine with swap that is too small, or lies on a part of the disk that fails, is late or falls silent: only
//! programs whose pages are lost end, no contents are wrong, and all books balance.
#![allow(missing_docs)]

use dirigible_hosted::{
    DiskAccess, DiskCounters, DiskFault, DiskFaultPlan,
    run::{RunError, run_column_on_bad_disk},
};
use dirigible_workload::{
    params::{Column, Params, Profile},
    report::ColumnReport,
};

/// A guest whose programs do not fit into its memory.
fn tight() -> Params {
    Params {
        memory: 128 << 20,
        balloon: 24 << 20,
        step: 8 << 20,
        load_scale: 2000,
        time_scale: 200,
        ..Params::new(Profile::Paper)
    }
}

fn run(
    params: &Params,
    faults: Vec<DiskFaultPlan>,
) -> Result<(ColumnReport, DiskCounters), RunError> {
    let (run, disk) = run_column_on_bad_disk(Column::Steered, params, (u64::MAX, faults), &mut ())?;
    Ok((run.report, disk))
}

/// The same, which must end well.
fn ends_well(params: &Params, faults: Vec<DiskFaultPlan>) -> (ColumnReport, DiskCounters) {
    let what = format!("{:?}, {faults:?}", params.swap);
    let (report, disk) = run(params, faults).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((report.content_errors, report.device_errors), (0, 0));
    assert!(report.load.compiled_in_all().0 > 0, "{what}");
    assert_eq!(report.vmstat.get("oom_kill"), 0, "{what}");
    assert_eq!(report.disk.abandoned_frames, 0, "{what}");
    (report, disk)
}

fn compiled(report: &ColumnReport) -> u64 {
    report.load.compiled_in_all().0
}

/// The part of the disk that is swap is bad.
fn bad(fault: DiskFault) -> DiskFaultPlan {
    DiskFaultPlan::always(fault).within(tight().disk_bytes(), u64::MAX)
}

#[test]
fn swap_may_be_of_any_size_and_absent() {
    let (good, _) = ends_well(&tight(), Vec::new());
    assert!(good.vmstat.get("pswpout") > 1000 && good.vmstat.get("pswpin") > 1000);
    assert_eq!(good.vmstat.get("swap_full"), 0);
    for slots in [0, 1, 40, 1000] {
        let params = Params {
            swap: Some(slots << 12),
            ..tight()
        };
        let (report, _) = ends_well(&params, Vec::new());
        assert_eq!(report.load.failures, [], "{slots}");
        assert_eq!(compiled(&report), compiled(&good), "{slots}");
        let [out, full] = ["pswpout", "swap_full"].map(|event| report.vmstat.get(event));
        assert_eq!((out > 0, full > 0), (slots > 0, slots > 0), "{slots}");
        // It is not offered pages all the time while it is full.
        assert!(full <= 100, "{slots}: {full}");
    }
}

/// Each read that fails ends the program that wanted the page, and no other.
#[test]
fn reads_that_fail_end_only_those_who_wanted_the_pages() {
    let (good, _) = ends_well(&tight(), Vec::new());
    for every in [1, 3] {
        let plan = bad(DiskFault::Error).on(DiskAccess::Read).every(every);
        let (report, disk) = ends_well(&tight(), vec![plan]);
        let [lost] = &report.load.failures[..] else {
            panic!("{:?}", report.load.failures);
        };
        assert_eq!(lost.program, "compile");
        assert_eq!(lost.failure, "input or output error");
        assert!(lost.times > 0 && lost.times <= disk.faults, "{lost:?}");
        // Of the others nobody has ended: what they compile is done.
        let (all, done) = (compiled(&good), compiled(&report));
        assert!(
            done < all && done + 2 * lost.times >= all,
            "{done} of {all}"
        );
    }
}

/// What cannot be written stays in memory, and comes back from there. Swap is left alone after a few attempts: reclaim
/// works as without it.
#[test]
fn writes_that_fail_lose_nothing_and_are_not_tried_all_the_time() {
    let none = Params {
        swap: Some(0),
        ..tight()
    };
    let (none, _) = ends_well(&none, Vec::new());
    let scanned = |report: &ColumnReport| {
        let of = |event| report.vmstat.get(event);
        of("pgscan_direct") + of("pgscan_kswapd")
    };
    for fault in [DiskFault::Error, DiskFault::Torn] {
        for skip in [0, 20] {
            let plan = bad(fault).on(DiskAccess::Write).after(skip);
            let (report, disk) = ends_well(&tight(), vec![plan]);
            assert_eq!(report.load.failures, [], "{fault:?}, {skip}");
            assert_eq!(report.disk.read_errors, 0);
            assert_eq!(compiled(&report), compiled(&none));
            assert!((8..100).contains(&disk.faults), "{disk:?}");
            let (found, without) = (scanned(&report), scanned(&none));
            assert!(found <= without * 5 / 4, "{found}, {without} without swap");
        }
    }
    // Those that fail now and then stop nothing.
    let plan = bad(DiskFault::Error).on(DiskAccess::Write).every(3);
    let (report, disk) = ends_well(&tight(), vec![plan]);
    assert_eq!(report.load.failures, []);
    assert!(report.vmstat.get("pswpout") > 1000 && disk.faults > 50);
}

/// The driver gives up after 30 s of virtual time and resets the device; what it was to write is in memory still.
#[test]
fn swap_that_never_answers_ends_no_run() {
    let writes = bad(DiskFault::Silent).on(DiskAccess::Write);
    let (report, disk) = ends_well(&tight(), vec![writes]);
    assert_eq!(report.load.failures, []);
    assert!(disk.faults > 0 && report.disk.write_errors > 0);
    let reads = bad(DiskFault::Silent).on(DiskAccess::Read);
    let (report, _) = ends_well(&tight(), vec![reads]);
    let lost = |failure: &dirigible_workload::report::ProgramFailure| {
        failure.failure == "input or output error" && failure.program == "compile"
    };
    assert!(!report.load.failures.is_empty() && report.load.failures.iter().all(lost));
    let late = bad(DiskFault::Delay(500_000_000));
    let (report, _) = ends_well(&tight(), vec![late]);
    assert_eq!(report.load.failures, []);
    let broken = bad(DiskFault::BreakDown).every(7);
    let (report, disk) = ends_well(&tight(), vec![broken]);
    assert!(disk.resets > 3, "{disk:?}");
    assert_eq!(report.load.failures, []);
}

/// The device does not even take resets: all that it was given is lost to it, files too, and the run says so.
#[test]
fn a_disk_that_cannot_be_stopped_is_told_at_the_end() {
    for plan in [
        bad(DiskFault::Deaf),
        bad(DiskFault::Deaf).on(DiskAccess::Write).after(5),
        bad(DiskFault::Deaf).on(DiskAccess::Read),
    ] {
        match run(&tight(), vec![plan]) {
            Err(RunError::Check { what, .. }) => {
                let all_balanced = "all books balance, but the disk failed: ";
                assert!(what.starts_with(all_balanced), "{plan:?}: {what}");
            }
            other => panic!("{plan:?}: {other:?}"),
        }
    }
}
