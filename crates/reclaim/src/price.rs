//! What it costs to empty a block when compaction may drop what reclaim would take next.

use dirigible_frames::{FRAMES_PER_BLOCK, Ledger};

use crate::tally::Tally;

/// Frames that are dropped for each that is copied: a transfer of the disk that reclaim would have had next anyhow.
const DROPS: u32 = 16;
/// Balloon frames of a block in which each costs as much as a copied one: a full block.
const ALL: u32 = FRAMES_PER_BLOCK as u32;

/// What emptying a block costs, in copied frames: a cost function for
/// [`Config::cost`](dirigible_frames::Config::cost), where compaction drops cold frames instead of moving them.
///
/// A frame of the two oldest generations costs a sixteenth, since it can be dropped, or go into swap first. Every other
/// movable frame is copied and costs 1, dirty pages of files among them. A balloon frame is not copied, but it needs a
/// target, which reclaim must free where memory is full, and the host has to back it anew: it costs as much of a copy as the
/// balloon has of the block, next to nothing in a block with few of them, and 1 in a block full of them. So balloon frames
/// gather, and where they have gathered they stay; at a fixed part, such as an eighth, blocks full of them are the
/// cheapest, and the same frames move again and again. How many there are of
/// each the [`Tally`] says, in the epoch that [`Generations`](crate::Generations) keeps: an estimate. What is
/// really dropped is decided frame by frame when the block is isolated.
pub fn cost_by_age(ledger: Ledger, tally: u64, epoch: u32) -> u32 {
    let movable = u32::from(ledger.movable());
    let dropped = Tally::from_bits(tally).droppable(epoch).min(movable);
    movable - dropped + dropped.div_ceil(DROPS) + balloon_cost(ledger.balloon())
}

fn balloon_cost(frames: u16) -> u32 {
    let frames = u32::from(frames);
    (frames * frames).div_ceil(ALL)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::vec;

    use dirigible_frames::{
        AllocRequest, BlockId, Config, CpuId, FrameAllocator, FrameClass, Order, OwnerId, Pfn,
        Watermarks, ZoneConfig,
    };

    use super::*;
    use crate::{Age, Generations};

    const A: CpuId = CpuId::new(0);
    const FILES: OwnerId = OwnerId::new(3).unwrap();
    const IN_USE: OwnerId = OwnerId::new(1).unwrap();

    fn with_blocks(count: u64, test: impl FnOnce(&FrameAllocator<'_>)) {
        let ranges = [Pfn::new(0)..Pfn::new(count * 512)];
        let zones = [ZoneConfig {
            name: "Normal",
            ranges: &ranges,
            watermarks: Watermarks {
                min: 0,
                low: 0,
                high: 0,
            },
            reserve_blocks: 0,
        }];
        let config = Config {
            zones: &zones,
            cost: Some(cost_by_age),
            ..Config::default()
        };
        let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
        test(&FrameAllocator::new(&config, &mut metadata).unwrap());
    }

    /// Takes `count` frames of a block for `owner`, each with an age.
    fn take(g: &Generations<'_>, at: u64, count: u64, owner: OwnerId, age: Age) {
        let movable = AllocRequest::movable();
        g.frames()
            .alloc_at(A, Pfn::new(at), count as usize, movable)
            .unwrap();
        for frame in at..at + count {
            g.frames().set_owner(Pfn::new(frame), owner, 0);
            g.add(Pfn::new(frame), age);
        }
    }

    #[test]
    fn blocks_become_cheap_with_age_and_dear_with_what_must_be_kept() {
        with_blocks(3, |frames| {
            let g = Generations::new(frames);
            take(&g, 0, 320, FILES, Age::Young);
            take(&g, 512, 320, IN_USE, Age::Young);
            let balloon = AllocRequest::new(Order::BASE, FrameClass::Balloon);
            frames.alloc_at(A, Pfn::new(1024), 128, balloon).unwrap();
            let costs = || [0, 1, 2].map(|block| frames.evacuation_cost(BlockId::new(block)));
            let cheapest = || {
                let mut found = [BlockId::new(9); 3];
                assert_eq!(frames.cheapest_blocks(None, &mut found), 3);
                frames.verify().expect("filed where they are found");
                found.map(BlockId::index)
            };
            assert_eq!((costs(), cheapest()), ([320, 320, 32], [2, 0, 1]));
            // They begin in the youngest generation of four.
            for sequence in 0..2 {
                g.age(A, sequence);
            }
            for frame in 512..832 {
                g.add(Pfn::new(frame), Age::Young);
            }
            assert_eq!(frames.tally_epoch(), 2);
            assert_eq!(costs(), [20, 320, 32]);
            // What was filed in another epoch is found there until it is filed anew.
            frames.verify().expect("where it was");
            frames.refile_block(BlockId::new(0));
            assert_eq!(cheapest(), [0, 2, 1]);
            // A quarter is dirty, and is copied: in any half of the frames a quarter is taken to be.
            for frame in 0..80 {
                g.dirtied(Pfn::new(frame), true);
            }
            assert_eq!(costs(), [80 + 15, 320, 32]);
            assert_eq!(cheapest(), [2, 0, 1]);
            // A block full of the balloon is the last that is emptied.
            frames
                .alloc_at(A, Pfn::new(1024 + 128), 383, balloon)
                .unwrap();
            assert_eq!((costs()[2], cheapest()), (511, [0, 1, 2]));
            frames.free_range(A, Pfn::new(1024 + 128), 383).unwrap();
            frames.drain_cpu_caches();
            // All that was old is used again.
            for frame in 0..320 {
                g.add(Pfn::new(frame), Age::Young);
            }
            assert_eq!(costs(), [320, 320, 32]);
            g.verify().expect("the books of ages");
        });
    }

    #[test]
    fn a_change_of_the_ledger_files_a_block_by_its_present_age() {
        with_blocks(2, |frames| {
            let g = Generations::new(frames);
            take(&g, 0, 200, FILES, Age::New);
            take(&g, 512, 100, FILES, Age::Young);
            let cheapest = || {
                let mut found = [BlockId::new(9); 1];
                assert_eq!(frames.cheapest_blocks(None, &mut found), 1);
                found[0].index()
            };
            assert_eq!(cheapest(), 1, "filed before it had ages");
            for frame in 190..200 {
                g.remove(Pfn::new(frame));
            }
            frames.free_range(A, Pfn::new(190), 10).unwrap();
            frames.drain_cpu_caches();
            assert_eq!(cheapest(), 0);
            frames.verify().expect("all counts fit");
        });
    }
}
