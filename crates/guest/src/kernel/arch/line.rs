//! PCI interrupt lines: the handler reads each device's interrupt status, and the driver fetches it later.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::physical::Register;

/// A device on a PCI line: the address of its interrupt status, and the bits read there that the driver has not
/// fetched.
pub struct Line {
    status: AtomicU64,
    bits: AtomicU32,
}

/// The devices with a line. Address 0: a free entry.
static LINES: [Line; 4] = [const {
    Line {
        status: AtomicU64::new(0),
        bits: AtomicU32::new(0),
    }
}; 4];

impl Line {
    /// Registers a device whose interrupt status is the byte at physical address `status`. A device that was registered
    /// before keeps its entry. `None` if no entry is free.
    ///
    /// # Safety
    ///
    /// The byte is the ISR register of a virtio device: reading it takes the line down and has no other effect.
    pub unsafe fn register(status: u64) -> Option<&'static Self> {
        let own = |line: &&Self| line.status.load(Ordering::Relaxed) == status;
        let free = |line: &&Self| {
            // Release: pairs with the acquire in `read_status`.
            line.status
                .compare_exchange(0, status, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let line = LINES.iter().find(own).or_else(|| LINES.iter().find(free))?;
        // Discards bits of the device that used the entry before.
        line.take();
        Some(line)
    }

    /// Frees the entry of a device that is being removed: its status is not read any more.
    pub fn unregister(&self) {
        // Release: pairs with the acquire in `read_status`.
        self.status.store(0, Ordering::Release);
    }

    /// Whether there are bits that were read and not fetched.
    pub fn is_pending(&self) -> bool {
        // Acquire: pairs with the release in `read_status`.
        self.bits.load(Ordering::Acquire) != 0
    }

    /// Fetches the bits that were read.
    pub fn take(&self) -> u32 {
        // Acquire: pairs with the release in `read_status`, as the device wrote the used ring before the status.
        self.bits.swap(0, Ordering::AcqRel)
    }

    fn read_status(&self) {
        // Acquire: pairs with the releases in `register` and `unregister`.
        let status = self.status.load(Ordering::Acquire);
        if status != 0 {
            // SAFETY: see `register`.
            let bits = unsafe { Register::new(status) }.read_byte();
            // Release: pairs with the acquires in `take` and `is_pending`.
            self.bits.fetch_or(u32::from(bits), Ordering::AcqRel);
        }
    }
}

/// Reads the status of all registered devices, which takes their lines down. Called by the interrupt handler.
pub(super) fn read_all() {
    for line in &LINES {
        line.read_status();
    }
}
