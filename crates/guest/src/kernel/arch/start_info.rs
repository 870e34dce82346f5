//! What the hypervisor passes at entry: the PVH start info, with the memory map and the command line.

use core::{ffi::CStr, ops::Range, ptr};

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::kernel::memory::MAX_REGIONS;

/// Most entries of the memory map that are read.
const MAX_ENTRIES: u32 = 256;
/// Longest command line in bytes, with its final 0.
const MAX_COMMAND_LINE: usize = 4096;
const MAGIC: u32 = 0x336e_c578;
/// The kind of a memory map entry that is RAM.
const RAM: u32 = 1;
/// Start info and command line lie below this physical address: the boot tables map no more.
const REACH: u64 = 1 << 32;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
#[derive(FromBytes)]
struct HvmStartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(FromBytes)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// The parts of the start info that the kernel uses.
pub struct StartInfo {
    /// Physical addresses of RAM, in bytes, ascending.
    pub ram: ArrayVec<Range<u64>, MAX_REGIONS>,
    /// The command line. Empty if there is none, or if it is too long.
    pub command_line: ArrayVec<u8, MAX_COMMAND_LINE>,
}

impl StartInfo {
    /// Reads the start info at physical address `address`; `None` if there is none at that address.
    pub fn read(address: u64) -> Option<Self> {
        let info: HvmStartInfo = read(address)?;
        if info.magic != MAGIC || info.version == 0 {
            return None;
        }
        let mut ram = ArrayVec::new();
        for index in 0..u64::from(info.memory_map_entries.min(MAX_ENTRIES)) {
            let offset = index * size_of::<MapEntry>() as u64;
            let entry: MapEntry = read(info.memory_map.checked_add(offset)?)?;
            let end = entry.address.saturating_add(entry.size);
            // microvm's map ends with an empty entry.
            if entry.kind == RAM && entry.size > 0 && !ram.is_full() {
                ram.push(entry.address..end);
            }
        }
        ram.sort_unstable_by_key(|region: &Range<u64>| region.start);
        Some(Self {
            ram,
            command_line: command_line(info.command_line),
        })
    }

    /// The size of all RAM, in bytes.
    pub fn memory(&self) -> u64 {
        let sizes = self.ram.iter().map(|region| region.end - region.start);
        sizes.fold(0, u64::saturating_add)
    }
}

fn read<T: FromBytes>(address: u64) -> Option<T> {
    let inside = address != 0 && address < REACH - size_of::<T>() as u64;
    // SAFETY: the boot tables map the first 4 GiB one to one, nothing writes there yet, and any bytes are a valid T.
    inside.then(|| unsafe { ptr::read_unaligned(address as usize as *const T) })
}

fn command_line(address: u64) -> ArrayVec<u8, MAX_COMMAND_LINE> {
    let mut line = ArrayVec::new();
    if address == 0 || address >= REACH - MAX_COMMAND_LINE as u64 {
        return line;
    }
    // SAFETY: as in `read`. Bytes behind the string's end are RAM or ROM, too.
    let bytes =
        unsafe { core::slice::from_raw_parts(address as usize as *const u8, MAX_COMMAND_LINE) };
    if let Ok(text) = CStr::from_bytes_until_nul(bytes) {
        line.extend(text.to_bytes().iter().copied());
    }
    line
}
