//! In-process virtio devices: what all of them have, the balloon, the disk, and the HAL through which drivers reach
//! memory.

pub(crate) mod balloon_device;
pub(crate) mod balloon_host;
pub(crate) mod balloon_options;
pub(crate) mod balloon_stats;
pub(crate) mod disk_device;
pub(crate) mod disk_faults;
pub(crate) mod disk_file;
pub(crate) mod disk_host;
pub(crate) mod disk_options;
pub(crate) mod faults;
pub(crate) mod hal;
pub(crate) mod held_frames;
pub(crate) mod interrupt;
pub(crate) mod registers;
pub(crate) mod ring;
pub(crate) mod runner;
pub(crate) mod transport;
