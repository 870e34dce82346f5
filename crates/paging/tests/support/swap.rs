// A swap for tests: contents stay in the frames that were given to it until it is told to write them, as those in a
// cache do. Works under the model checker, too.

use dirigible_frames::{
    AllocRequest, FrameAllocator, FrameContents, FrameState, Order, OwnerId, Pfn, Platform,
    sync::{AtomicBool, Mutex, Ordering},
};
use dirigible_paging::{SwapError, SwapSpace};

#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    Free,
    /// Taken, and nothing in it yet.
    Taken,
    /// Its contents are in a frame that is not swap's yet.
    Promised(Pfn),
    /// In memory.
    Cached(Pfn),
    /// On the disk only.
    Stored(Vec<u64>),
}

/// How many slots are in which place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    pub taken: u64,
    pub promised: u64,
    pub cached: u64,
    pub stored: u64,
}

impl Slots {
    pub fn used(&self) -> u64 {
        self.taken + self.promised + self.cached + self.stored
    }
}

pub struct MockSwap<P: 'static> {
    frames: &'static FrameAllocator<'static>,
    guest: &'static P,
    /// The words of a page that are kept.
    words: &'static [usize],
    places: Mutex<Vec<Place>>,
    /// `write_out` takes the contents out of memory.
    pub writes: AtomicBool,
    /// Reads fail.
    pub broken: AtomicBool,
}

impl<P: FrameContents> MockSwap<P> {
    pub fn new(
        frames: &'static FrameAllocator<'static>,
        guest: &'static P,
        slots: usize,
        words: &'static [usize],
    ) -> Self {
        Self {
            frames,
            guest,
            words,
            places: Mutex::new(vec![Place::Free; slots]),
            writes: AtomicBool::new(true),
            broken: AtomicBool::new(false),
        }
    }

    pub fn slots(&self) -> Slots {
        let mut slots = Slots::default();
        for place in self.places.lock().iter() {
            match place {
                Place::Free => {}
                Place::Taken => slots.taken += 1,
                Place::Promised(_) => slots.promised += 1,
                Place::Cached(_) => slots.cached += 1,
                Place::Stored(_) => slots.stored += 1,
            }
        }
        slots
    }

    /// Takes the contents of all slots out of memory.
    pub fn write_all(&self) {
        let all: Vec<_> = (0..self.places.lock().len() as u64).collect();
        self.write(&all);
    }

    fn write(&self, slots: &[u64]) {
        let mut places = self.places.lock();
        for &slot in slots {
            if let Place::Cached(frame) = places[slot as usize] {
                let read = |&index| self.guest.read_word(frame, index);
                places[slot as usize] = Place::Stored(self.words.iter().map(read).collect());
                self.release(frame);
            }
        }
    }

    fn release(&self, frame: Pfn) {
        // So that a mapping that is left behind reads something else.
        self.words
            .iter()
            .for_each(|&index| self.guest.write_word(frame, index, 0xbad));
        self.frames
            .free(self.guest.cpu(), frame, Order::BASE)
            .unwrap();
    }
}

impl<P: FrameContents> SwapSpace for MockSwap<P> {
    fn has_room(&self) -> bool {
        self.places.lock().contains(&Place::Free)
    }

    fn take_slots(&self, slots: &mut [u64]) -> usize {
        let mut places = self.places.lock();
        let mut taken = 0;
        for (number, place) in places.iter_mut().enumerate() {
            if taken == slots.len() {
                break;
            }
            if *place == Place::Free {
                *place = Place::Taken;
                slots[taken] = number as u64;
                taken += 1;
            }
        }
        taken
    }

    fn promise(&self, slot: u64, frame: Pfn) -> bool {
        let place = &mut self.places.lock()[slot as usize];
        assert_eq!(*place, Place::Taken);
        assert_eq!(self.frames.state(frame), FrameState::Isolated);
        *place = Place::Promised(frame);
        true
    }

    fn withdraw(&self, slot: u64, frame: Pfn) {
        let place = &mut self.places.lock()[slot as usize];
        assert_eq!(*place, Place::Promised(frame));
        *place = Place::Taken;
    }

    fn adopt(&self, slot: u64, frame: Pfn) {
        let info = self.frames.frame(frame).unwrap();
        assert_eq!((info.state, info.generation), (FrameState::Allocated, 0));
        self.frames.set_owner(frame, OwnerId::NONE, 0);
        let place = &mut self.places.lock()[slot as usize];
        assert_eq!(*place, Place::Promised(frame));
        *place = Place::Cached(frame);
    }

    fn write_out(&self, slots: &[u64]) {
        if self.writes.load(Ordering::Relaxed) {
            self.write(slots);
        }
    }

    fn fetch(&self, slot: u64) -> Result<(), SwapError> {
        loop {
            {
                let place = &mut self.places.lock()[slot as usize];
                match place {
                    Place::Stored(_) if self.broken.load(Ordering::Relaxed) => {
                        return Err(SwapError::Io { slot });
                    }
                    Place::Stored(words) => {
                        let frame = self
                            .frames
                            .alloc(self.guest.cpu(), AllocRequest::movable())
                            .map_err(|_| SwapError::OutOfMemory)?;
                        for (&index, &word) in self.words.iter().zip(words.iter()) {
                            self.guest.write_word(frame, index, word);
                        }
                        *place = Place::Cached(frame);
                        return Ok(());
                    }
                    Place::Promised(_) => {}
                    // The slot may have been taken or freed meanwhile: the caller finds out.
                    Place::Free | Place::Taken | Place::Cached(_) => return Ok(()),
                }
            }
            self.guest.relax();
        }
    }

    fn take(&self, slot: u64) -> Option<Pfn> {
        let place = &mut self.places.lock()[slot as usize];
        let Place::Cached(frame) = *place else {
            // A page whose entry names the slot has it: it cannot be free.
            assert_ne!(*place, Place::Free);
            return None;
        };
        *place = Place::Free;
        Some(frame)
    }

    fn free(&self, slots: &[u64]) {
        for &slot in slots {
            loop {
                {
                    let place = &mut self.places.lock()[slot as usize];
                    match *place {
                        Place::Promised(_) => {}
                        Place::Free => panic!("slot {slot} freed twice"),
                        Place::Cached(frame) => {
                            self.release(frame);
                            *place = Place::Free;
                            break;
                        }
                        Place::Taken | Place::Stored(_) => {
                            *place = Place::Free;
                            break;
                        }
                    }
                }
                self.guest.relax();
            }
        }
    }
}
