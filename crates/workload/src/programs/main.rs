//! The root of the load.

use alloc::vec::Vec;

use super::{Program, work::Work};
use crate::calls::{Ended, Failure, Pid};

/// Makes the primary tree, then the copies, a few at a time, and keeps a make going in each tree that is there.
pub(super) fn run(work: &mut Work<'_>) -> Result<(), Failure> {
    let trees = work.plan.trees;
    let mut children = Vec::with_capacity(trees as usize + 2);
    work.run_until_done(Program::Copy { tree: 0 })?;
    begin(work, &mut children, Program::Walk)?;
    begin(work, &mut children, Program::Make { tree: 0 })?;
    let mut copies = 1..trees;
    for tree in copies.by_ref().take(work.plan.copies.max(1) as usize) {
        begin(work, &mut children, Program::Copy { tree })?;
    }
    loop {
        let (pid, ended) = work.calls.wait_any()?;
        let Some(at) = children.iter().position(|&(child, _)| child == pid) else {
            continue;
        };
        let (_, program) = children.swap_remove(at);
        match (program, ended) {
            (Program::Copy { tree }, Ended::Done) => {
                begin(work, &mut children, Program::Make { tree })?;
                if let Some(tree) = copies.next() {
                    begin(work, &mut children, Program::Copy { tree })?;
                }
            }
            _ => {
                work.stall()?;
                begin(work, &mut children, program)?;
            }
        }
    }
}

fn begin(
    work: &mut Work<'_>,
    children: &mut Vec<(Pid, Program)>,
    program: Program,
) -> Result<(), Failure> {
    let pid = work.spawn(program, None)?;
    children.push((pid, program));
    Ok(())
}
