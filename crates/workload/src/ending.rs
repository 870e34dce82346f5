//! The end of a run: everything is given back, and the books of all parts must balance.

use alloc::{format, string::String};

use dirigible_balloon::{BalloonDriver, BalloonStats, Held};
use dirigible_frames::PageTables;
use dirigible_mobility::Mobility;

use crate::{content::ContentLog, system::Parts};
use dirigible::schedule::time::SECOND;

/// How long the end of a run waits for frames that are still isolated.
const SETTLE: u64 = 2 * SECOND;

/// Waits for moves that are under way: with several CPUs the last exchange may still be pending when the engines end.
/// Until it has settled, the counts of compaction do not add up.
pub(crate) fn settle<P: PageTables>(
    platform: &P,
    mobility: &Mobility<'_, P>,
    balloon: &dyn BalloonDriver,
) {
    let patience = platform.now() + SETTLE;
    while mobility.isolated_frames() > 0 && platform.now() < patience {
        balloon.handle_interrupt();
        if mobility.drain_settled() == 0 {
            platform.relax();
        }
    }
}

/// Makes the filler and the balloon give everything back and verifies the books of all parts. Nothing else may run
/// meanwhile. Afterwards `managed` frames must be free.
///
/// # Errors
///
/// Describes the first book that does not balance.
pub(crate) fn give_all_back<P: PageTables>(
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
    if !balances(&stats, &held) {
        return Err(format!(
            "balloon: inflated {} - deflated {} - forgotten {} is not {held:?}",
            stats.inflated, stats.deflated, stats.forgotten
        ));
    }
    balloon.verify().map_err(|error| text("balloon", &error))?;
    mobility
        .verify()
        .map_err(|error| text("mobility", &error))?;
    balloon
        .shutdown()
        .map_err(|error| text("balloon shutdown", &error))?;
    mobility.drain_settled();
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

/// Whether the host has the frames that it was given and has neither given back nor, in a reset of its device,
/// forgotten.
fn balances(stats: &BalloonStats, held: &Held) -> bool {
    let gone = stats.deflated + stats.forgotten;
    stats.inflated.checked_sub(gone) == Some(held.listed + held.isolated + held.leaving)
}

/// Fails if any page had wrong contents.
///
/// # Errors
///
/// How many pages had wrong contents, and the first of them.
pub(crate) fn content_verdict(contents: &ContentLog) -> Result<(), String> {
    match contents.first_errors().first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} pages had wrong contents, first {first:?}",
            contents.errors()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_whose_device_was_repaired_balances() {
        let stats = BalloonStats {
            inflated: 900,
            deflated: 200,
            forgotten: 300,
            ..BalloonStats::default()
        };
        let mut held = Held {
            listed: 390,
            leaving: 10,
            ..Held::default()
        };
        assert!(balances(&stats, &held));
        held.listed += 300;
        assert!(!balances(&stats, &held));
    }
}
