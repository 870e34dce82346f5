//! Emptying blocks whose frames are isolated, in turns: between two of them the caller waits, or goes away and comes
//! back.

use dirigible_frames::{BlockId, CpuId, FRAMES_PER_BLOCK, Platform};

use crate::evacuate::Attempts;
use crate::workspace::Workspace;
use crate::{MigrateStats, Mobility};

/// How often an emptied block is looked at again that is not wholly free yet.
const MOMENTS: u32 = 16;

/// How far the emptying of some blocks has come. Their pairs stand in front in the workspace.
pub(crate) struct Emptying {
    /// How many pairs there are.
    used: usize,
    /// How many of them are not handed over yet; those stand first.
    pub(crate) todo: usize,
    /// When what is not done is given up.
    pub(crate) deadline: u64,
    /// Turns in a row in which nothing settled.
    pub(crate) idle: u32,
    /// The count of settled pairs before the last look at them.
    pub(crate) settled: u64,
    /// Whose answers are awaited since then, as a set of bits by owner id.
    pub(crate) owners: u32,
    /// Nothing is awaited any more.
    moved_out: bool,
    /// Attempts that are over, from the first on.
    over: usize,
    /// Looks in vain at whether the next one's block is wholly free.
    moments: u32,
    /// What became of the pairs so far.
    pub(crate) stats: MigrateStats,
}

/// What one turn came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All attempts are over.
    Over,
    /// Something settled: the next turn has something to do.
    Progress,
    /// Nothing settled: the next turn can come later.
    Nothing,
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Moves everything out of the blocks that were begun, and ends the attempts: an emptied block stays isolated in
    /// its token, any other is opened again. No lock is held.
    pub(crate) fn empty_blocks(
        &self,
        cpu: CpuId,
        space: &mut Workspace,
        attempts: &mut Attempts,
        used: usize,
        deadline: u64,
    ) -> MigrateStats {
        let mut emptying = self.begin_emptying(space, used, deadline);
        loop {
            match self.turn(cpu, space, attempts, &mut emptying, deadline) {
                Turn::Over => return emptying.stats,
                Turn::Progress => {}
                Turn::Nothing => self.platform.relax(),
            }
        }
    }

    /// The same, to be done in turns until one is [`Turn::Over`].
    pub(crate) fn begin_emptying(
        &self,
        space: &mut Workspace,
        used: usize,
        deadline: u64,
    ) -> Emptying {
        self.balloon_first(&mut space.pairs[..used]);
        Emptying {
            used,
            todo: used,
            deadline,
            idle: 0,
            settled: 0,
            owners: 0,
            moved_out: false,
            over: 0,
            moments: 0,
            stats: MigrateStats::default(),
        }
    }

    /// One turn. Never waits itself; an owner that is polled may wait until `until`, and not at all when the time is
    /// over.
    pub(crate) fn turn(
        &self,
        cpu: CpuId,
        space: &mut Workspace,
        attempts: &mut Attempts,
        emptying: &mut Emptying,
        until: u64,
    ) -> Turn {
        if !emptying.moved_out {
            // Whoever comes late finds answers that were there in time.
            let now = self.platform.now();
            if now >= emptying.deadline {
                self.poll_owners(emptying.owners, now);
            }
            let pairs = &mut space.pairs[..emptying.used];
            if self.move_out(cpu, attempts, pairs, emptying) {
                return match self.ask_owners(emptying, until) {
                    true => Turn::Progress,
                    false => Turn::Nothing,
                };
            }
            emptying.moved_out = true;
        }
        // One attempt after the other: a block that is not wholly free yet, for frees that other CPUs are in the
        // middle of, has a few turns.
        while let Some(attempt) = attempts.get_mut(emptying.over) {
            let hopes = attempt.is_alive() && emptying.moments < MOMENTS;
            let mut whole = hopes && self.is_whole(attempt.block);
            if let Some(purpose) = attempt.writes.filter(|_| hopes && !whole) {
                let waits = self.drop_written(cpu, attempt.block, purpose);
                if waits && self.platform.now() < emptying.deadline {
                    return Turn::Nothing;
                }
                attempt.writes = None;
                whole = self.is_whole(attempt.block);
            }
            if hopes && !whole {
                emptying.moments += 1;
                return Turn::Nothing;
            }
            self.finish(cpu, attempt, whole);
            emptying.over += 1;
            emptying.moments = 0;
        }
        Turn::Over
    }

    // Not inlined: the compiler unrolls the caller's loop.
    #[inline(never)]
    fn is_whole(&self, block: BlockId) -> bool {
        usize::from(self.frames.ledger(block).free()) == FRAMES_PER_BLOCK
    }
}
