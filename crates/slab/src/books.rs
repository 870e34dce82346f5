//! Which slabs have room: a list through the heads of the frames.

use dirigible_frames::{FrameAllocator, FrameContents, Pfn};

/// Word of a slab's frame: the next partial slab.
pub const NEXT: usize = 0;
/// Word of a slab's frame: the one before.
pub const BEFORE: usize = 1;
/// Word of a slab's frame: whose slab it is.
pub const TAG: usize = 2;
/// Words of a frame before its objects.
pub const HEAD_WORDS: usize = 3;

/// No slab, in a link. No frame has this number.
pub const NONE: u64 = u64::MAX;

/// What a cache's lock protects, together with the heads and the owner words of its frames.
#[derive(Debug)]
pub struct Books {
    /// The first partial slab.
    pub partial: Option<Pfn>,
    /// The empty slab that is kept.
    pub spare: Option<Pfn>,
    /// Objects handed out.
    pub objects: u64,
    /// Frames held.
    pub frames: u64,
}

/// A link as it is stored.
fn to_link(frame: Option<Pfn>) -> u64 {
    frame.map_or(NONE, Pfn::get)
}

/// The frame that a stored link names.
pub fn from_link(link: u64) -> Option<Pfn> {
    (link != NONE).then(|| Pfn::new(link))
}

impl Books {
    /// Puts `frame` at the head of the partial slabs.
    pub fn link(&mut self, platform: &impl FrameContents, frame: Pfn) {
        platform.write_word(frame, NEXT, to_link(self.partial));
        platform.write_word(frame, BEFORE, NONE);
        if let Some(first) = self.partial {
            platform.write_word(first, BEFORE, frame.get());
        }
        self.partial = Some(frame);
    }

    /// Takes `frame`, which is there, out of the partial slabs.
    pub fn unlink(&mut self, platform: &impl FrameContents, frame: Pfn) {
        let next = from_link(platform.read_word(frame, NEXT));
        let before = from_link(platform.read_word(frame, BEFORE));
        match before {
            Some(before) => platform.write_word(before, NEXT, to_link(next)),
            None => self.partial = next,
        }
        if let Some(next) = next {
            platform.write_word(next, BEFORE, to_link(before));
        }
    }

    /// Takes a slot of a slab with room, the kept one at last. `full` has the bits of all slots.
    pub fn take(
        &mut self,
        frames: &FrameAllocator<'_>,
        platform: &impl FrameContents,
        full: u64,
    ) -> Option<(Pfn, usize)> {
        let frame = match self.partial {
            Some(frame) => frame,
            None => {
                let spare = self.spare.take()?;
                self.link(platform, spare);
                spare
            }
        };
        let used = frames.owner_word(frame);
        let slot = (!used & full).trailing_zeros() as usize;
        debug_assert!(slot < 64, "{frame} is listed and full");
        let used = used | 1 << slot;
        frames.set_owner_word(frame, used);
        if used == full {
            self.unlink(platform, frame);
        }
        self.objects += 1;
        Some((frame, slot))
    }

    /// Gives a used slot back. Gives the frame if it is no longer wanted: it is off the books then.
    pub fn put(
        &mut self,
        frames: &FrameAllocator<'_>,
        platform: &impl FrameContents,
        full: u64,
        (frame, slot): (Pfn, usize),
    ) -> Option<Pfn> {
        let used = frames.owner_word(frame);
        let left = used & !(1 << slot);
        debug_assert_ne!(used, left);
        frames.set_owner_word(frame, left);
        self.objects -= 1;
        match (used == full, left == 0) {
            (true, false) => self.link(platform, frame),
            (false, true) => self.unlink(platform, frame),
            // A slab of one object is full or empty; any other stays where it is.
            _ => {}
        }
        if left != 0 {
            return None;
        }
        self.keep_empty(frame)
    }

    /// Keeps an empty slab that is in no list, or gives it back, off the books.
    pub fn keep_empty(&mut self, frame: Pfn) -> Option<Pfn> {
        if self.spare.is_none() {
            self.spare = Some(frame);
            return None;
        }
        self.frames -= 1;
        Some(frame)
    }
}
