//! The end of a run: everything is given back, and all books must balance.

use alloc::{format, string::String};

use dirigible_frames::Platform;
use dirigible_mobility::Mobility;

use crate::{actor::time::SECOND, balloon::BalloonDriver, content::ContentLog, system::Parts};

/// How long the end of a run waits for what is still under way.
const SETTLE: u64 = 2 * SECOND;

/// Waits for what is under way: with several CPUs the last exchange may still be with the device when the engines end. Until
/// then the counts of compaction do not add up.
pub(crate) fn settle<P: Platform>(
    platform: &P,
    mobility: &Mobility<'_, P>,
    balloon: &dyn BalloonDriver,
) {
    let patience = platform.now() + SETTLE;
    while mobility.isolated_frames() > 0 && platform.now() < patience {
        balloon.handle_interrupt();
        platform.relax();
    }
}

/// Has filler and balloon give everything back and balances the books of all parts. Nothing else runs any more; afterwards
/// `managed` frames must be free.
///
/// # Errors
///
/// The first book that does not balance.
pub(crate) fn give_all_back<P: Platform>(
    parts: &Parts<'_, P>,
    mobility: &Mobility<'_, P>,
    balloon: &dyn BalloonDriver,
    managed: u64,
) -> Result<(), String> {
    let text = |what: &str, error: &dyn core::fmt::Display| format!("{what}: {error}");
    let Parts {
        frames,
        paging,
        filler,
        ..
    } = parts;
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
    frames.drain_cpu_caches();
    frames.verify().map_err(|error| text("allocator", &error))?;
    let free = frames.free_frames();
    if free != managed {
        return Err(format!("allocator: {free} of {managed} frames are free"));
    }
    Ok(())
}

/// Contents that were wrong make the run fail.
///
/// # Errors
///
/// How many there were, and the first of them.
pub(crate) fn content_verdict(contents: &ContentLog) -> Result<(), String> {
    match contents.first_errors().first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} pages had wrong contents, first {first:?}",
            contents.errors()
        )),
    }
}
