//! The linker: reads the objects of some directories into memory and writes one file.

use alloc::vec::Vec;

use dirigible_frames::FRAMES_PER_BLOCK;

use super::{tree::Tree, work::Work};
use crate::calls::Failure;

const HUGE: u64 = FRAMES_PER_BLOCK as u64;

/// Links part `part` of tree `number`.
pub(super) fn run(work: &mut Work<'_>, number: u32, part: u32, round: u32) -> Result<(), Failure> {
    let plan = work.plan;
    let tree = Tree::new(plan, number);
    let memory = work.draw(plan.link.memory).max(1);
    let build = work.draw(plan.link.build);
    // Huge pages where the memory is as large as one.
    let piece = if memory < HUGE { memory } else { HUGE };
    let pieces = memory / piece;
    let mut mapped = Vec::with_capacity(pieces as usize);
    let units = plan.units_of(part);
    let count = units.len().max(1) as u64;
    for (index, unit) in units.enumerate() {
        for object in tree.objects(unit, round) {
            work.read(&object)?;
        }
        while (mapped.len() as u64) < pieces * (index as u64 + 1) / count {
            let first = work.again(|calls| calls.map(piece, piece == HUGE))?;
            let range = first..first + piece;
            work.again(|calls| calls.touch(range.clone()))?;
            mapped.push(range);
        }
        work.pace(build / count)?;
    }
    let image = tree.image(part, round);
    let file = work.create(&image.path)?;
    let written = work
        .again(|calls| calls.write(file, 0..image.pages, image.key))
        .and_then(|()| work.calls.sync(file));
    work.calls.close(file);
    written?;
    let check = work.four();
    for range in mapped {
        work.calls.check(range.clone(), check)?;
        work.calls.unmap(range)?;
    }
    Ok(())
}
