//! The guest's reports about its memory, which come over the statistics queue.

use std::collections::BTreeMap;

use vm_memory::{Bytes, GuestMemoryMmap};

use crate::devices::ring::Chain;

/// An entry is packed: a tag of 16 bits, a value of 64.
const ENTRY_BYTES: usize = 10;
/// More entries than there are tags are noise.
const MAX_ENTRIES: usize = 64;

/// The guest's latest statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStatistics {
    /// Values by tag (0 to 15 have names in the virtio standard).
    pub values: BTreeMap<u16, u64>,
    /// How many reports there have been.
    pub reports: u64,
}

impl GuestStatistics {
    /// Reads a report; `false` if it does not have a report's form.
    pub(crate) fn read(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) -> bool {
        let mut bytes = Vec::new();
        for descriptor in chain {
            let length = descriptor.len() as usize;
            let start = bytes.len();
            if descriptor.is_write_only() || start + length > MAX_ENTRIES * ENTRY_BYTES {
                return false;
            }
            bytes.resize(start + length, 0);
            if memory
                .read_slice(&mut bytes[start..], descriptor.addr())
                .is_err()
            {
                return false;
            }
        }
        let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
        for entry in entries {
            let (tag, value) = entry.split_at(2);
            let tag = tag.try_into().map(u16::from_le_bytes).unwrap_or_default();
            let value = value.try_into().map(u64::from_le_bytes).unwrap_or_default();
            self.values.insert(tag, value);
        }
        self.reports += 1;
        rest.is_empty()
    }
}
