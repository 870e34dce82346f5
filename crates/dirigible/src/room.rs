//! Memory that the caller gave, handed out from front to back.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;

/// The memory is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the memory for the manager is {missing} bytes too small")]
pub struct NoRoom {
    /// Bytes that are missing.
    pub missing: usize,
}

/// What is left of the memory that the manager's own tables are made in.
///
/// What is made in it is not dropped: place only what owns nothing outside of the room. When the last reference into it
/// has gone the memory is its owner's again.
#[derive(Debug)]
pub struct Room<'m> {
    rest: &'m mut [MaybeUninit<u8>],
}

impl<'m> Room<'m> {
    /// All of `memory`; what is in it does not matter.
    pub fn new(memory: &'m mut [MaybeUninit<u8>]) -> Self {
        Self { rest: memory }
    }

    /// Bytes that are left.
    pub fn bytes_left(&self) -> usize {
        self.rest.len()
    }

    /// A place for a `T`, which is not there yet.
    ///
    /// # Errors
    ///
    /// There is not so much left; nothing is taken then.
    pub fn slot<T>(&mut self) -> Result<&'m mut MaybeUninit<T>, NoRoom> {
        let memory = self.aligned(align_of::<T>(), size_of::<T>())?;
        // SAFETY: the bytes are borrowed for 'm and nobody else's, `aligned` gave as many as a `T` has at an address
        // that is aligned for one, and a `MaybeUninit` may hold anything.
        Ok(unsafe { &mut *memory.as_mut_ptr().cast::<MaybeUninit<T>>() })
    }

    /// `value`, in the room.
    ///
    /// # Errors
    ///
    /// As [`slot`](Self::slot).
    pub fn place<T>(&mut self, value: T) -> Result<&'m mut T, NoRoom> {
        Ok(self.slot()?.write(value))
    }

    /// `count` bytes, zeroed, at a multiple of `align`, which is a power of two.
    ///
    /// # Errors
    ///
    /// As [`slot`](Self::slot).
    ///
    /// # Panics
    ///
    /// `align` is no power of two.
    pub fn zeroed(&mut self, align: usize, count: usize) -> Result<&'m mut [u8], NoRoom> {
        assert!(align.is_power_of_two(), "an alignment is a power of two");
        let memory = self.aligned(align, count)?;
        memory.fill(MaybeUninit::new(0));
        // SAFETY: `MaybeUninit<u8>` and `u8` have one layout, each byte was written just now, and the slice is borrowed
        // for 'm.
        Ok(unsafe { &mut *(core::ptr::from_mut(memory) as *mut [u8]) })
    }

    /// The next `count` bytes from a multiple of `align` on.
    fn aligned(&mut self, align: usize, count: usize) -> Result<&'m mut [MaybeUninit<u8>], NoRoom> {
        let skip = self.rest.as_ptr().addr().wrapping_neg() & (align - 1);
        let needed = skip.saturating_add(count);
        let missing = needed.saturating_sub(self.rest.len());
        if missing > 0 {
            return Err(NoRoom { missing });
        }
        let (taken, rest) = core::mem::take(&mut self.rest).split_at_mut(needed);
        self.rest = rest;
        Ok(&mut taken[skip..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_lies_apart_and_aligned() {
        let mut memory = [MaybeUninit::uninit(); 256];
        let mut room = Room::new(&mut memory);
        let byte = room.place(7u8).unwrap();
        let word = room.place(0x1234_5678_9abc_def0u64).unwrap();
        let bytes = room.zeroed(64, 16).unwrap();
        assert_eq!(bytes.as_ptr().addr() % 64, 0);
        bytes.fill(0xff);
        assert_eq!((*byte, *word), (7, 0x1234_5678_9abc_def0));
        assert!(core::ptr::from_ref(word).is_aligned());
        assert!(bytes.iter().all(|byte| *byte == 0xff));
    }

    #[test]
    fn a_room_that_is_too_small_says_by_how_much_and_stays_as_it_is() {
        let mut memory = [MaybeUninit::uninit(); 64];
        let mut room = Room::new(&mut memory);
        let left = room.bytes_left();
        assert_eq!(room.zeroed(1, 100), Err(NoRoom { missing: 36 }));
        assert_eq!(room.bytes_left(), left);
        assert!(room.zeroed(1, usize::MAX).is_err());
        assert!(room.zeroed(1, 64).is_ok());
        assert_eq!(room.place(1u8), Err(NoRoom { missing: 1 }));
    }
}
