//! The disk, driven by virtio-drivers over the kernel's transport.

use alloc::vec;

use virtio_drivers::{device::blk::VirtIOBlk, transport::DeviceType};

use super::manager::Memory;
use super::{
    numbers::Numbers,
    outcome::{Outcome, ensure},
};
use crate::kernel::{hal::GuestHal, machine::Guest, transport};

const SECTOR: usize = 512;

pub(super) fn the_disk_keeps_what_is_written(_: &Guest, _: &mut Memory) -> Outcome {
    let transport = transport::find(DeviceType::Block)
        .next()
        .ok_or("no disk: start the machine with -device virtio-blk-pci")?
        .map_err(|error| alloc::format!("the disk cannot be used: {error}"))?;
    let text = |error: virtio_drivers::Error| alloc::format!("{error}");
    let mut disk: VirtIOBlk<GuestHal, _> = VirtIOBlk::new(transport).map_err(text)?;
    let sectors = disk.capacity() as usize;
    ensure(sectors >= 64, || {
        alloc::format!("a disk of {sectors} sectors")
    })?;
    let mut numbers = Numbers(4711);
    // Small and large requests, also for the last sectors.
    for (first, count) in [(0, 1), (3, 8), (sectors - 16, 16), (16, 32)] {
        let mut written = vec![0_u8; count * SECTOR];
        written
            .iter_mut()
            .for_each(|byte| *byte = numbers.next() as u8);
        disk.write_blocks(first, &written).map_err(text)?;
        disk.flush().map_err(text)?;
        let mut read = vec![0_u8; count * SECTOR];
        disk.read_blocks(first, &mut read).map_err(text)?;
        ensure(read == written, || {
            alloc::format!("sectors {first} to {} read differently", first + count - 1)
        })?;
    }
    let beyond = disk.read_blocks(sectors, &mut [0; SECTOR]);
    ensure(beyond.is_err(), || {
        "a read behind the last sector succeeded".into()
    })
}
