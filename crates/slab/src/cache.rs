//! The cache: allocation, freeing, and access to objects.

use dirigible_frames::{
    AllocRequest, FRAME_SIZE, FrameAllocator, FrameClass, FrameContents, FrameState, Order,
    OutOfMemory, PageSource, Pfn,
    sync::{Mutex, MutexGuard},
};

use crate::{
    Object,
    books::{Books, HEAD_WORDS, TAG},
    object::MAX_SLOTS,
};

const FRAME_WORDS: usize = FRAME_SIZE / 8;

/// What a cache is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabConfig {
    /// 64-bit words in an object, 1 to 509.
    pub object_words: usize,
    /// The class of its frames: [`FrameClass::Unmovable`], or [`FrameClass::Reclaimable`] where a shrinker can free the
    /// objects.
    pub class: FrameClass,
    /// For reports. Caches of one allocator have different names.
    pub name: &'static str,
}

/// Why there can be no such cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// An object without a word, or one that a frame does not hold.
    #[error("an object of {words} words: 1 to {} fit a frame", FRAME_WORDS - HEAD_WORDS)]
    Size {
        /// The words.
        words: usize,
    },
    /// Objects cannot be moved.
    #[error("objects are never moved, and the class {class:?} is for what moves")]
    Class {
        /// The class.
        class: FrameClass,
    },
}

/// Why an object was not freed. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// It was freed before.
    #[error("{0:?} is not allocated")]
    NotAllocated(Object),
    /// It is not of this cache, or its whole frame was given back.
    #[error("{0:?} is not of this cache")]
    NotOurs(Object),
}

/// A cache of objects of one size in frames of one class.
///
/// One lock, a leaf, is held for a few loads and stores; never over the allocation of a frame. Nothing is allocated from
/// the heap. Words of an object are ordered by whoever shares the object: the cache adds nothing.
pub struct SlabCache<'a, P> {
    pub(crate) frames: &'a FrameAllocator<'a>,
    pub(crate) platform: &'a P,
    source: &'a dyn PageSource,
    config: SlabConfig,
    /// Objects in a slab.
    pub(crate) slots: usize,
    /// The owner word of a full slab.
    pub(crate) full: u64,
    tag: u64,
    books: Mutex<Books>,
}

impl<'a, P: FrameContents> SlabCache<'a, P> {
    /// A cache without a frame.
    ///
    /// # Errors
    ///
    /// The objects do not fit a frame, or the class is one of frames that move.
    pub fn new(
        frames: &'a FrameAllocator<'a>,
        platform: &'a P,
        source: &'a dyn PageSource,
        config: SlabConfig,
    ) -> Result<Self, ConfigError> {
        let (words, class) = (config.object_words, config.class);
        if class.is_movable() {
            return Err(ConfigError::Class { class });
        }
        let slots = (FRAME_WORDS - HEAD_WORDS).checked_div(words).unwrap_or(0);
        let slots = slots.min(MAX_SLOTS);
        if slots == 0 {
            return Err(ConfigError::Size { words });
        }
        Ok(Self {
            frames,
            platform,
            source,
            config,
            slots,
            full: u64::MAX >> (MAX_SLOTS - slots),
            tag: tag_of(config.name),
            books: Mutex::new(Books {
                partial: None,
                spare: None,
                objects: 0,
                frames: 0,
            }),
        })
    }

    /// What it was made with.
    pub fn config(&self) -> &SlabConfig {
        &self.config
    }

    /// Objects that fit a frame.
    pub fn objects_per_frame(&self) -> usize {
        self.slots
    }

    /// Objects handed out.
    pub fn objects(&self) -> u64 {
        self.books.lock().objects
    }

    /// Frames held, an empty one that is kept among them.
    pub fn frames(&self) -> u64 {
        self.books.lock().frames
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock()
    }

    /// Whose slab `frame` is, as its tag says.
    pub(crate) fn tag_for(&self, frame: Pfn) -> u64 {
        self.tag ^ frame.get()
    }

    fn take(&self) -> Option<Object> {
        let taken = self.books().take(self.frames, self.platform, self.full);
        taken.map(|(frame, slot)| Object::new(frame, slot))
    }

    /// Hands out an object. Its words mean nothing until they are written.
    ///
    /// Where no slab has room a frame is allocated, which may reclaim or wait: called with no lock held that a reclaimer
    /// waits for.
    ///
    /// # Errors
    ///
    /// There is no frame.
    pub fn alloc(&self) -> Result<Object, OutOfMemory> {
        if let Some(object) = self.take() {
            return Ok(object);
        }
        let request = AllocRequest::new(Order::BASE, self.config.class);
        let frame = self.source.alloc(request)?;
        self.platform.write_word(frame, TAG, self.tag_for(frame));
        self.frames.set_owner_word(frame, 0);

        // Objects may have been freed meanwhile, by the reclaim that found the frame: they are used first.
        let mut books = self.books();
        books.frames += 1;
        let taken = books.take(self.frames, self.platform, self.full);
        let surplus = books.keep_empty(frame);
        let taken = taken.or_else(|| books.take(self.frames, self.platform, self.full));
        drop(books);
        if let Some(frame) = surplus {
            self.give_back(frame);
        }
        let (frame, slot) = taken.ok_or(OutOfMemory)?;
        Ok(Object::new(frame, slot))
    }

    /// Takes an object back. The frame goes with the last one in it, unless it is kept.
    ///
    /// # Errors
    ///
    /// The object is not allocated. Nothing was changed.
    pub fn free(&self, object: Object) -> Result<(), FreeError> {
        let mut books = self.books();
        self.check(object)?;
        let place = (object.frame(), object.slot());
        let surplus = books.put(self.frames, self.platform, self.full, place);
        drop(books);
        if let Some(frame) = surplus {
            self.give_back(frame);
        }
        Ok(())
    }

    /// Gives the empty slab back that is kept. Gives how many frames became free, 0 or 1.
    pub fn shrink(&self) -> u64 {
        let mut books = self.books();
        let Some(frame) = books.spare.take() else {
            return 0;
        };
        books.frames -= 1;
        drop(books);
        self.give_back(frame);
        1
    }

    /// Frees a frame that is off the books.
    fn give_back(&self, frame: Pfn) {
        self.platform.write_word(frame, TAG, 0);
        self.source.free(frame, Order::BASE);
    }

    /// Whether `object` is handed out. Exact under the lock, and for whoever owns the object.
    fn check(&self, object: Object) -> Result<(), FreeError> {
        let (frame, slot) = (object.frame(), object.slot());
        // The state is asked first: a frame of no memory has no words.
        let ours = slot < self.slots
            && self.frames.state(frame) == FrameState::Allocated
            && self.frames.class(frame) == self.config.class
            && self.platform.read_word(frame, TAG) == self.tag_for(frame);
        if !ours {
            return Err(FreeError::NotOurs(object));
        }
        match self.frames.owner_word(frame) >> slot & 1 {
            0 => Err(FreeError::NotAllocated(object)),
            _ => Ok(()),
        }
    }

    /// Whether `object` is one of this cache's that is handed out.
    pub fn is_allocated(&self, object: Object) -> bool {
        let _books = self.books();
        self.check(object).is_ok()
    }

    /// Where word `word` of `object` lies in its frame.
    #[inline]
    fn position(&self, object: Object, word: usize) -> usize {
        assert!(
            word < self.config.object_words && object.slot() < self.slots,
            "{} has no word {word} of {object:?}",
            self.config.name
        );
        debug_assert_eq!(self.check(object), Ok(()));
        HEAD_WORDS + object.slot() * self.config.object_words + word
    }

    /// Reads word `word` of an object that the caller owns.
    ///
    /// # Panics
    ///
    /// If objects have no such word.
    #[inline]
    pub fn read(&self, object: Object, word: usize) -> u64 {
        let position = self.position(object, word);
        self.platform.read_word(object.frame(), position)
    }

    /// Writes word `word` of an object that the caller owns.
    ///
    /// # Panics
    ///
    /// If objects have no such word.
    #[inline]
    pub fn write(&self, object: Object, word: usize, value: u64) {
        let position = self.position(object, word);
        self.platform.write_word(object.frame(), position, value);
    }

    /// Reads the first words of an object, as many as `out` has.
    ///
    /// # Panics
    ///
    /// If objects have fewer.
    pub fn read_all(&self, object: Object, out: &mut [u64]) {
        let Some(last) = out.len().checked_sub(1) else {
            return;
        };
        let first = self.position(object, last) - last;
        for (word, value) in out.iter_mut().enumerate() {
            *value = self.platform.read_word(object.frame(), first + word);
        }
    }

    /// Writes the first words of an object, as many as `values` has.
    ///
    /// # Panics
    ///
    /// If objects have fewer.
    pub fn write_all(&self, object: Object, values: &[u64]) {
        let Some(last) = values.len().checked_sub(1) else {
            return;
        };
        let first = self.position(object, last) - last;
        for (word, &value) in values.iter().enumerate() {
            let position = first + word;
            self.platform.write_word(object.frame(), position, value);
        }
    }
}

/// A number for a name (FNV-1a), which marks the slabs of one cache.
fn tag_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
