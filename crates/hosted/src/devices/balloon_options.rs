//! What kind of balloon device a machine gets.

use thiserror::Error;

use crate::memory::discard::DiscardMethod;

/// Feature bits of the balloon device.
pub mod features {
    /// The driver must notify the device before it uses a frame again.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// There is a queue for memory statistics.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The driver may take frames back when it runs out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The device follows version 1 of the standard.
    pub const VERSION_1: u64 = 1 << 32;
    /// All that the device model knows.
    pub const SUPPORTED: u64 = MUST_TELL_HOST | STATS_VQ | DEFLATE_ON_OOM | VERSION_1;
}

/// What kind of balloon device a machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Feature bits that it offers, of [`features::SUPPORTED`]; [`features::VERSION_1`] is always offered.
    pub features: u64,
    /// Entries that its queues may have, a power of two.
    pub queue_max: u16,
    /// How it gives memory back.
    pub discard: DiscardMethod,
    /// Whether it asks the host, for each frame given back, if it was touched in the meantime
    /// ([`ProtocolErrors::touched`](crate::ProtocolErrors::touched)). One system call a frame, for tests; without
    /// meaning when guest memory is backed by huge pages.
    pub audit: bool,
    /// How long it takes to answer a request. Requests that are under way at the same time take that time together. The
    /// frames of an inflation are gone when it is taken, not when it is answered.
    pub answer: AnswerTime,
}

/// How long a device takes to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AnswerTime {
    /// As long as the work takes: on a virtual clock by the table of [costs](crate::costs::host_answer), in real time
    /// by itself.
    #[default]
    OfWork,
    /// So many nanoseconds, on a virtual clock and in real time. With 0 and a virtual clock the device answers inside
    /// `notify`.
    After(u64),
}

impl Default for BalloonOptions {
    fn default() -> Self {
        Self {
            features: features::VERSION_1,
            queue_max: 128,
            discard: DiscardMethod::Auto,
            audit: false,
            answer: AnswerTime::OfWork,
        }
    }
}

/// Options that no device can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BalloonOptionsError {
    /// Features that the model does not have.
    #[error("the balloon device model does not have the features {0:#x}")]
    Features(u64),
    /// No power of two, or above the standard's 32768.
    #[error("a queue of {0} entries; it must be a power of two, 32768 at most")]
    QueueSize(u16),
}
