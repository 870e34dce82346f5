//! A device that cannot be set up.
#![forbid(unsafe_code)]

use virtio_drivers::transport::DeviceType;

/// Why a device cannot be used as a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetUpError {
    /// Another kind of device.
    #[error("the device is no disk but {0:?}")]
    NotADisk(DeviceType),
    /// It does not confirm a reset.
    #[error("the device does not confirm a reset")]
    NoReset,
    /// It follows no version 1 of the standard, or its transport does not.
    #[error("the device is older than version 1 of the standard")]
    Legacy,
    /// It does not accept the features, which it has offered.
    #[error("the device refuses the features {0:#x}")]
    FeaturesRefused(u64),
    /// Its configuration cannot be read.
    #[error("the device's configuration cannot be read: {0}")]
    Config(virtio_drivers::Error),
    /// It does not have one whole block.
    #[error("the disk has {sectors} sectors of 512 bytes, less than one block")]
    Empty {
        /// Its size.
        sectors: u64,
    },
    /// Its queue has no room for one request.
    #[error("the device's queue has {entries} entries, too few for one request")]
    SmallQueue {
        /// The queue's size.
        entries: u32,
    },
    /// It does not take requests of enough pieces, or none as large as a frame.
    #[error("the device takes {segments} pieces of {bytes} bytes a request")]
    SmallRequests {
        /// Pieces that it takes.
        segments: u32,
        /// Bytes of each.
        bytes: u32,
    },
    /// There is no memory for the queue.
    #[error("no memory for the device's queue")]
    NoDmaMemory,
    /// After a reset it is not the disk that it was: smaller, or with another queue.
    #[error("the device has changed over a reset")]
    Changed,
}
