//! Disks: what the page cache asks of one, and a virtio-blk driver.
//!
//! A disk is an array of blocks of one frame each (4 KiB). A request reads or writes a run of blocks from or to frames,
//! which need not follow each other in memory. Several requests are in flight at a time; whoever waits polls.
#![no_std]
#![deny(unsafe_code)]

mod device;

pub use device::{
    BlockDevice, Completion, DiskError, DiskRequest, MAX_REQUEST_FRAMES, SubmitError,
};
