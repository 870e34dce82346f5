//! Why a balloon cannot be set up, or its device not be used.
#![forbid(unsafe_code)]

use virtio_drivers::transport::DeviceType;

use crate::{Fault, Features, Queue};

/// Why a balloon could not be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// The settings or the guest's memory do not fit.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The device does not fit.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is another kind of device.
    #[error("the device is no memory balloon but {0:?}")]
    NotABalloon(DeviceType),
    /// It does not agree to the features.
    #[error("the device refused the features {0:?}")]
    FeaturesRefused(Features),
    /// A queue could not be set up.
    #[error("the {queue:?} queue cannot be set up: {error}")]
    Queue {
        /// Which.
        queue: Queue,
        /// The error of virtio-drivers.
        error: virtio_drivers::Error,
    },
    /// No memory for the requests.
    #[error("no DMA memory for the requests")]
    NoDmaMemory,
    /// The configuration space cannot be read.
    #[error("the configuration space cannot be read: {0}")]
    Config(virtio_drivers::Error),
    /// It does not confirm its reset, or another CPU is at it for too long.
    #[error("the device does not finish its reset")]
    NoReset,
}
