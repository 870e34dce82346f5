//! Blocks that could not be emptied: why, for how long they are left alone, and when they are tried again.
//!
//! The mark stands in the allocator's ledger ([`FrameAllocator::refuse_block`]), so a refused block is no candidate and
//! costs those who look for one nothing, and the mark falls with the frame that caused it. What the ledger does not see ends
//! by time: each look at a zone lets a few of its refused blocks whose time is over be candidates again, going round.
//!
//! [`FrameAllocator::refuse_block`]: dirigible_frames::FrameAllocator::refuse_block

use dirigible_frames::{BlockId, CpuId, Event, Platform, Refusal, ZoneId};

use crate::zone::ZoneState;
use crate::{EvacuateError, Mobility};

/// Refused blocks of each kind that one look at a zone examines.
const EXAMINED: usize = 16;
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

    /// The note of a refusal of `kind` at `now`, after this one.
    fn next(self, kind: Refusal, now: u64, retry_ns: u64, memory_ns: u64) -> Self {
        // Refusals long after each other have nothing to do with each other.
        let again = self.until != 0 && now < self.until.saturating_add(memory_ns);
        let strikes = if again {
            (self.strikes + 1).min(Self::MOST_STRIKES)
        } else {
            0
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
    /// What it says about the block, and the event that counts it.
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
    /// Counts why `block` was not emptied, and leaves it alone for a time if that is the block's doing. The block is open.
    pub(crate) fn refused(&self, cpu: CpuId, block: BlockId, error: EvacuateError) {
        let Some((kind, event)) = error.refusal() else {
            return;
        };
        self.frames.events().add(cpu, event, 1);
        let note = Note::unpack(self.frames.block_note(block)).next(
            kind,
            self.platform.now(),
            self.config.retry_ns,
            self.config.refusal_memory_ns,
        );
        // The note first: whoever finds the mark finds its time.
        self.frames.set_block_note(block, note.pack());
        let offender = match error {
            EvacuateError::Refused(frame) | EvacuateError::UnderWay(frame) => Some(frame),
            _ => None,
        };
        self.frames.refuse_block(block, kind, offender);
    }

    /// Forgets what was noted of a block: it was emptied.
    pub(crate) fn emptied(&self, block: BlockId) {
        self.frames.set_block_note(block, 0);
    }

    /// Lets refused blocks of the zone be candidates again if their time is over. Looks at a few, and goes on with others
    /// the next time.
    pub(crate) fn forgive(&self, zone: ZoneId, state: &mut ZoneState) {
        let now = self.platform.now();
        for (kind, start) in [
            (Refusal::Momentary, &mut state.momentary),
            (Refusal::Lasting, &mut state.lasting),
        ] {
            let from_here = self.frames.refused_blocks(zone, kind, *start);
            let before = *start;
            let from_the_front = self
                .frames
                .refused_blocks(zone, kind, BlockId::new(0))
                .take_while(|block| block.index() < before.index());
            for block in from_here.chain(from_the_front).take(EXAMINED) {
                *start = BlockId::new(block.index() as u32 + 1);
                if now >= Note::unpack(self.frames.block_note(block)).until {
                    self.frames.forgive_block(block);
                }
            }
        }
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

    fn after(note: Note, kind: Refusal, now: u64) -> Note {
        note.next(kind, now, MS, 1000 * MS)
    }

    #[test]
    fn momentary_refusals_are_short_and_double() {
        let mut note = NOTHING;
        let mut now = 5 * MS;
        for lasts in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            note = after(note, Refusal::Momentary, now);
            assert_eq!(note.until - now, lasts * MS);
            now = note.until;
        }
        // Long after: from the beginning.
        let later = after(note, Refusal::Momentary, note.until + 1000 * MS);
        assert_eq!((later.until - note.until, later.strikes), (1001 * MS, 0));
    }

    #[test]
    fn lasting_refusals_last_longer_when_they_come_again() {
        let mut note = NOTHING;
        let mut now = MS;
        for lasts in [1, 2, 4, 8, 8, 8] {
            note = after(note, Refusal::Lasting, now);
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
