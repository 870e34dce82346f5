//! Disks: what the page cache asks of one, and a virtio-blk driver.
//!
//! A disk is an array of blocks of one frame each (4 KiB). A request reads or writes a run of blocks from or to frames,
//! which need not follow each other in memory. Several requests are in flight at a time; whoever waits polls.
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "virtio-drivers")]
mod config;
mod device;
#[cfg(feature = "virtio-drivers")]
mod virtio;

#[cfg(feature = "virtio-drivers")]
pub use config::DiskConfig;
pub use device::{
    BlockDevice, Completion, DiskError, DiskRequest, MAX_REQUEST_FRAMES, SubmitError,
};
#[cfg(feature = "virtio-drivers")]
pub use virtio::{DiskState, DiskStats, MAX_DEPTH, SetUpError, VirtioDisk};
