//! Whether a run was in order.

use dirigible_workload::calls::Failure;

use crate::counters::{Count, Counters};

/// Why a load has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Its time is over.
    Time,
    /// The root program is gone.
    Load,
    /// The front is gone.
    Front,
}

/// What was wrong with a run, a sentence each. Programs that were killed, by whom it may be, or had no memory, are not:
/// that is what a load may do to them.
pub fn faults(ended: End, deleted: Result<(), Failure>, counters: &Counters) -> Vec<String> {
    let mut faults = Vec::new();
    if ended != End::Time {
        faults.push("the load ended by itself".into());
    }
    if let Err(failure) = deleted {
        faults.push(format!("the trees could not be deleted: {failure}"));
    }
    let mut count = |count, what| match counters.get(count) {
        0 => {}
        number => faults.push(format!("{number} {what}")),
    };
    count(
        Count::NoSpace,
        "programs failed because the file system is full",
    );
    count(
        Count::Io,
        "programs failed because files could not be read or written",
    );
    count(Count::Wrong, "pages had wrong contents");
    faults
}

/// Counts a program that gave up for `failure`, if that makes a fault of the run.
pub fn count(failure: Failure, counters: &Counters) {
    let count = match failure {
        Failure::NoSpace => Count::NoSpace,
        Failure::Io => Count::Io,
        _ => return,
    };
    counters.add(count, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_space_and_errors_are_faults_and_want_of_memory_is_none() {
        let counters = Counters::create().unwrap();
        counters.add(Count::Failed, 5);
        for failure in [
            Failure::Killed,
            Failure::NoMemory,
            Failure::TooMany,
            Failure::Pipe,
        ] {
            count(failure, counters);
        }
        assert_eq!(faults(End::Time, Ok(()), counters), [""; 0]);
        count(Failure::NoSpace, counters);
        count(Failure::NoSpace, counters);
        assert_eq!(
            faults(End::Time, Ok(()), counters),
            ["2 programs failed because the file system is full"]
        );
        count(Failure::Io, counters);
        counters.add(Count::Wrong, 3);
        let all = faults(End::Load, Err(Failure::Exists), counters);
        assert_eq!(all.len(), 5, "{all:?}");
    }
}
