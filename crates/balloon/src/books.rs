//! What the balloon needs of a kernel's frame descriptors, and the list that it keeps in their owner words.
#![forbid(unsafe_code)]

use dirigible_frames::{FrameAllocator, FrameState, OwnerId, Pfn};

/// A kernel's frame descriptors, as far as the balloon needs them: a state, an owner and one 64-bit word per frame.
///
/// `FrameAllocator` implements it. A kernel with an allocator of its own needs a byte of state, a byte of owner and a
/// word for each frame that can be ballooned. Only [`transition`](Books::transition) must be atomic; everything else
/// happens under the balloon's lock, on frames that the balloon owns.
///
/// # Who sets which state
///
/// The kernel sets [`Allocated`](FrameState::Allocated) when it hands a frame out, before it gives the frame to
/// [`begin_inflate`](crate::Balloon::begin_inflate) or as the target of an exchange, and takes frames back in that
/// state: it is the only state that the balloon expects and has not set itself. The states of frames that are not
/// handed out are the kernel's own. All other changes of the balloon's frames are the balloon's, by `transition`:
///
/// | from | to |
/// |---|---|
/// | `Allocated` | `Entering` |
/// | `Entering` | `Listed`, `Allocated` |
/// | `Listed` | `Isolated`, `Leaving`, `Allocated` |
/// | `Isolated` | `Listed`, `Leaving`, `Allocated` |
/// | `Leaving` | `Allocated`, `Listed` |
///
/// Two things must be refused: a change whose `from` is not the state found, and any edge from or to a state of frames
/// that are not handed out. So a frame that is given twice, or is somebody else's, is noticed. The balloon asks for no
/// edge that is not in the table, and a kernel may refuse all others. A kernel that keeps the state in a byte stores
/// `state as u8`; `FrameState::from_bits` decodes it.
pub trait Books: Sync {
    /// The lowest frame; the list numbers frames from here.
    fn base(&self) -> Pfn;
    /// How far the frame numbers reach from [`base`](Books::base), holes included; at most [`MAX_SPAN`].
    fn span(&self) -> u64;
    /// The frame's state at this moment.
    fn state(&self, frame: Pfn) -> FrameState;
    /// Changes the state from `from` to `to` in one atomic step.
    ///
    /// # Errors
    /// The state found, and nothing is changed: it is not `from`, or the [edge](Books#who-sets-which-state) must be
    /// refused.
    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState>;
    /// The frame's owner, if it has one.
    fn owner(&self, frame: Pfn) -> Option<OwnerId>;
    /// Makes `owner` the owner of a frame that the caller holds, and `word` its word.
    fn claim(&self, frame: Pfn, owner: OwnerId, word: u64);
    /// Takes the owner off a frame that the caller holds.
    fn disown(&self, frame: Pfn);
    /// The frame's word.
    fn word(&self, frame: Pfn) -> u64;
    /// Sets the frame's word.
    fn set_word(&self, frame: Pfn, word: u64);
    /// Adds `delta` for each of `frames` to the managed frames of its zone; a whole request's frames come at once.
    /// A kernel that does not count them keeps this default, which does nothing.
    fn adjust_managed(&self, frames: &mut dyn Iterator<Item = Pfn>, delta: i64) {
        let _ = (frames, delta);
    }
}

impl Books for FrameAllocator<'_> {
    fn base(&self) -> Pfn {
        FrameAllocator::base(self)
    }

    fn span(&self) -> u64 {
        // Holes included: what is counted is how far the numbers reach.
        self.end().get() - FrameAllocator::base(self).get()
    }

    fn state(&self, frame: Pfn) -> FrameState {
        FrameAllocator::state(self, frame)
    }

    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        FrameAllocator::transition(self, frame, from, to)
    }

    fn owner(&self, frame: Pfn) -> Option<OwnerId> {
        Some(FrameAllocator::owner(self, frame)).filter(|&owner| owner != OwnerId::NONE)
    }

    fn claim(&self, frame: Pfn, owner: OwnerId, word: u64) {
        self.set_owner(frame, owner, word);
    }

    fn disown(&self, frame: Pfn) {
        self.set_owner(frame, OwnerId::NONE, 0);
    }

    fn word(&self, frame: Pfn) -> u64 {
        self.owner_word(frame)
    }

    fn set_word(&self, frame: Pfn, word: u64) {
        self.set_owner_word(frame, word);
    }

    #[inline(never)]
    fn adjust_managed(&self, frames: &mut dyn Iterator<Item = Pfn>, delta: i64) {
        self.adjust_managed_each(frames, delta);
    }
}

/// The end of the list.
const NIL: u32 = u32::MAX;
/// Stands for the previous frame in a frame that is on no list: so a frame that is unlinked twice is noticed.
const UNLINKED: u32 = NIL - 1;

/// The most frames, holes included, that a balloon's list can span: 16 TiB less two frames. Frame numbers on the wire
/// have 32 bits too, so no balloon could name more.
pub const MAX_SPAN: u64 = UNLINKED as u64;

/// The owner word of a balloon frame: previous and next frame in 32 bits each, both one higher than they are, so that
/// a word of zeroes links to nothing.
///
/// Only the owner number says whose frame it is, so each balloon of a machine has a number of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

impl Link {
    const fn pack(self) -> u64 {
        (self.prev.wrapping_add(1) as u64) << 32 | self.next.wrapping_add(1) as u64
    }

    const fn unpack(word: u64) -> Self {
        Self {
            prev: ((word >> 32) as u32).wrapping_sub(1),
            next: (word as u32).wrapping_sub(1),
        }
    }
}

/// The word of a frame that is on no list, with a mark of the balloon's.
pub(crate) const fn unlinked_word(mark: u32) -> u64 {
    Link {
        prev: UNLINKED,
        next: mark,
    }
    .pack()
}

/// The mark in the word of a frame that is on no list.
pub(crate) const fn mark_of(word: u64) -> Option<u32> {
    match Link::unpack(word) {
        Link {
            prev: UNLINKED,
            next,
        } => Some(next),
        _ => None,
    }
}

/// The links of a frame do not fit together: somebody wrote over an owner word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Corrupt;

/// A balloon's frames, newest first, linked through their owner words.
///
/// Every link is checked before it is followed: a word that somebody else wrote leads to [`Corrupt`], never to a
/// frame outside the books.
#[derive(Debug)]
pub(crate) struct List {
    /// The books' first frame. Kept here, because the books may have to search for it.
    base: Pfn,
    head: u32,
    len: u64,
}

impl List {
    pub(crate) fn new<B: Books + ?Sized>(books: &B) -> Self {
        Self {
            base: books.base(),
            head: NIL,
            len: 0,
        }
    }

    /// The lowest frame that the list can hold.
    pub(crate) const fn base(&self) -> Pfn {
        self.base
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    fn frame<B: Books + ?Sized>(&self, books: &B, index: u32) -> Result<Pfn, Corrupt> {
        if u64::from(index) < books.span() {
            Ok(self.base.plus(u64::from(index)))
        } else {
            Err(Corrupt)
        }
    }

    fn index(&self, frame: Pfn) -> u32 {
        (frame.get() - self.base.get()) as u32
    }

    fn link<B: Books + ?Sized>(books: &B, frame: Pfn) -> Result<Link, Corrupt> {
        let link = Link::unpack(books.word(frame));
        if link.prev != UNLINKED && link.next != UNLINKED {
            Ok(link)
        } else {
            Err(Corrupt)
        }
    }

    /// Puts `frame` at the front.
    pub(crate) fn push<B: Books + ?Sized>(&mut self, books: &B, frame: Pfn) {
        let index = self.index(frame);
        if self.head != NIL
            && let Ok(head) = self.frame(books, self.head)
        {
            let mut link = Link::unpack(books.word(head));
            link.prev = index;
            books.set_word(head, link.pack());
        }
        let link = Link {
            prev: NIL,
            next: self.head,
        };
        books.set_word(frame, link.pack());
        self.head = index;
        self.len += 1;
    }

    /// Takes `frame` out, wherever it is in the list, and leaves `mark` in its word.
    pub(crate) fn unlink<B: Books + ?Sized>(
        &mut self,
        books: &B,
        frame: Pfn,
        mark: u32,
    ) -> Result<(), Corrupt> {
        let Some(rest) = self.len.checked_sub(1) else {
            return Err(Corrupt);
        };
        let index = self.index(frame);
        let link = Self::link(books, frame)?;
        let is_alone = link.prev == NIL && link.next == NIL;
        if link.prev == index || link.next == index || is_alone && rest > 0 {
            return Err(Corrupt);
        }
        // Look at both neighbours before either is changed: a corrupt link changes nothing.
        let prev = if link.prev == NIL {
            if self.head != index {
                return Err(Corrupt);
            }
            None
        } else {
            let prev = self.frame(books, link.prev)?;
            let other = Self::link(books, prev)?;
            if other.next != index {
                return Err(Corrupt);
            }
            Some((prev, other))
        };
        let next = if link.next == NIL {
            None
        } else {
            let next = self.frame(books, link.next)?;
            let other = Self::link(books, next)?;
            if other.prev != index {
                return Err(Corrupt);
            }
            Some((next, other))
        };
        match prev {
            Some((prev, other)) => {
                books.set_word(
                    prev,
                    Link {
                        next: link.next,
                        ..other
                    }
                    .pack(),
                );
            }
            None => self.head = link.next,
        }
        if let Some((next, other)) = next {
            books.set_word(
                next,
                Link {
                    prev: link.prev,
                    ..other
                }
                .pack(),
            );
        }
        books.set_word(frame, unlinked_word(mark));
        self.len = rest;
        Ok(())
    }

    /// The newest frame, which stays where it is.
    pub(crate) fn newest<B: Books + ?Sized>(&self, books: &B) -> Result<Option<Pfn>, Corrupt> {
        match (self.head, self.len) {
            (NIL, 0) => Ok(None),
            (NIL, _) | (_, 0) => Err(Corrupt),
            (head, _) => self.frame(books, head).map(Some),
        }
    }

    /// Calls `visit` for each frame, newest first, checking both directions and the length.
    pub(crate) fn walk<B: Books + ?Sized>(
        &self,
        books: &B,
        mut visit: impl FnMut(Pfn) -> Result<(), Corrupt>,
    ) -> Result<(), Corrupt> {
        let (mut at, mut prev, mut seen) = (self.head, NIL, 0);
        while at != NIL {
            if seen == self.len {
                return Err(Corrupt);
            }
            let frame = self.frame(books, at)?;
            let link = Self::link(books, frame)?;
            if link.prev != prev {
                return Err(Corrupt);
            }
            visit(frame)?;
            (prev, at, seen) = (at, link.next, seen + 1);
        }
        if seen == self.len {
            Ok(())
        } else {
            Err(Corrupt)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dirigible_frames::{
        BalloonPlacement, Config, CpuId, Fallback, Placement, Watermark, Watermarks, ZoneConfig,
    };
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    /// An allocator of one block, and some of its frames in state `Allocated`.
    pub(crate) fn frames(count: usize) -> (&'static FrameAllocator<'static>, Vec<Pfn>) {
        let ranges = [Pfn::new(512)..Pfn::new(1024)];
        let watermarks = Watermarks::default();
        let zone = ZoneConfig {
            name: "zone",
            ranges: &ranges,
            watermarks,
            reserve_blocks: 0,
        };
        let config = Config {
            zones: &[zone],
            reserved: &[],
            cpus: 1,
            placement: Placement::LowestFirst,
            fallback: Fallback::Steal,
            ..Config::default()
        };
        let metadata = vec![0; FrameAllocator::metadata_bytes(&config).unwrap()];
        let frames = FrameAllocator::new(&config, metadata.leak()).unwrap();
        let mut out = vec![Pfn::default(); count];
        let how = BalloonPlacement::Ordinary;
        assert_eq!(
            frames.alloc_balloon(CpuId::new(0), how, Watermark::None, &mut out),
            count
        );
        (Box::leak(Box::new(frames)), out)
    }

    #[test]
    fn list_is_newest_first_and_gives_from_anywhere() {
        let (books, frames) = frames(5);
        let mut list = List::new(books);
        frames.iter().for_each(|&frame| list.push(books, frame));
        let order = |list: &List| {
            let mut seen = Vec::new();
            list.walk(books, |frame| {
                seen.push(frame);
                Ok(())
            })
            .unwrap();
            seen
        };
        assert_eq!(
            order(&list),
            [frames[4], frames[3], frames[2], frames[1], frames[0]]
        );
        for at in [2, 4, 0] {
            list.unlink(books, frames[at], 9).unwrap();
            assert_eq!(mark_of(books.word(frames[at])), Some(9));
            // Once more finds it unlinked, and leaves the others alone.
            assert_eq!(list.unlink(books, frames[at], 9), Err(Corrupt));
        }
        assert_eq!(order(&list), [frames[3], frames[1]]);
        assert_eq!(list.newest(books), Ok(Some(frames[3])));
        list.unlink(books, frames[3], 9).unwrap();
        list.unlink(books, frames[1], 9).unwrap();
        assert_eq!((list.newest(books), list.len()), (Ok(None), 0));
    }

    /// The neighbours fit, and yet the frame is not on this list: a count that would fall below zero is no panic.
    #[test]
    fn a_frame_of_another_list_is_not_taken() {
        let (books, frames) = frames(3);
        let (mut list, mut other) = (List::new(books), List::new(books));
        frames.iter().for_each(|&frame| list.push(books, frame));
        for &frame in &frames {
            assert_eq!(other.unlink(books, frame, 0), Err(Corrupt));
        }
        assert_eq!((list.len(), other.len()), (3, 0));
        assert!(list.walk(books, |_| Ok(())).is_ok());
    }

    #[test]
    fn corrupt_words_lead_nowhere() {
        for word in [
            0,
            u64::MAX,
            7 << 56,
            0x0000_0010_0000_0011,
            unlinked_word(7),
        ] {
            for at in 0..3 {
                let (books, frames) = frames(3);
                let mut list = List::new(books);
                frames.iter().for_each(|&frame| list.push(books, frame));
                books.set_word(frames[at], word);
                assert_eq!(list.unlink(books, frames[at], 9), Err(Corrupt));
                assert!(list.walk(books, |_| Ok(())).is_err());
                assert_eq!((books.word(frames[at]), list.len()), (word, 3));
            }
        }
    }
}
