//! Why no run can be made of parameters.

use thiserror::Error;

use super::{MAX_DISK, MAX_MEMORY, MAX_THREADS, MIN_MEMORY};

/// A parameter that no run can be made of.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParamsError {
    /// A size that is not a multiple of 4,096.
    #[error("the {name} of {bytes} bytes is not a whole number of 4096-byte frames")]
    NotWholeFrames {
        /// Which size.
        name: &'static str,
        /// The size.
        bytes: u64,
    },
    /// Too little guest memory.
    #[error("a guest of {bytes} bytes is too small: the experiment needs at least {MIN_MEMORY}")]
    TooSmall {
        /// The size.
        bytes: u64,
    },
    /// Too much guest memory.
    #[error("a guest of {bytes} bytes is too large: at most {MAX_MEMORY}")]
    TooLarge {
        /// The size.
        bytes: u64,
    },
    /// A balloon that would leave the guest nothing to run in.
    #[error("a balloon of {bytes} bytes does not fit into a guest of {memory}")]
    BalloonTooLarge {
        /// The balloon.
        bytes: u64,
        /// The guest.
        memory: u64,
    },
    /// A disk that does not hold what the load needs.
    #[error("a disk of {bytes} bytes is too small: this guest needs at least {least}")]
    DiskTooSmall {
        /// The disk.
        bytes: u64,
        /// The least.
        least: u64,
    },
    /// A disk that is too large.
    #[error("a disk of {bytes} bytes is too large: at most {MAX_DISK}")]
    DiskTooLarge {
        /// The disk.
        bytes: u64,
    },
    /// The column `smaller` with a balloon that moves.
    #[error(
        "the column smaller needs the schedule held: it is a guest that never had the memory that the others' balloon holds"
    )]
    SmallerNotHeld,
    /// The column `smaller` with a balloon that leaves it too little.
    #[error(
        "the column smaller has {bytes} bytes, what the balloon leaves of the memory: the experiment needs at least {MIN_MEMORY}"
    )]
    SmallerTooSmall {
        /// What the balloon leaves.
        bytes: u64,
    },
    /// A step of nothing or of more than the balloon.
    #[error("a step of {bytes} bytes does not fit a balloon of {balloon} bytes")]
    BadStep {
        /// The step.
        bytes: u64,
        /// The balloon.
        balloon: u64,
    },
    /// A period out of range.
    #[error("a period of {ms} ms is out of range: from 1 ms to a day")]
    BadPeriod {
        /// The period in milliseconds.
        ms: u64,
    },
    /// Steps so small or a period so long that the balloon would need more than a day before pass 1.
    #[error(
        "with the schedule `held` these steps and this period would keep the balloon busy for more than a day before pass 1"
    )]
    HeldTooLong,
    /// Too many threads.
    #[error("{threads} threads are too many: at most {MAX_THREADS}")]
    TooManyThreads {
        /// The threads.
        threads: usize,
    },
    /// A host that hardly answers.
    #[error("a host that takes {ms} ms for an answer is too slow: at most a second")]
    HostTooSlow {
        /// The time in milliseconds.
        ms: u64,
    },
    /// A factor out of range.
    #[error("the {name} of {thousandths} thousandths is out of range: from 1 to 100,000")]
    BadScale {
        /// Which factor.
        name: &'static str,
        /// The factor.
        thousandths: u32,
    },
}
