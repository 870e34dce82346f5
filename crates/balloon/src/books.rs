//! What the balloon needs to know of a kernel's frames, and the list it keeps through their owner words.
#![forbid(unsafe_code)]

use dirigible_frames::{FRAMES_PER_BLOCK, FrameAllocator, FrameState, OwnerClass, Pfn};

/// A kernel's frame descriptors, as far as the balloon needs them: a state and one 64-bit word per frame.
///
/// `FrameAllocator` implements it. A kernel with an allocator of its own needs one byte of state and one word for each
/// frame that can be ballooned. Only [`transition`](Books::transition) must be atomic; everything else happens under
/// the balloon's lock, on frames that the balloon owns.
pub trait Books: Sync {
    /// The lowest frame; the list numbers frames from here.
    fn base(&self) -> Pfn;
    /// How far the frames reach from [`base`](Books::base), at most [`MAX_SPAN`].
    fn span(&self) -> u64;
    /// The frame's state at this moment.
    fn state(&self, frame: Pfn) -> FrameState;
    /// Changes the state from `from` to `to` in one atomic step; the error is the state found.
    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState>;
    /// Whose frame it is, if anybody's.
    fn owner(&self, frame: Pfn) -> Option<OwnerClass>;
    /// Makes the frame, which the caller owns, one of `class` with word `word`.
    fn claim(&self, frame: Pfn, class: OwnerClass, word: u64);
    /// Makes the frame, which the caller owns, nobody's.
    fn disown(&self, frame: Pfn);
    /// The frame's word.
    fn word(&self, frame: Pfn) -> u64;
    /// Sets the frame's word.
    fn set_word(&self, frame: Pfn, word: u64);
    /// Adds `delta` to the managed frames of the frame's zone. Kernels that do not count them do nothing.
    fn adjust_managed(&self, frame: Pfn, delta: i64) {
        let _ = (frame, delta);
    }
}

impl Books for FrameAllocator<'_> {
    fn base(&self) -> Pfn {
        FrameAllocator::base(self)
    }

    fn span(&self) -> u64 {
        (self.blocks().len() * FRAMES_PER_BLOCK) as u64
    }

    fn state(&self, frame: Pfn) -> FrameState {
        FrameAllocator::state(self, frame)
    }

    fn transition(&self, frame: Pfn, from: FrameState, to: FrameState) -> Result<(), FrameState> {
        FrameAllocator::transition(self, frame, from, to)
    }

    fn owner(&self, frame: Pfn) -> Option<OwnerClass> {
        Some(FrameAllocator::owner(self, frame)).filter(|&owner| owner != OwnerClass::NONE)
    }

    fn claim(&self, frame: Pfn, class: OwnerClass, word: u64) {
        self.set_owner(frame, class, word);
    }

    fn disown(&self, frame: Pfn) {
        self.set_owner(frame, OwnerClass::NONE, 0);
    }

    fn word(&self, frame: Pfn) -> u64 {
        self.owner_word(frame)
    }

    fn set_word(&self, frame: Pfn, word: u64) {
        self.set_owner_word(frame, word);
    }

    fn adjust_managed(&self, frame: Pfn, delta: i64) {
        FrameAllocator::adjust_managed(self, frame, delta);
    }
}

const LINK_BITS: u32 = 28;
const LINK_MASK: u64 = (1 << LINK_BITS) - 1;
/// The end of the list.
const NIL: u32 = LINK_MASK as u32;
/// Both links of a frame that is on no list: a frame unlinked twice is noticed.
const UNLINKED: u32 = NIL - 1;

/// The most frames, holes included, that a balloon's list can span: 1 TiB less two frames.
pub const MAX_SPAN: u64 = UNLINKED as u64;

/// The owner word of a balloon frame: device in 8 bits, previous and next frame in 28 each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    device: u8,
    prev: u32,
    next: u32,
}

impl Link {
    const fn pack(self) -> u64 {
        (self.device as u64) << (2 * LINK_BITS) | (self.prev as u64) << LINK_BITS | self.next as u64
    }

    const fn unpack(word: u64) -> Self {
        Self {
            device: (word >> (2 * LINK_BITS)) as u8,
            prev: (word >> LINK_BITS & LINK_MASK) as u32,
            next: (word & LINK_MASK) as u32,
        }
    }
}

/// The word of a frame of `device` that is on no list.
pub(crate) const fn unlinked_word(device: u8) -> u64 {
    Link {
        device,
        prev: UNLINKED,
        next: UNLINKED,
    }
    .pack()
}

/// The device that a balloon frame's word names.
pub(crate) const fn device_of(word: u64) -> u8 {
    Link::unpack(word).device
}

/// The links of a frame do not fit together: something wrote over an owner word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Corrupt;

/// A balloon's frames, newest first, linked through their owner words.
///
/// Every link is checked before it is followed: a word that somebody else wrote leads to [`Corrupt`], never to a
/// frame outside the books.
#[derive(Debug)]
pub(crate) struct List {
    head: u32,
    len: u64,
    device: u8,
}

impl List {
    pub(crate) const fn new(device: u8) -> Self {
        Self {
            head: NIL,
            len: 0,
            device,
        }
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    fn frame<B: Books + ?Sized>(books: &B, index: u32) -> Result<Pfn, Corrupt> {
        if u64::from(index) < books.span() {
            Ok(books.base().plus(u64::from(index)))
        } else {
            Err(Corrupt)
        }
    }

    fn index<B: Books + ?Sized>(books: &B, frame: Pfn) -> u32 {
        (frame.get() - books.base().get()) as u32
    }

    fn link<B: Books + ?Sized>(&self, books: &B, frame: Pfn) -> Result<Link, Corrupt> {
        let link = Link::unpack(books.word(frame));
        if link.device == self.device && link.prev != UNLINKED && link.next != UNLINKED {
            Ok(link)
        } else {
            Err(Corrupt)
        }
    }

    /// Puts `frame` at the front.
    pub(crate) fn push<B: Books + ?Sized>(&mut self, books: &B, frame: Pfn) {
        let index = Self::index(books, frame);
        if self.head != NIL
            && let Ok(head) = Self::frame(books, self.head)
        {
            let mut link = Link::unpack(books.word(head));
            link.prev = index;
            books.set_word(head, link.pack());
        }
        let link = Link {
            device: self.device,
            prev: NIL,
            next: self.head,
        };
        books.set_word(frame, link.pack());
        self.head = index;
        self.len += 1;
    }

    /// Takes `frame` out, from wherever it stands.
    pub(crate) fn unlink<B: Books + ?Sized>(
        &mut self,
        books: &B,
        frame: Pfn,
    ) -> Result<(), Corrupt> {
        let index = Self::index(books, frame);
        let link = self.link(books, frame)?;
        if link.prev == index || link.next == index {
            return Err(Corrupt);
        }
        // Look at both neighbours before either is changed: a corrupt link changes nothing.
        let prev = if link.prev == NIL {
            if self.head != index {
                return Err(Corrupt);
            }
            None
        } else {
            let prev = Self::frame(books, link.prev)?;
            let other = self.link(books, prev)?;
            if other.next != index {
                return Err(Corrupt);
            }
            Some((prev, other))
        };
        let next = if link.next == NIL {
            None
        } else {
            let next = Self::frame(books, link.next)?;
            let other = self.link(books, next)?;
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
        books.set_word(frame, unlinked_word(self.device));
        self.len -= 1;
        Ok(())
    }

    /// The newest frame, which stays where it is.
    pub(crate) fn newest<B: Books + ?Sized>(&self, books: &B) -> Result<Option<Pfn>, Corrupt> {
        match (self.head, self.len) {
            (NIL, 0) => Ok(None),
            (NIL, _) | (_, 0) => Err(Corrupt),
            (head, _) => Self::frame(books, head).map(Some),
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
            let frame = Self::frame(books, at)?;
            let link = self.link(books, frame)?;
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

    /// An allocator of one block, and some of its frames in state `Owned`.
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
        let mut list = List::new(7);
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
            list.unlink(books, frames[at]).unwrap();
            // Once more finds it unlinked, and leaves the others alone.
            assert_eq!(list.unlink(books, frames[at]), Err(Corrupt));
        }
        assert_eq!(order(&list), [frames[3], frames[1]]);
        assert_eq!(list.newest(books), Ok(Some(frames[3])));
        list.unlink(books, frames[3]).unwrap();
        list.unlink(books, frames[1]).unwrap();
        assert_eq!((list.newest(books), list.len()), (Ok(None), 0));
    }

    #[test]
    fn corrupt_words_lead_nowhere() {
        for word in [
            0,
            u64::MAX,
            7 << 56,
            7 << 56 | 0x0000_0010_0000_0011,
            unlinked_word(7),
        ] {
            for at in 0..3 {
                let (books, frames) = frames(3);
                let mut list = List::new(7);
                frames.iter().for_each(|&frame| list.push(books, frame));
                books.set_word(frames[at], word);
                assert_eq!(list.unlink(books, frames[at]), Err(Corrupt));
                assert!(list.walk(books, |_| Ok(())).is_err());
                assert_eq!((books.word(frames[at]), list.len()), (word, 3));
            }
        }
    }
}
