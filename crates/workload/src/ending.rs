//! The end of a run: everything is given back, and the books of all parts must balance.

use alloc::{format, string::String};

use dirigible::MemoryManager;
use dirigible_balloon::{BalloonDriver, BalloonStats, Held};
use dirigible_files::{Error, Problem};
use dirigible_frames::PageTables;
use dirigible_pagecache::BlockPages;

use crate::{content::ContentLog, system::Parts};

/// Takes the disk down and drops all pages of files, and shuts the manager down: the balloon gives its frames back, and
/// the books of all parts are verified. Nothing else may run meanwhile. Afterwards `managed` frames must be free.
///
/// # Errors
///
/// Describes the first book that does not balance.
pub(crate) fn give_all_back<P: PageTables>(
    manager: &MemoryManager<'_, P>,
    parts: &Parts<'_, P>,
    balloon: &dyn BalloonDriver,
    managed: u64,
) -> Result<(), String> {
    // A disk that fails does not excuse any book of ours.
    let audited = parts.files.audit();
    let written = parts.files.give_all_back();
    parts.cache.forget(0..parts.cache.blocks());
    parts
        .cache
        .audit()
        .map_err(|error| format!("page cache: {error}"))?;
    let swap = parts
        .swap
        .audit()
        .map_err(|error| format!("swap: {error}"))?;
    if swap.used != 0 {
        return Err(format!("{} slots of swap are in use", swap.used));
    }
    let generations = parts.reclaim.generations().verify();
    generations.map_err(|error| format!("generations: {error}"))?;
    let (stats, held) = (balloon.stats(), balloon.held());
    if !balances(&stats, &held) {
        return Err(format!(
            "balloon: inflated {} - deflated {} - forgotten {} is not {held:?}",
            stats.inflated, stats.deflated, stats.forgotten
        ));
    }
    // Frames that a disk may still use that cannot be stopped: nobody's, but never free.
    let lost = parts.cache.counts().abandoned;
    manager.shutdown(lost).map_err(|error| format!("{error}"))?;
    if parts.cache.counts().pages != 0 {
        return Err(format!(
            "{} frames are left in the page cache",
            parts.cache.counts().pages
        ));
    }
    let free = manager.frames().free_frames();
    if free + lost != managed {
        return Err(format!(
            "allocator: {free} of {managed} frames are free, and {lost} lost"
        ));
    }
    written.map_err(|error| format!("all books balance, but the disk failed: {error}"))?;
    if lost != 0 {
        return Err(format!(
            "all books balance, but the disk failed: it cannot be stopped, and may still use {lost} frames"
        ));
    }
    // Of what a disk that fails did not let be read nothing is known. All else must be right on it too.
    match audited {
        Err(Problem::Inode {
            error: Error::Io { .. },
            ..
        })
        | Err(Problem::Bitmap(Error::Io { .. }))
        | Ok(_) => Ok(()),
        Err(problem) => Err(format!(
            "all books balance, but those on the disk do not: {problem}"
        )),
    }
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
