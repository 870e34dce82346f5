//! The end of a run: everything is given back, and all books must balance.

use std::time::{Duration, Instant};

use dirigible_frames::{FrameAllocator, Platform};
use dirigible_mobility::Mobility;
use dirigible_paging::Paging;
use dirigible_workload::{content::ContentLog, filler::Filler};

use super::port::Driver;
use crate::{HostedMachine, HostedPlatform};

/// How long the end of a run waits for what is still under way.
const SETTLE: Duration = Duration::from_secs(2);

/// Gives everything back and balances all books.
pub(super) fn check_end(
    machine: &HostedMachine,
    frames: &FrameAllocator<'_>,
    mobility: &Mobility<'_, HostedPlatform>,
    paging: &Paging<'_, HostedPlatform>,
    filler: &Filler<'_, HostedPlatform>,
    balloon: &Driver<'_>,
) -> Result<(), String> {
    let text = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    // With threads the last exchange may still be with the device when the threads end.
    let patience = Instant::now() + SETTLE;
    while mobility.isolated_frames() > 0 && Instant::now() < patience {
        balloon.handle_interrupt();
        machine.platform().relax();
    }
    filler.drop_all();
    let stats = balloon.stats();
    let held = balloon.held();
    if stats.inflated.checked_sub(stats.deflated)
        != Some(held.listed + held.isolated + held.leaving)
    {
        return Err(format!(
            "balloon: inflated {} - deflated {} is not {held:?}",
            stats.inflated, stats.deflated
        ));
    }
    balloon.verify().map_err(|error| text("balloon", &error))?;
    mobility
        .verify()
        .map_err(|error| text("mobility", &error))?;
    balloon
        .shutdown()
        .map_err(|error| text("balloon shutdown", &error))?;
    let audit = paging
        .audit()
        .map_err(|error| text("page tables", &error))?;
    if audit.spaces != 0 {
        return Err(format!(
            "page tables: {} address spaces are left",
            audit.spaces
        ));
    }
    if filler.held() != 0 || mobility.isolated_frames() != 0 {
        let (held, isolated) = (filler.held(), mobility.isolated_frames());
        return Err(format!(
            "{held} frames are left with the filler, {isolated} isolated"
        ));
    }
    for device in machine.balloons() {
        let errors = device.counters().errors;
        if errors.total() != 0 || device.held_frames() != 0 {
            return Err(format!(
                "balloon device: holds {}, {errors:?}",
                device.held_frames()
            ));
        }
    }
    frames.drain_cpu_caches();
    frames.verify().map_err(|error| text("allocator", &error))?;
    let (free, all) = (
        frames.free_frames(),
        machine.ram().layout().managed_frames(),
    );
    if free != all {
        return Err(format!("allocator: {free} of {all} frames are free"));
    }
    Ok(())
}

/// Contents that were wrong make the run fail, with the first of them.
pub(super) fn content_verdict(contents: &ContentLog) -> Result<(), String> {
    match contents.first_errors().first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} pages had wrong contents, first {first:?}",
            contents.errors()
        )),
    }
}
