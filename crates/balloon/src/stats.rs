//! The statistics that a host may ask for.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// The most entries in one report: tags 0 to 15.
pub const MAX_ENTRIES: usize = 16;
/// Bytes of one entry on the wire: a 16-bit tag and a 64-bit value, packed. (The specification's text still says 6.)
pub const ENTRY_BYTES: usize = 10;

/// What a statistics entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum Tag {
    /// Bytes that are free.
    MemFree = 4,
    /// Bytes that the guest has in all.
    MemTotal = 5,
}

/// One report. Only what was entered is sent: there is no tail without contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    entries: ArrayVec<(Tag, u64), MAX_ENTRIES>,
}

impl Report {
    /// An empty report.
    pub const fn new() -> Self {
        Self {
            entries: ArrayVec::new_const(),
        }
    }

    /// Enters a value; when the tag is there already, its value is replaced. `false` when the report is full.
    pub fn set(&mut self, tag: Tag, value: u64) -> bool {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.0 == tag) {
            entry.1 = value;
            return true;
        }
        self.entries.try_push((tag, value)).is_ok()
    }

    /// Writes the report as the device reads it and gives its length, a multiple of [`ENTRY_BYTES`].
    pub fn encode(&self, bytes: &mut [u8; MAX_ENTRIES * ENTRY_BYTES]) -> usize {
        for (place, (tag, value)) in bytes.chunks_exact_mut(ENTRY_BYTES).zip(&self.entries) {
            place[..2].copy_from_slice(&(*tag as u16).to_le_bytes());
            place[2..].copy_from_slice(&value.to_le_bytes());
        }
        self.entries.len() * ENTRY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_30_stats_are_packed_and_exact() {
        let mut report = Report::new();
        let mut bytes = [0xee; MAX_ENTRIES * ENTRY_BYTES];
        assert_eq!(report.encode(&mut bytes), 0);
        assert!(report.set(Tag::MemFree, 0x0102_0304_0506_0708));
        assert!(report.set(Tag::MemTotal, 1));
        assert!(report.set(Tag::MemTotal, 2));
        assert_eq!(report.encode(&mut bytes), 20);
        assert_eq!(
            bytes[..20],
            [4, 0, 8, 7, 6, 5, 4, 3, 2, 1, 5, 0, 2, 0, 0, 0, 0, 0, 0, 0]
        );
        assert!(bytes[20..].iter().all(|&byte| byte == 0xee));
    }
}
