//! Unpacks or copies a tree.

use super::{tree::Tree, work::Work};
use crate::calls::Failure;

/// Makes tree `number`, file by file at a steady pace. What is there already, from a copy that failed, goes first.
pub(super) fn run(work: &mut Work<'_>, number: u32) -> Result<(), Failure> {
    let (primary, tree) = (Tree::new(work.plan, 0), Tree::new(work.plan, number));
    work.make_directory(&tree.root())?;
    for directory in tree.directories() {
        work.make_directory(&directory)?;
    }
    let all = u128::from(tree.pages());
    let time = u128::from(work.plan.tree.copy);
    for (from, to) in primary.files().zip(tree.files()) {
        if number > 0 {
            work.read(&from)?;
        }
        work.write(&to)?;
        work.pace((time * u128::from(to.pages) / all) as u64)?;
    }
    Ok(())
}
