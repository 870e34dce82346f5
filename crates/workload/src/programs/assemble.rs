//! The assembler: reads a pipe and writes the objects of a directory.

use super::{
    tree::Tree,
    work::{Work, feed},
};
use crate::calls::Failure;

/// Pages that one call reads from the pipe, at most.
const PIPE: u64 = 16;

/// Assembles directory `unit` of tree `number` from the pipe that it was begun with.
pub(super) fn run(work: &mut Work<'_>, number: u32, unit: u32, round: u32) -> Result<(), Failure> {
    let tree = Tree::new(work.plan, number);
    let end = work.calls.inherited().ok_or(Failure::Pipe)?;
    let feed = feed(work.plan, &tree.directory(unit), round);
    for object in tree.objects(unit, round) {
        let mut left = object.pages * feed.ratio;
        while left > 0 {
            let read = work.calls.read_pipe(end, left.min(PIPE), feed.key)?;
            if read == 0 {
                // The compile died.
                return Err(Failure::Pipe);
            }
            left = left.saturating_sub(read);
        }
        work.write(&object)?;
        work.calls.count_compiled(1);
    }
    let rest = work.calls.read_pipe(end, 1, feed.key)?;
    work.calls.close_pipe(end);
    match rest {
        0 => Ok(()),
        _ => Err(Failure::Pipe),
    }
}
