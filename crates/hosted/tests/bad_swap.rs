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
        balloon: 32 << 20,
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

fn show(
    what: &str,
    started: std::time::Instant,
    result: &Result<(ColumnReport, DiskCounters), RunError>,
) {
    match result {
        Ok((r, d)) => {
            eprintln!("{what}: {:?} disk {d:?}", started.elapsed());
            for e in [
                "pswpin",
                "pswpout",
                "swap_ra",
                "swap_full",
                "pgmajfault_swap",
                "oom_kill",
                "pgscan_kswapd",
                "pgsteal_kswapd",
                "pgscan_direct",
                "pgsteal_direct",
                "vmscan_write",
                "nr_vmscan_immediate_reclaim",
                "reclaim_throttled",
                "kswapd_wake",
                "pgfault",
            ] {
                eprintln!("   {e} {:?}", r.vmstat.get(e));
            }
            eprintln!(
                "   load {:?} disk {:?} content {} ",
                r.load, r.disk, r.content_errors
            );
        }
        Err(e) => eprintln!("{what}: {:?} {e}", started.elapsed()),
    }
}

/// The part of the disk that is swap is bad.
fn bad(params: &Params, fault: DiskFault) -> DiskFaultPlan {
    DiskFaultPlan::always(fault).within(params.disk_bytes(), u64::MAX)
}

#[test]
fn probe() {
    let p = tight();
    let go = |what: &str, p: &Params, f| {
        let s = std::time::Instant::now();
        show(what, s, &run(p, f));
    };
    go("good", &p, vec![]);
    go(
        "none",
        &Params {
            swap: Some(0),
            ..p.clone()
        },
        vec![],
    );
    go(
        "one slot",
        &Params {
            swap: Some(4096),
            ..p.clone()
        },
        vec![],
    );
    go(
        "40 slots",
        &Params {
            swap: Some(40 * 4096),
            ..p.clone()
        },
        vec![],
    );
    go(
        "1000 slots",
        &Params {
            swap: Some(1000 * 4096),
            ..p.clone()
        },
        vec![],
    );
    go(
        "reads fail",
        &p,
        vec![bad(&p, DiskFault::Error).on(DiskAccess::Read)],
    );
    go(
        "reads fail 3rd",
        &p,
        vec![bad(&p, DiskFault::Error).on(DiskAccess::Read).every(3)],
    );
    go(
        "writes fail",
        &p,
        vec![bad(&p, DiskFault::Error).on(DiskAccess::Write)],
    );
    go(
        "writes fail 3rd",
        &p,
        vec![bad(&p, DiskFault::Error).on(DiskAccess::Write).every(3)],
    );
    go(
        "writes fail after 20",
        &p,
        vec![bad(&p, DiskFault::Error).on(DiskAccess::Write).after(20)],
    );
    go(
        "silent writes",
        &p,
        vec![bad(&p, DiskFault::Silent).on(DiskAccess::Write)],
    );
    go("silent", &p, vec![bad(&p, DiskFault::Silent)]);
    go(
        "silent reads",
        &p,
        vec![bad(&p, DiskFault::Silent).on(DiskAccess::Read)],
    );
    go("deaf", &p, vec![bad(&p, DiskFault::Deaf)]);
    go("deaf writes", &p, vec![bad(&p, DiskFault::Deaf).on(DiskAccess::Write).after(5)]);
    go("deaf reads", &p, vec![bad(&p, DiskFault::Deaf).on(DiskAccess::Read)]);
    go("break", &p, vec![bad(&p, DiskFault::BreakDown).every(7)]);
    go("torn", &p, vec![bad(&p, DiskFault::Torn)]);
    go("late", &p, vec![bad(&p, DiskFault::Delay(500_000_000))]);
}
