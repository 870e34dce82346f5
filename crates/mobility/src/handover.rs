//! Handing isolated frames to their owners, and asking for the answers: no lock is held here.

use dirigible_frames::sync::Ordering;
use dirigible_frames::{CpuId, FrameClass, FrameState, OwnerId, Pfn, Platform};

use crate::config::WORKSPACE_FRAMES;
use crate::empty::Emptying;
use crate::evacuate::Attempts;
use crate::migrate::{Freed, Kind, gather};
use crate::{EvacuateError, MigrateStats, Mobility, MovePair, Outcome};

/// How long one owner is waited for before the others are asked, in nanoseconds.
const TURN_NS: u64 = 1_000_000;

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Brings the balloon frames to the front: while the host works on them, the others are copied.
    pub(crate) fn balloon_first(&self, pairs: &mut [MovePair]) {
        gather(pairs, &|pair| {
            self.isolated_kind(pair.from)
                .is_some_and(|kind| kind.class == FrameClass::Balloon)
        });
    }

    /// Migrates the isolated pairs of all attempts, as far as their owners have room. An attempt of which one pair is
    /// refused is given up, and its remaining pairs are put back. What an owner has no room for is handed over by the
    /// next call; what is not done at the deadline is given up. Gives whether answers are awaited.
    pub(crate) fn move_out(
        &self,
        cpu: CpuId,
        attempts: &mut Attempts,
        pairs: &mut [MovePair],
        emptying: &mut Emptying,
    ) -> bool {
        let todo = emptying.todo;
        // Acquire pairs with the release in `complete`. Read before the pairs are looked at: what settles later
        // changes the counter.
        emptying.settled = self.settled.load(Ordering::Acquire);
        self.hand_over(cpu, attempts, &mut pairs[..todo], &mut emptying.stats);
        self.note_late_refusals(attempts, &pairs[..]);
        // What is left of attempts that were given up goes back at once, and nobody waits for the rest of it.
        let alive = gather(&mut pairs[..todo], &|pair| {
            pair.outcome == Outcome::Todo && self.attempt_of(attempts, pair.from).is_some()
        });
        let dead = gather(&mut pairs[alive..todo], &|pair| {
            pair.outcome == Outcome::Todo
        });
        self.put_back(cpu, &mut pairs[alive..alive + dead]);
        self.finish_dead(cpu, attempts);
        emptying.todo = alive;
        emptying.owners = self.awaited(attempts, &pairs[..alive], &pairs[alive..]);
        if emptying.owners == 0 {
            return false;
        }
        // The deadline bounds the turns, and where the clock stands still, the turns in which nothing settles.
        if self.platform.now() < emptying.deadline && emptying.idle < self.config.idle_polls {
            return true;
        }
        for pair in pairs.iter() {
            let late = match pair.outcome {
                Outcome::Todo => true,
                Outcome::Pending => self.is_pending(pair),
                _ => false,
            };
            if late && let Some(at) = self.attempt_of(attempts, pair.from) {
                attempts[at].error = Some(EvacuateError::TimedOut);
            }
        }
        self.put_back(cpu, &mut pairs[..alive]);
        emptying.todo = 0;
        false
    }

    /// Lets the owners whose answers are awaited go on, none beyond `until`; whether anything settled since the last
    /// look.
    pub(crate) fn ask_owners(&self, emptying: &mut Emptying, until: u64) -> bool {
        let progress = self.poll_owners(emptying.owners, until)
            || self.settled.load(Ordering::Acquire) != emptying.settled;
        emptying.idle = if progress { 0 } else { emptying.idle + 1 };
        progress
    }

    /// Gives attempts up of which a pending pair has settled as refused: its frame is back on its owner's books.
    fn note_late_refusals(&self, attempts: &mut Attempts, pairs: &[MovePair]) {
        for pair in pairs.iter().filter(|pair| pair.outcome == Outcome::Pending) {
            if self.frames.state(pair.from) == FrameState::Listed
                && let Some(at) = self.attempt_of(attempts, pair.from)
            {
                attempts[at].error = Some(EvacuateError::Refused(pair.from));
            }
        }
    }

    /// The owners, as a set of bits by number, of pairs that are still to be handed over, or have no answer and
    /// belong to an attempt that goes on.
    fn awaited(&self, attempts: &Attempts, todo: &[MovePair], handed_over: &[MovePair]) -> u32 {
        let pending = handed_over.iter().filter(|pair| {
            pair.outcome == Outcome::Pending
                && self.is_pending(pair)
                && self.attempt_of(attempts, pair.from).is_some()
        });
        todo.iter().chain(pending).fold(0, |owners, pair| {
            owners | 1 << (u32::from(self.frames.owner(pair.from).get()) % u32::BITS)
        })
    }

    /// Whether a pair that was left pending has not settled yet. Its block is isolated, so nobody takes the old frame.
    fn is_pending(&self, pair: &MovePair) -> bool {
        !matches!(
            self.frames.state(pair.from),
            FrameState::Free | FrameState::Listed
        )
    }

    /// Lets the owners of pending pairs go on; whether any pair settled.
    pub(crate) fn poll_owners(&self, owners: u32, deadline: u64) -> bool {
        let mut progress = false;
        for number in (0..u32::BITS).filter(|number| owners & (1 << number) != 0) {
            if let Some(id) = u8::try_from(number).ok().and_then(OwnerId::new) {
                let turn = self.platform.now().saturating_add(TURN_NS).min(deadline);
                progress |= self.poll_owner(id, turn);
            }
        }
        progress
    }

    /// Takes what has settled; if nothing has, lets the owner go on until `deadline` and takes what settles then. Gives
    /// whether there was progress.
    fn poll_owner(&self, id: OwnerId, deadline: u64) -> bool {
        let Some(owner) = self.registry.enter(id) else {
            return false;
        };
        if self.drain_owner(id, &*owner) > 0 {
            // It may have room now: its answers are not waited for.
            return true;
        }
        let progress = owner.poll(deadline);
        self.drain_owner(id, &*owner) > 0 || progress
    }

    /// Hands all pairs to their owners, as far as these have room. Those without room keep the outcome `Todo`.
    fn hand_over(
        &self,
        cpu: CpuId,
        attempts: &mut Attempts,
        pairs: &mut [MovePair],
        stats: &mut MigrateStats,
    ) {
        let mut rest = pairs;
        while let Some(kind) = rest.first().and_then(|pair| self.isolated_kind(pair.from)) {
            let group = gather(rest, &|pair| self.isolated_kind(pair.from) == Some(kind));
            let (group, others) = rest.split_at_mut(group);
            rest = others;
            let size = match kind.class {
                FrameClass::Balloon => self.config.exchange_batch,
                _ => WORKSPACE_FRAMES,
            };
            for batch in group.chunks_mut(size) {
                stats.add(self.move_batch(cpu, attempts, kind, batch));
                if batch.iter().any(|pair| pair.outcome == Outcome::Todo) {
                    // No room: the others of this owner come later too.
                    break;
                }
            }
        }
        debug_assert!(rest.is_empty(), "every pair of the workspace is isolated");
    }

    /// Migrates one batch, without the pairs of attempts that were given up meanwhile: those are put back.
    fn move_batch(
        &self,
        cpu: CpuId,
        attempts: &mut Attempts,
        kind: Kind,
        batch: &mut [MovePair],
    ) -> MigrateStats {
        let alive = gather(batch, &|pair| {
            self.attempt_of(attempts, pair.from).is_some()
        });
        let (batch, given_up) = batch.split_at_mut(alive);
        self.put_back(cpu, given_up);
        if batch.is_empty() {
            return MigrateStats::default();
        }
        let stats = self.migrate_batch(cpu, kind, batch);
        for pair in batch.iter().filter(|pair| pair.outcome == Outcome::Refused) {
            if let Some(at) = self.attempt_of(attempts, pair.from) {
                attempts[at].error = Some(EvacuateError::Refused(pair.from));
            }
        }
        stats
    }

    /// Undoes pairs that were not handed over.
    #[inline(never)]
    pub(crate) fn put_back(&self, cpu: CpuId, pairs: &mut [MovePair]) {
        let mut unused = Freed::new(self.frames, cpu);
        for pair in pairs {
            pair.outcome = Outcome::Refused;
            self.putback_frame(cpu, pair.from);
            unused.push(pair.to, pair.order);
        }
    }

    /// The attempt that still tries to empty the block of `frame`.
    #[inline(never)]
    fn attempt_of(&self, attempts: &Attempts, frame: Pfn) -> Option<usize> {
        let block = self.frames.block_of(frame)?;
        attempts
            .iter()
            .position(|attempt| attempt.block == block && attempt.is_alive())
    }

    /// Waits until an owner that had no room answers something; `false` at the deadline.
    pub(crate) fn wait_for_room(&self, id: OwnerId, deadline: u64) -> bool {
        for _ in 0..self.config.idle_polls {
            if self.platform.now() >= deadline {
                return false;
            }
            // Acquire pairs with the release in `complete`.
            let before = self.settled.load(Ordering::Acquire);
            if self.poll_owner(id, deadline) || self.settled.load(Ordering::Acquire) != before {
                return true;
            }
            self.platform.relax();
        }
        false
    }
}
