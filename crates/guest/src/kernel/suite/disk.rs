//! The disk: all CPUs send requests to the hypervisor's device and take its answers.

use alloc::vec::Vec;

use dirigible::boot::Booted;
use dirigible_disk::{
    BlockDevice, Completion, DiskConfig, DiskRequest, DiskState, MAX_REQUEST_FRAMES, SubmitError,
};
use dirigible_frames::{AllocRequest, FRAME_SIZE, FrameContents, Order, Pfn, Platform};
use spin::Mutex;

use super::{
    deadline::{MILLISECOND, is_over},
    manager::{Memory, boot},
    numbers::Numbers,
    outcome::{Outcome, Verdict, ensure},
};
use crate::kernel::{
    arch::smp,
    machine::{Disk, Guest},
    platform::GuestPlatform,
};

const PATIENCE: u64 = 20_000 * MILLISECOND;
/// Requests that are in flight at a time, if the disk takes as many.
const IN_FLIGHT: usize = 48;
/// Words of a frame.
const WORDS: usize = FRAME_SIZE / 8;

/// Word `index` of block `block` when it was written for the time number `round`.
fn word(round: u64, block: u64, index: usize) -> u64 {
    (block << 16 | index as u64 | round << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A request that is in flight: where it begins, and how many blocks it has.
#[derive(Clone, Copy)]
struct Part {
    block: u64,
    count: usize,
}

/// One pass over all blocks, which all CPUs share.
struct Pass<'a> {
    disk: &'a Disk,
    frames: &'a [Pfn],
    round: u64,
    write: bool,
    books: Mutex<Books>,
}

struct Books {
    /// By token: the frames from `MAX_REQUEST_FRAMES` times the token on belong to the request.
    parts: [Option<Part>; IN_FLIGHT],
    /// The first block that nobody has asked for.
    next: u64,
    numbers: Numbers,
    /// The most requests that were in flight.
    most: usize,
}

impl Pass<'_> {
    fn frames_of(&self, token: usize, count: usize) -> &[Pfn] {
        &self.frames[token * MAX_REQUEST_FRAMES..][..count]
    }

    /// Sends requests as long as there is room.
    fn send(&self) -> Outcome {
        let mut books = self.books.lock();
        while books.next < self.disk.blocks()
            && let Some(token) = books.parts.iter().position(Option::is_none)
        {
            let block = books.next;
            let left = self.disk.blocks() - block;
            let count = 1 + books.numbers.below(MAX_REQUEST_FRAMES as u64).min(left - 1) as usize;
            let frames = self.frames_of(token, count);
            for (block, &frame) in (block..).zip(frames) {
                for index in 0..WORDS {
                    let value = if self.write {
                        word(self.round, block, index)
                    } else {
                        0
                    };
                    GuestPlatform.write_word(frame, index, value);
                }
            }
            let result = self.disk.submit(DiskRequest {
                token: token as u32,
                write: self.write,
                block,
                frames,
            });
            match result {
                Ok(()) => {}
                Err(SubmitError::Busy) => break,
                Err(error) => return Err(alloc::format!("block {block}: {error}")),
            }
            books.parts[token] = Some(Part { block, count });
            books.next += count as u64;
            books.most = books.most.max(books.parts.iter().flatten().count());
        }
        Ok(())
    }

    /// Takes answers; whether there was one.
    fn take(&self) -> Result<bool, alloc::string::String> {
        let mut out = [Completion {
            token: 0,
            result: Ok(()),
        }; 4];
        let taken = self.disk.completed(&mut out);
        for &Completion { token, result } in &out[..taken] {
            let token = token as usize;
            // The CPU that has sent it may not have entered it yet: it holds the lock until then.
            let part = self.books.lock().parts.get(token).copied().flatten();
            let part = part.ok_or_else(|| alloc::format!("an answer for nobody: {token}"))?;
            let Part { block, count } = part;
            result.map_err(|error| alloc::format!("block {block}: {error}"))?;
            for (block, &frame) in (block..).zip(self.frames_of(token, count)) {
                let wrong = (0..WORDS).find(|&index| {
                    GuestPlatform.read_word(frame, index) != word(self.round, block, index)
                });
                ensure(wrong.is_none(), || {
                    alloc::format!("block {block} is wrong from word {wrong:?} on")
                })?;
            }
            self.books.lock().parts[token] = None;
        }
        Ok(taken > 0)
    }

    fn is_over(&self) -> bool {
        let books = self.books.lock();
        books.next == self.disk.blocks() && books.parts.iter().all(Option::is_none)
    }

    /// What each CPU does.
    fn work(&self) -> Outcome {
        let deadline = GuestPlatform.now() + PATIENCE;
        while !self.is_over() {
            self.send()?;
            if !self.take()? {
                ensure(!is_over(&GuestPlatform, deadline), || {
                    "no answer in time".into()
                })?;
                GuestPlatform.relax();
            }
        }
        Ok(())
    }
}

/// Writes all blocks twice and reads them back each time.
pub(super) fn the_disk_keeps_what_is_written(guest: &Guest, memory: &mut Memory) -> Outcome {
    let disk = guest.disk(DiskConfig::default())?;
    let disk = disk.ok_or("no disk: start the machine with -device virtio-blk-pci")?;
    let Booted { frames, .. } = boot(guest, memory)?;
    let cpu = GuestPlatform.cpu();
    let taken = (0..IN_FLIGHT * MAX_REQUEST_FRAMES)
        .map(|_| frames.alloc(cpu, AllocRequest::movable()))
        .collect::<Result<Vec<_>, _>>();
    let mut taken = taken.map_err(|error| alloc::format!("{error:?}"))?;
    // Some frames follow each other and some do not.
    let middle = taken.len() / 2;
    taken[middle..].reverse();
    taken[middle..]
        .chunks_exact_mut(3)
        .for_each(|three| three.swap(0, 1));

    for round in 1..3 {
        for write in [true, false] {
            let pass = Pass {
                disk: &disk,
                frames: &taken,
                round,
                write,
                books: Mutex::new(Books {
                    parts: [None; IN_FLIGHT],
                    next: 0,
                    numbers: Numbers(4711 + round),
                    most: 0,
                }),
            };
            let verdict = Verdict::default();
            smp::on_all(&|_| verdict.note(pass.work()));
            verdict.outcome()?;
            let most = pass.books.into_inner().most;
            ensure(most > 1, || "never two requests in flight".into())?;
        }
    }
    let beyond = disk.submit(DiskRequest {
        token: 0,
        write: false,
        block: disk.blocks(),
        frames: &taken[..1],
    });
    ensure(beyond == Err(SubmitError::Invalid), || {
        alloc::format!("a read behind the last block: {beyond:?}")
    })?;
    ensure(disk.open() == 0 && disk.state() == DiskState::Live, || {
        alloc::format!("{disk:?} at the end")
    })?;
    drop(disk);
    for frame in taken {
        frames
            .free(cpu, frame, Order::BASE)
            .map_err(|error| alloc::format!("{error:?}"))?;
    }
    Ok(())
}
