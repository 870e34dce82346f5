//! Lists all directories, as `updatedb` does.

use super::{tree::Tree, work::Work};
use crate::calls::Failure;

/// Lists all directories of all trees at a steady pace, for ever. Those that are not there yet are asked for too: the
/// requests are the same however far the copies are.
pub(super) fn run(work: &mut Work<'_>) -> Result<(), Failure> {
    let plan = work.plan;
    loop {
        list(work, "/")?;
        for number in 0..plan.trees {
            let tree = Tree::new(plan, number);
            list(work, &tree.root())?;
            for directory in tree.directories() {
                list(work, &directory)?;
            }
        }
    }
}

fn list(work: &mut Work<'_>, path: &str) -> Result<(), Failure> {
    match work.again(|calls| calls.list(path, &mut |_, _| {})) {
        Ok(()) | Err(Failure::NotFound | Failure::Io) => {}
        Err(failure) => return Err(failure),
    }
    work.pace(work.plan.walk_pause)
}
