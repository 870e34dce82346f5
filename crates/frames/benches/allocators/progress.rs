//! Progress, on a terminal only, and the time budget.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Fewer passes than this have no median worth printing.
const LEAST_PASSES: usize = 3;

/// Shows `what` in place of what was shown before.
pub fn show(what: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        // A closed terminal is no reason to end.
        let _ = write!(stderr, "\r{what:40}\r");
        let _ = stderr.flush();
    }
}

/// The numbers of the passes of a section; ends early when `budget` is used up: the machine may be busy.
pub fn passes(
    section: &'static str,
    passes: usize,
    budget: Duration,
) -> impl Iterator<Item = usize> {
    let start = Instant::now();
    (0..passes).take_while(move |&pass| {
        if pass >= LEAST_PASSES && start.elapsed() > budget {
            show("");
            eprintln!(
                "{section}: its time is over, the machine is slow; ending after {pass} of {passes} passes"
            );
            return false;
        }
        show(&format!("{section}: pass {} of {passes}", pass + 1));
        true
    })
}
