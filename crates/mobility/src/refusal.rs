//! Blocks that could not be emptied: why, for how long they are left alone, and when they are tried again.
//!
//! The mark stands in the allocator's ledger ([`FrameAllocator::refuse_block`]), so a refused block is no candidate
//! and costs those who look for one nothing, and the mark falls with the frame that caused it. What the ledger does
//! not see ends by time: each look at a zone examines a few of its refused blocks, going round, and those whose time
//! is over may be tried again. A block that refused once and for a moment is a candidate as before. One that did so
//! again and again, or that an owner refused, is on probation ([`Refusal::Expired`]): a request tries few of them,
//! beside others. So any number of hopeless blocks, however seldom somebody asks, leaves the others their turn.
//!
//! [`FrameAllocator::refuse_block`]: dirigible_frames::FrameAllocator::refuse_block

use dirigible_frames::{BlockId, CpuId, Event, IsolatedBlock, Pfn, Platform, Refusal, ZoneId};

use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// Refused blocks of each kind that one look at a zone examines.
const EXAMINED: usize = 16;
/// Blocks of which one look at a zone asks what they cost now.
const PRICED: usize = 32;
/// A lasting refusal that comes again at once lasts up to 2^this times as long.
const MOST_DOUBLINGS: u32 = 3;

/// A block's note: until when it is left alone, and how many refusals in a row there were before this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Note {
    until: u64,
    strikes: u32,
}

impl Note {
    const STRIKE_BITS: u32 = 5;
    const MOST_STRIKES: u32 = (1 << Self::STRIKE_BITS) - 1;

    const fn unpack(word: u64) -> Self {
        Self {
            until: word >> Self::STRIKE_BITS,
            strikes: word as u32 & Self::MOST_STRIKES,
        }
    }

    /// Times beyond 18 years are cut: the block is tried again then.
    const fn pack(self) -> u64 {
        let strikes = if self.strikes < Self::MOST_STRIKES {
            self.strikes
        } else {
            Self::MOST_STRIKES
        };
        self.until << Self::STRIKE_BITS | strikes as u64
    }

    /// The note of a refusal of `kind` at `now`, after this one. `again`: the same frame stood in the way before.
    fn next(self, kind: Refusal, again: bool, now: u64, retry_ns: u64, memory_ns: u64) -> Self {
        let strikes = match (self.until, again) {
            (0, _) => 0,
            (_, true) => (self.strikes + 1).min(Self::MOST_STRIKES),
            (_, false) => self.strikes,
        };
        let lasts = match kind {
            Refusal::Lasting => memory_ns.saturating_mul(1 << strikes.min(MOST_DOUBLINGS)),
            // Short at first, since most such states end at once; what goes on is asked less and less.
            _ => retry_ns.saturating_mul(1 << strikes).min(memory_ns),
        };
        Self {
            until: now.saturating_add(lasts),
            strikes,
        }
    }
}

impl EvacuateError {
    /// The refusal that it means for the block, and the event that counts it.
    fn refusal(self) -> Option<(Refusal, Event)> {
        Some(match self {
            Self::Refused(_) => (Refusal::Lasting, Event::CompactRefusedOwner),
            Self::UnderWay(_) => (Refusal::Momentary, Event::CompactRefusedUnderWay),
            Self::TimedOut => (Refusal::Momentary, Event::CompactRefusedLate),
            Self::NotEmpty => (Refusal::Momentary, Event::CompactRefusedNotEmpty),
            _ => return None,
        })
    }
}

impl<P: Platform + ?Sized> Mobility<'_, P> {
    /// Counts why a block was not emptied, and opens it; it is left alone for a time if that is its own doing.
    pub(crate) fn open_refused(&self, cpu: CpuId, token: IsolatedBlock, error: EvacuateError) {
        let block = token.block();
        match self.note_refusal(cpu, block, error) {
            Some((kind, offender)) => self.frames.unisolate_refused(token, kind, offender),
            None => self.frames.unisolate_block(token),
        }
    }

    /// The same for a block that was not isolated.
    pub(crate) fn refuse(&self, cpu: CpuId, block: BlockId, error: EvacuateError) {
        if let Some((kind, offender)) = self.note_refusal(cpu, block, error) {
            self.frames.refuse_block(block, kind, offender);
        }
    }

    fn note_refusal(
        &self,
        cpu: CpuId,
        block: BlockId,
        error: EvacuateError,
    ) -> Option<(Refusal, Option<Pfn>)> {
        let (kind, event) = error.refusal()?;
        self.frames.events().add(cpu, event, 1);
        let offender = match error {
            EvacuateError::Refused(frame) | EvacuateError::UnderWay(frame) => Some(frame),
            _ => None,
        };
        let again = self.frames.offender(block) == offender;
        let note = Note::unpack(self.frames.block_note(block)).next(
            kind,
            again,
            self.platform.now(),
            self.config.retry_ns,
            self.config.refusal_memory_ns,
        );
        // Before the mark: whoever finds the mark finds its time.
        self.frames.set_block_note(block, note.pack());
        Some((kind, offender))
    }

    /// Forgets what was noted of a block: it was emptied.
    pub(crate) fn emptied(&self, block: BlockId) {
        self.frames.set_block_note(block, 0);
    }

    /// Looks at a few refused blocks of the zone, and at others the next time: those whose time is over may be tried
    /// again.
    pub(crate) fn forgive(&self, zone: ZoneId, state: &mut ZoneState) {
        let now = self.platform.now();
        for (kind, start) in [
            (Refusal::Momentary, &mut state.momentary),
            (Refusal::Lasting, &mut state.lasting),
        ] {
            self.forgive_kind(zone, kind, start, now);
        }
        if self.config.drops_cold {
            self.price(&mut state.priced);
        }
    }

    /// Has the blocks from `next` on filed by what they cost now, and others the next time: blocks become cheap as their
    /// frames grow old, which changes no ledger.
    #[inline(never)]
    fn price(&self, next: &mut BlockId) {
        for _ in 0..PRICED {
            let block = *next;
            let after = (block.index() + 1) % self.frames.block_capacity();
            *next = BlockId::new(after as u32);
            if self.frames.has_block(block) {
                self.frames.refile_block(block);
            }
        }
    }

    /// The same for refused blocks of one kind, from `start` on.
    #[inline(never)]
    fn forgive_kind(&self, zone: ZoneId, kind: Refusal, start: &mut BlockId, now: u64) {
        for block in self.refused_from(zone, kind, *start).take(EXAMINED) {
            *start = BlockId::new(block.index() as u32 + 1);
            let note = Note::unpack(self.frames.block_note(block));
            if now < note.until {
                continue;
            }
            if kind == Refusal::Momentary && note.strikes < MOST_DOUBLINGS {
                self.frames.forgive_block(block);
            } else {
                let offender = self.frames.offender(block);
                self.frames.refuse_block(block, Refusal::Expired, offender);
            }
        }
    }

    /// A block on probation, another one each time.
    pub(crate) fn on_probation(&self, zone: ZoneId, state: &mut ZoneState) -> Option<BlockId> {
        let block = self
            .refused_from(zone, Refusal::Expired, state.retry)
            .next()?;
        state.retry = BlockId::new(block.index() as u32 + 1);
        Some(block)
    }

    /// The refused blocks of a zone, once round from `start`.
    fn refused_from(
        &self,
        zone: ZoneId,
        kind: Refusal,
        start: BlockId,
    ) -> impl Iterator<Item = BlockId> + '_ {
        let from_the_front = self
            .frames
            .refused_blocks(zone, kind, BlockId::new(0))
            .take_while(move |block| block.index() < start.index());
        self.frames
            .refused_blocks(zone, kind, start)
            .chain(from_the_front)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const NOTHING: Note = Note {
        until: 0,
        strikes: 0,
    };

    fn after(note: Note, kind: Refusal, again: bool, now: u64) -> Note {
        note.next(kind, again, now, MS, 1000 * MS)
    }

    #[test]
    fn momentary_refusals_are_short_and_double_for_the_same_frame() {
        let mut note = NOTHING;
        let mut now = 5 * MS;
        for lasts in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            note = after(note, Refusal::Momentary, true, now);
            assert_eq!(note.until - now, lasts * MS);
            // However late the next one is.
            now = note.until + lasts * 7000 * MS;
        }
        // Another frame each time is another moment each time.
        let mut note = NOTHING;
        for _ in 0..5 {
            note = after(note, Refusal::Momentary, false, now);
            assert_eq!((note.until - now, note.strikes), (MS, 0));
        }
    }

    #[test]
    fn lasting_refusals_last_longer_when_they_come_again() {
        let mut note = NOTHING;
        let mut now = MS;
        for lasts in [1, 2, 4, 8, 8, 8] {
            note = after(note, Refusal::Lasting, true, now);
            assert_eq!(note.until - now, lasts * 1000 * MS);
            now = note.until;
        }
    }

    #[test]
    fn a_note_is_one_word() {
        for note in [
            NOTHING,
            Note {
                until: 1 << 58,
                strikes: Note::MOST_STRIKES,
            },
            Note {
                until: 12345,
                strikes: 3,
            },
        ] {
            assert_eq!(Note::unpack(note.pack()), note);
        }
        assert_eq!(NOTHING.pack(), 0, "no block has a note at first");
    }
}
