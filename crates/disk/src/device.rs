//! The interface of a disk.

use dirigible_frames::Pfn;

/// Most frames of one request: 128 KiB.
pub const MAX_REQUEST_FRAMES: usize = 32;

/// A request: `frames.len()` blocks from `block` on, each from or to one frame.
#[derive(Clone, Copy, Debug)]
pub struct DiskRequest<'a> {
    /// Chosen by the caller; comes back in the [`Completion`].
    pub token: u32,
    /// Whether the frames are written to the disk.
    pub write: bool,
    /// The first block.
    pub block: u64,
    /// 1 to [`MAX_REQUEST_FRAMES`] frames. They stay where they are, and nobody changes them (a read: uses them), until
    /// the completion is taken.
    pub frames: &'a [Pfn],
}

/// Why a request was not accepted. Nothing was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// All places for requests are taken: again after a completion.
    #[error("the disk has no room for another request")]
    Busy,
    /// No frame, too many, or blocks beyond the end of the disk.
    #[error("the request does not fit the disk")]
    Invalid,
    /// The device has failed, and was not repaired.
    #[error("the disk has failed")]
    Dead,
}

/// Why a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// The device reports an error. A part of a write may be on the disk.
    #[error("the disk reports an error")]
    Io,
    /// The device did not answer in time and was reset: whether the request was done is not known.
    #[error("the disk did not answer")]
    Lost,
    /// The device was reset before the request was overdue, for the sake of another, or because it had failed: whether it
    /// was done is not known. Worth another try.
    #[error("the disk was reset")]
    Interrupted,
    /// The same, but the device has not confirmed the reset either: it may still read or write the frames. They must
    /// never be used again.
    #[error("the disk did not answer and cannot be stopped")]
    Abandoned,
}

/// A request that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The request's token.
    pub token: u32,
    /// How it ended.
    pub result: Result<(), DiskError>,
}

/// A disk. All calls come from any CPU, several at once, with no lock held that others spin on; none of them waits for
/// the device, and none allocates.
pub trait BlockDevice: Sync {
    /// How many blocks of 4 KiB it has.
    fn blocks(&self) -> u64;

    /// How many requests can be in flight.
    fn depth(&self) -> usize;

    /// Begins a request.
    ///
    /// # Errors
    ///
    /// Nothing was sent; see [`SubmitError`].
    fn submit(&self, request: DiskRequest<'_>) -> Result<(), SubmitError>;

    /// Takes requests that have ended: writes them to the front of `out` and gives how many. Each is given once. With
    /// nothing to give it costs little: it is called often. Requests that the device does not answer in time come back
    /// here, too.
    fn completed(&self, out: &mut [Completion]) -> usize;
}
