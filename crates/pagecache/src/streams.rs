//! How far to read ahead: the streams of reads that follow each other.

use dirigible_frames::sync::{AtomicU64, AtomicUsize, Ordering};

/// How many streams are remembered.
const STREAMS: usize = 16;
/// Bits of a stream's word for its window; the rest is the block.
const WINDOW_BITS: u32 = 8;

/// The last few streams. A hint: races between readers cost a window.
pub(crate) struct Streams {
    /// The block with which the next read of the stream begins, plus one, and its last window. 0: none.
    ends: [AtomicU64; STREAMS],
    /// The stream that is forgotten next.
    oldest: AtomicUsize,
}

/// A stream that goes on with a read, or begins with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    at: usize,
    /// How many blocks to read.
    pub window: usize,
}

impl Streams {
    pub fn new() -> Self {
        Self {
            ends: core::array::from_fn(|_| AtomicU64::new(0)),
            oldest: AtomicUsize::new(0),
        }
    }

    /// The stream to which a read of `block` belongs: one that goes on here, with twice its window up to `most`, or a
    /// new one with the window `first`.
    pub fn find(&self, block: u64, first: usize, most: usize) -> Stream {
        for (at, end) in self.ends.iter().enumerate() {
            // Relaxed, here and below: a hint.
            let word = end.load(Ordering::Relaxed);
            if word >> WINDOW_BITS == block + 1 {
                let last = (word & ((1 << WINDOW_BITS) - 1)) as usize;
                let window = (last * 2).clamp(first.min(most), most);
                return Stream { at, window };
            }
        }
        let at = self.oldest.fetch_add(1, Ordering::Relaxed) % STREAMS;
        Stream {
            at,
            window: first.min(most),
        }
    }

    /// The stream's next read begins with `next`.
    pub fn advance(&self, stream: Stream, next: u64) {
        let word = (next + 1) << WINDOW_BITS | stream.window as u64;
        self.ends[stream.at].store(word, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_while_reads_follow_each_other() {
        let streams = Streams::new();
        let (mut at, mut windows) = (100, [0; 6]);
        for (turn, window) in windows.iter_mut().enumerate() {
            let stream = streams.find(at, 4, 32);
            *window = stream.window;
            at += stream.window as u64;
            streams.advance(stream, at);
            // Other streams come between.
            let other = streams.find(10_000 + turn as u64 * 100, 4, 32);
            assert_eq!(other.window, 4);
            streams.advance(other, 10_001 + turn as u64 * 100);
        }
        assert_eq!(windows, [4, 8, 16, 32, 32, 32]);
        assert_eq!(
            streams.find(0, 4, 32).window,
            4,
            "an empty place is no stream at block 0"
        );
        assert_eq!(Streams::new().find(7, 4, 1).window, 1);
    }
}
