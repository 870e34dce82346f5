//! Settings, results and faults of a balloon.
#![forbid(unsafe_code)]

use dirigible_frames::BalloonPlacement;

use crate::request::MAX_PFNS;

/// Which frames go back to the guest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Deflate {
    /// Those that came last, as in Linux.
    NewestFirst,
    /// Those whose return makes a block whole soonest.
    Heal,
}

/// The settings of one balloon. All times are in nanoseconds.
///
/// The core, [`Balloon`](crate::Balloon), uses `mobility`, `batch`, `exchange_batch`, `retry_delay_ns`, `oom_rest_ns`
/// and `request_timeout_ns`. It ignores the others: it takes no frames, does not wait and drives no device. Those are
/// for the driver, `VirtioBalloon`, and each of them is marked *driver only*.
#[derive(Clone, Debug)]
pub struct BalloonConfig {
    /// Whether compaction may move the balloon's frames. If not, isolation is refused and the driver allocates them
    /// unmovable, as Linux did before 2012.
    pub mobility: bool,
    /// *Driver only.* Which frames inflation asks for (with `mobility`; without it always
    /// [`BalloonPlacement::Unmovable`]).
    pub placement: BalloonPlacement,
    /// The most frame numbers in a message of inflation or deflation: 1 to what the balloon's type allows. Longer
    /// messages than [`MAX_PFNS`] are for a host that is known to take them.
    pub batch: usize,
    /// How many frames one exchange moves with two messages, within the same bounds. Linux moves 1. The core checks the
    /// bound and leaves it to its caller to cut pairs into exchanges.
    pub exchange_batch: usize,
    /// *Driver only.* Which frames deflation takes. The caller of the core names those that it prefers.
    pub deflate: Deflate,
    /// How long inflation rests when there was no free frame. The driver also keeps restarts of the device this far
    /// apart.
    pub retry_delay_ns: u64,
    /// *Driver only.* Whether to accept `DEFLATE_ON_OOM` when it is offered: for those who call `deflate_on_oom`
    /// before an allocation fails. The core is given the features that were negotiated.
    pub deflate_on_oom: bool,
    /// How long inflation rests after an out-of-memory deflation, unless the host sets another target.
    pub oom_rest_ns: u64,
    /// After how long without an answer the device counts as silent. Late answers are taken all the same.
    pub request_timeout_ns: u64,
    /// *Driver only.* How long an out-of-memory deflation waits for the host.
    pub wait_ns: u64,
    /// *Driver only.* How long `shutdown` waits for isolated frames and for the host, and a reset for another CPU
    /// that is at the device.
    pub shutdown_timeout_ns: u64,
    /// *Driver only.* How long a reset waits for the device to confirm it. If the device confirms it later, the frames
    /// stay on the books until the next reset.
    pub reset_timeout_ns: u64,
    /// *Driver only.* How many times in a row, without a request answered in between, `step` resets and restarts a
    /// device that asks for it ([`Fault::NeedsReset`]). When the device asks once more, it is reset a last time to
    /// get the memory back, and left alone. With 0 `step` never resets a device.
    pub restart_limit: u32,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            mobility: true,
            placement: BalloonPlacement::FillHoles,
            batch: MAX_PFNS,
            exchange_batch: MAX_PFNS,
            deflate: Deflate::Heal,
            retry_delay_ns: 200_000_000,
            deflate_on_oom: false,
            oom_rest_ns: 10_000_000_000,
            request_timeout_ns: 5_000_000_000,
            wait_ns: 50_000_000,
            shutdown_timeout_ns: 5_000_000_000,
            reset_timeout_ns: 500_000_000,
            restart_limit: 4,
        }
    }
}

impl BalloonConfig {
    /// The placement that inflation asks for: unmovable without `mobility`.
    pub fn effective_placement(&self) -> BalloonPlacement {
        if self.mobility {
            self.placement
        } else {
            BalloonPlacement::Unmovable
        }
    }
}

/// What is wrong with a balloon or its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The settings make no sense; the text names the one.
    #[error("balloon setting out of range: {0}")]
    Setting(&'static str),
    /// A setting is larger than a message, or 0.
    #[error("balloon setting out of range: {setting} must be 1 to {most}")]
    Range {
        /// Which.
        setting: &'static str,
        /// Frame numbers in a message of this balloon.
        most: usize,
    },
    /// The guest's memory spans more frames than the balloon's list or its messages can name.
    #[error("guest memory spans {span} frames from frame {base:#x}, more than a balloon can name")]
    TooLarge {
        /// Lowest frame.
        base: u64,
        /// Frames from there to the end.
        span: u64,
    },
    /// The device has not answered requests for longer than `request_timeout_ns`. Their frames stay as they are; an
    /// answer ends the fault.
    #[error("the balloon device has not answered for {waited_ns} ns")]
    Silent {
        /// Age of the oldest request.
        waited_ns: u64,
    },
    /// The device answered requests that do not exist. No further request is sent until the device is reset and
    /// restarted, which is the caller's decision.
    #[error("the balloon device broke the protocol: {errors} answers that fit no request")]
    Protocol {
        /// How many.
        errors: u32,
    },
    /// The device reports that it cannot go on without a reset.
    #[error("the balloon device needs a reset")]
    NeedsReset,
    /// A request could not be put on its queue. No further request is sent.
    #[error("the balloon device does not take requests")]
    Refused,
    /// The configuration space could not be read.
    #[error("the balloon's configuration space cannot be read")]
    Config,
    /// Frames are missing from the balloon's books: a bug in this guest. No further request is sent.
    #[error("the balloon's books are damaged: {frames} frames unaccounted for")]
    Books {
        /// How many.
        frames: u64,
    },
    /// Frames are not back yet; see [`Held`].
    #[error(
        "the balloon still holds {listed} frames, {isolated} isolated, {with_host} in requests"
    )]
    StillHeld {
        /// On the list.
        listed: u64,
        /// In the hands of compaction.
        isolated: u64,
        /// In requests that the host has not answered.
        with_host: u64,
    },
    /// The device was reset and not started again.
    #[error("the balloon device was removed")]
    Removed,
    /// All frames are back, but the device has not confirmed its reset. It may still read the queues, so their memory
    /// is kept.
    #[error("the balloon device does not confirm its reset")]
    NoReset,
}

/// How a call of `step` ended, and when the next one is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Step {
    /// The balloon has reached its target.
    Idle,
    /// There is more to do; call again.
    Busy,
    /// Everything waits for the host; call again after an interrupt.
    Waiting,
    /// Call again at this time, on the clock of `Platform::now`: there was no free frame, or all frames that should
    /// leave are isolated, or another CPU is at the device.
    RetryAt(u64),
    /// Nothing more is done until the fault ends.
    Failed(Fault),
}

/// Where the balloon's frames are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// On the list: the host has them.
    pub listed: u64,
    /// In compaction's hands: the host has them, unless its device was reset meanwhile.
    pub isolated: u64,
    /// Sent to the host, not acknowledged.
    pub entering: u64,
    /// Asked back from the host, not acknowledged. After a reset that the device has not confirmed these are all of
    /// them.
    pub leaving: u64,
    /// The guest's again, and not yet with the allocator. Only `VirtioBalloon` counts those that
    /// [`Output::Free`](crate::Output::Free) has handed out.
    pub returning: u64,
}

impl Held {
    /// The sum.
    pub const fn total(&self) -> u64 {
        self.listed + self.isolated + self.entering + self.leaving + self.returning
    }
}

/// What a balloon has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BalloonStats {
    /// Frames given to the host by inflation (acknowledged).
    pub inflated: u64,
    /// Frames taken back by deflation (acknowledged).
    pub deflated: u64,
    /// Frames that the device had when it was reset: the guest's again, without a deflation.
    pub forgotten: u64,
    /// How often the device was started again.
    pub restarts: u64,
    /// Frames moved by exchanges (both messages acknowledged).
    pub frames_moved: u64,
    /// Frames taken off the list by compaction.
    pub isolated: u64,
    /// Isolated frames put back.
    pub returned: u64,
    /// Requests sent on the inflate and deflate queues.
    pub messages: u64,
    /// Requests among them that an exchange sent.
    pub migrate_messages: u64,
    /// Inflations put off because there was no free frame.
    pub retries: u64,
    /// Frames taken back because the guest was out of memory (acknowledged): a part of `deflated`.
    pub oom_deflated: u64,
    /// Targets above what the guest has, and lowered to it.
    pub targets_clamped: u64,
    /// Answers of the device that fit no request.
    pub protocol_errors: u64,
    /// Pairs of exchanges that were refused.
    pub refused: u64,
    /// Statistics buffers given to the device.
    pub stats_buffers: u64,
}
