//! Words of blocks, through the page cache.

use core::ops::Range;

use dirigible_frames::{FrameContents, Pfn};
use dirigible_pagecache::BlockPages;

use crate::{error::Error, geometry::BLOCK_WORDS};

/// The cache, and how the words of its frames are reached.
pub(crate) struct Disk<'a, P> {
    pub pages: &'a dyn BlockPages,
    pub platform: &'a P,
}

impl<P> Clone for Disk<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for Disk<'_, P> {}

impl<P: FrameContents> Disk<'_, P> {
    /// Calls `with` with the frame of `block`.
    pub fn view<R>(
        &self,
        block: u64,
        ahead: Range<u64>,
        mut with: impl FnMut(&P, Pfn) -> R,
    ) -> Result<R, Error> {
        let mut found = None;
        self.pages.read(block, ahead, &mut |frame| {
            found = Some(with(self.platform, frame))
        })?;
        found.ok_or(Error::Damaged {
            what: "a page that was read and not shown",
        })
    }

    /// Calls `change` with the frame of `block`, which becomes dirty.
    pub fn change<R>(&self, block: u64, mut change: impl FnMut(&P, Pfn) -> R) -> Result<R, Error> {
        let mut found = None;
        self.pages.write(block, false, &mut |frame| {
            found = Some(change(self.platform, frame));
        })?;
        found.ok_or(Error::Damaged {
            what: "a page that was read and not shown",
        })
    }

    /// Reads words of a block.
    pub fn read_words(&self, block: u64, first: usize, out: &mut [u64]) -> Result<(), Error> {
        self.view(block, 0..0, |platform, frame| {
            for (index, word) in out.iter_mut().enumerate() {
                *word = platform.read_word(frame, first + index);
            }
        })
    }

    /// Replaces words of a block.
    pub fn write_words(&self, block: u64, first: usize, words: &[u64]) -> Result<(), Error> {
        self.change(block, |platform, frame| {
            for (index, &word) in words.iter().enumerate() {
                platform.write_word(frame, first + index, word);
            }
        })
    }

    /// Writes a whole block: `word` gives each of its words.
    pub fn write_block(&self, block: u64, word: impl Fn(usize) -> u64) -> Result<(), Error> {
        let write = &mut |frame| {
            for index in 0..BLOCK_WORDS {
                self.platform.write_word(frame, index, word(index));
            }
        };
        Ok(self.pages.write(block, true, write)?)
    }
}
