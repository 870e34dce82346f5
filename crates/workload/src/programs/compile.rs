//! A compile: memory grows in pieces, is partly given back and used again, while sources are read.

use alloc::vec::Vec;
use core::ops::Range;

use dirigible_frames::FRAMES_PER_BLOCK;

use super::{
    Program,
    tree::{Planned, Tree},
    work::{Work, feed},
};
use crate::calls::{Calls, Ended, Failure, PipeEnd};

const HUGE: u64 = FRAMES_PER_BLOCK as u64;
/// Pages that one call writes into the pipe, at most.
const PIPE: u64 = 16;

/// What a compile has drawn.
struct Draws {
    /// Pages that it grows to.
    pages: u64,
    /// From one piece to the next.
    pace: u64,
    stay: u64,
    /// It advises huge pages for some of its pieces.
    huge: bool,
}

/// Compiles directory `unit` of tree `number`.
pub(super) fn run(work: &mut Work<'_>, number: u32, unit: u32, round: u32) -> Result<(), Failure> {
    let plan = work.plan;
    let tree = Tree::new(plan, number);
    let draws = draw(work);
    let mean_piece = (plan.compile.piece.0 + plan.compile.piece.1) / 2;
    let expected = (draws.pages / mean_piece.max(1)).max(1);
    let mut memory = Memory {
        pieces: Vec::with_capacity(expected as usize + 16),
        held: 0,
    };
    let headers = draw_headers(work);
    let mut files = tree
        .sources(unit)
        .chain(headers.iter().map(|&header| tree.header(header)));
    let all = u64::from(plan.tree.sources) + headers.len() as u64;
    let mut read = 0;
    for piece in 1.. {
        if memory.held >= draws.pages {
            break;
        }
        // The files are spread over the pieces.
        while read < all * piece / expected {
            read_next(work, &mut files)?;
            read += 1;
        }
        memory.grow(work, draws.huge)?;
        memory.after_piece(work)?;
        let pause = work.draw((draws.pace / 2, draws.pace * 3 / 2));
        work.pace(pause)?;
    }
    while read < all {
        read_next(work, &mut files)?;
        read += 1;
    }
    assemble(work, &tree, number, unit, round)?;
    work.pace(draws.stay)?;
    memory.finish(work)
}

fn draw(work: &mut Work<'_>) -> Draws {
    let plan = &work.plan.compile;
    let size = match work.rng.chance(3, 4) {
        true => plan.small,
        false => plan.large,
    };
    let pages = work.draw(size);
    let build = work.draw(plan.build);
    let stay = work.draw(plan.stay);
    let huge = work.rng.below(plan.huge_programs) == 0 && pages >= 4 * HUGE;
    let mean_piece = (plan.piece.0 + plan.piece.1) / 2;
    Draws {
        pages,
        pace: build / (pages / mean_piece.max(1)).max(1),
        stay,
        huge,
    }
}

/// The headers that the directory includes.
fn draw_headers(work: &mut Work<'_>) -> Vec<u32> {
    let tree = &work.plan.tree;
    let count = tree.included.min(tree.headers);
    let all = u64::from(tree.headers);
    (0..count).map(|_| work.rng.below(all) as u32).collect()
}

fn read_next(
    work: &mut Work<'_>,
    files: &mut impl Iterator<Item = Planned>,
) -> Result<(), Failure> {
    files.next().map_or(Ok(()), |file| work.read(&file))
}

/// What a compile has mapped.
struct Memory {
    pieces: Vec<Range<u64>>,
    held: u64,
}

impl Memory {
    /// Maps the next piece and fills it.
    fn grow(&mut self, work: &mut Work<'_>, huge: bool) -> Result<(), Failure> {
        let plan = &work.plan.compile;
        let huge = work.rng.below(plan.huge_pieces) == 0 && huge;
        let drawn = work.draw(plan.piece).max(1);
        let pages = if huge { HUGE } else { drawn };
        let first = work.again(|calls| calls.map(pages, huge))?;
        let piece = first..first + pages;
        self.pieces.push(piece.clone());
        self.held += pages;
        work.again(|calls| calls.touch(piece.clone()))
    }

    /// A piece is complete: older ones are used, partly or wholly given back.
    fn after_piece(&mut self, work: &mut Work<'_>) -> Result<(), Failure> {
        if self.pieces.len() > 8 && work.rng.chance(1, 5) {
            let index = work.rng.below(self.pieces.len() as u64) as usize;
            let piece = self.pieces.swap_remove(index);
            self.held -= piece.end - piece.start;
            let check = work.four();
            work.calls.check(piece.clone(), check)?;
            work.calls.unmap(piece)?;
        }
        if self.pieces.len() > 4 && work.rng.chance(1, 2) {
            let piece = self.any(work);
            for _ in 0..4 {
                let page = piece.start + work.rng.below(piece.end - piece.start);
                work.calls.discard(page..page + 1)?;
            }
        }
        let piece = self.any(work);
        for _ in 0..8 {
            let page = piece.start + work.rng.below(piece.end - piece.start);
            let check = work.four();
            work.calls.check(page..page + 1, check)?;
        }
        Ok(())
    }

    /// One of the pieces. There is one at least: whoever asks has made one and given back another, of more than eight.
    fn any(&self, work: &mut Work<'_>) -> Range<u64> {
        let index = work.rng.below(self.pieces.len() as u64) as usize;
        self.pieces[index].clone()
    }

    /// Compares everything and gives it back.
    fn finish(self, work: &mut Work<'_>) -> Result<(), Failure> {
        let check = work.four();
        for piece in self.pieces {
            work.calls.check(piece.clone(), check)?;
            work.calls.unmap(piece)?;
        }
        Ok(())
    }
}

/// Begins the assembler and feeds it.
fn assemble(
    work: &mut Work<'_>,
    tree: &Tree<'_>,
    number: u32,
    unit: u32,
    round: u32,
) -> Result<(), Failure> {
    let (reading, writing) = make_pipe(work)?;
    let program = Program::Assemble {
        tree: number,
        unit,
        round,
    };
    let spawned = work.spawn(program, Some(reading));
    if spawned.is_err() {
        work.calls.close_pipe(reading);
    }
    let written = match spawned {
        Ok(_) => write_all(work, tree, writing, unit, round),
        Err(failure) => Err(failure),
    };
    work.calls.close_pipe(writing);
    match work.calls.wait(spawned?)? {
        Ended::Done => written,
        Ended::Failed => written.and(Err(Failure::Pipe)),
    }
}

/// There may be too many pipes for a moment.
fn make_pipe(work: &mut Work<'_>) -> Result<(PipeEnd, PipeEnd), Failure> {
    loop {
        match work.calls.pipe() {
            Err(Failure::NoMemory | Failure::TooMany) => work.stall()?,
            answer => return answer,
        }
    }
}

fn write_all(
    work: &mut Work<'_>,
    tree: &Tree<'_>,
    end: PipeEnd,
    unit: u32,
    round: u32,
) -> Result<(), Failure> {
    let feed = feed(work.plan, &tree.directory(unit), round);
    let objects: u64 = tree.objects(unit, round).map(|object| object.pages).sum();
    let mut left = objects * feed.ratio;
    while left > 0 {
        let write = |calls: &dyn Calls| calls.write_pipe(end, left.min(PIPE), feed.key);
        let wrote = work.again(write)?;
        left = left.saturating_sub(wrote.max(1));
    }
    Ok(())
}
