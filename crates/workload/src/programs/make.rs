//! Compiles a tree for ever.

use alloc::vec::Vec;

use super::{Program, tree::Tree, work::Work};
use crate::calls::Failure;

/// Compiles the directories of tree `number` in an order that is drawn, links them part by part, deletes what it made,
/// and begins again.
pub(super) fn run(work: &mut Work<'_>, number: u32) -> Result<(), Failure> {
    let plan = work.plan;
    let tree = Tree::new(plan, number);
    let mut units = Vec::with_capacity(plan.link.units as usize);
    // The makes do not begin in step.
    let pause = work.draw((0, plan.compile.pause.1.saturating_mul(2)));
    work.pace(pause)?;
    for round in 0.. {
        for part in 0..plan.parts() {
            units.clear();
            units.extend(plan.units_of(part));
            while !units.is_empty() {
                let index = work.rng.below(units.len() as u64) as usize;
                let unit = units.swap_remove(index);
                work.run_until_done(Program::Compile {
                    tree: number,
                    unit,
                    round,
                })?;
                work.pace_from_now();
                let pause = work.draw(plan.compile.pause);
                work.pace(pause)?;
            }
            work.run_until_done(Program::Link {
                tree: number,
                part,
                round,
            })?;
        }
        clean(work, &tree)?;
    }
    Ok(())
}

/// Deletes objects and images.
fn clean(work: &mut Work<'_>, tree: &Tree<'_>) -> Result<(), Failure> {
    let plan = work.plan;
    for unit in 0..plan.tree.directories {
        for object in tree.objects(unit, 0) {
            work.delete(&object.path)?;
        }
    }
    for part in 0..plan.parts() {
        work.delete(&tree.image(part, 0).path)?;
    }
    Ok(())
}
