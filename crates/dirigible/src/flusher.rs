//! Writing dirty pages of files in the background, as a daemon.

use dirigible_frames::FrameContents;
use dirigible_pagecache::PageCache;

use crate::daemon::{Daemon, Next};

/// Writes what has been dirty for long, and more while much is dirty. It never waits for the disk.
pub struct Flusher<'c, 'a, P: FrameContents>(dirigible_pagecache::Flusher<'c, 'a, P>);

impl<'c, 'a, P: FrameContents> Flusher<'c, 'a, P> {
    /// The flusher of `cache`, which begins at `now`. A cache has one.
    pub fn new(cache: &'c PageCache<'a, P>, now: u64) -> Self {
        Self(dirigible_pagecache::Flusher::new(cache, now))
    }
}

impl<P: FrameContents> Daemon for Flusher<'_, '_, P> {
    fn step(&mut self, now: u64) -> Next {
        Next::At(self.0.step(now))
    }
}
