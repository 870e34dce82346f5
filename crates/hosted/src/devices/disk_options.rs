//! What kind of disk a machine gets.

use std::path::PathBuf;

use thiserror::Error;

use crate::devices::disk_faults::DiskFaultPlan;

/// Bytes of a sector, the unit of the virtio standard.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of a block, the unit of drivers here.
const BLOCK: u64 = 4096;

/// What kind of disk a machine gets.
///
/// Its contents are in a file without a name, which has only the blocks that were written, and which is gone when the
/// machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its size, a multiple of 4096 and not 0.
    pub bytes: u64,
    /// Its speed in thousandths of that in the [table of costs](crate::costs::disk_latency): with 100 each request
    /// takes ten times as long. Without meaning in real time, where the device is as fast as the host.
    pub speed_thousandths: u32,
    /// Where the file is; `None`: in the host's directory for temporary files.
    pub directory: Option<PathBuf>,
    /// Entries that its queue may have, a power of two.
    pub queue_max: u16,
    /// Whether it takes indirect descriptors.
    pub indirect: bool,
    /// How it misbehaves from the beginning; the first plan that has a fault for a request wins.
    pub faults: Vec<DiskFaultPlan>,
}

impl Default for DiskOptions {
    /// 1 GiB with the speed of the table.
    fn default() -> Self {
        Self {
            bytes: 1 << 30,
            speed_thousandths: 1000,
            directory: None,
            queue_max: 256,
            indirect: true,
            faults: Vec::new(),
        }
    }
}

impl DiskOptions {
    /// Whether a device can be made of them.
    pub(crate) fn check(&self) -> Result<(), DiskOptionsError> {
        if self.bytes == 0
            || !self.bytes.is_multiple_of(BLOCK)
            || i64::try_from(self.bytes).is_err()
        {
            return Err(DiskOptionsError::Size(self.bytes));
        }
        if self.speed_thousandths == 0 {
            return Err(DiskOptionsError::Speed);
        }
        if !self.queue_max.is_power_of_two() || self.queue_max > 1 << 15 {
            return Err(DiskOptionsError::QueueSize(self.queue_max));
        }
        Ok(())
    }
}

/// Options that no disk can be made of.
#[derive(Debug, Error)]
pub enum DiskOptionsError {
    /// Not a number of whole blocks, none, or more than a file can have.
    #[error("a disk of {0} bytes; it must be a multiple of {BLOCK}, not 0, and below 2^63")]
    Size(u64),
    /// No speed.
    #[error("a disk with a speed of 0")]
    Speed,
    /// No power of two, or above the standard's 32768.
    #[error("a queue of {0} entries; it must be a power of two, 32768 at most")]
    QueueSize(u16),
    /// The file for its contents cannot be made.
    #[error("the file of a disk cannot be made in {}: {source}", .directory.display())]
    File {
        /// Where.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
