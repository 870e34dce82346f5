//! What a test found.

use alloc::string::String;

/// What went wrong, if anything did.
pub(super) type Outcome = Result<(), String>;

/// Fails with `why` unless `holds`.
pub(super) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(why()) }
}

/// The first failure that any CPU found, for a test in which all take part.
#[derive(Default)]
pub(super) struct Verdict(spin::Mutex<Option<String>>);

impl Verdict {
    /// Keeps a failure, unless there is one already.
    pub(super) fn note(&self, outcome: Outcome) {
        if let Err(why) = outcome {
            self.0.lock().get_or_insert(why);
        }
    }

    /// Whether a CPU has failed: the others may stop then.
    pub(super) fn has_failed(&self) -> bool {
        self.0.lock().is_some()
    }

    /// The first failure, if there was one.
    pub(super) fn outcome(self) -> Outcome {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}
