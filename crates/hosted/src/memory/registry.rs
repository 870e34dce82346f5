//! The machines of this process, as the HAL finds them.
//!
//! `Hal` has static functions only, while a process may hold several machines (tests do). DMA memory comes from the
//! machine that the thread is bound to, else from the one that it built last, else from the only one there is. An
//! address belongs to one machine, whichever thread asks.

use core::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use virtio_drivers::PhysAddr;

use crate::{
    binding::{bound_machine, built_machine, set_built_machine},
    memory::dma::DmaArea,
};

/// The machines of this process.
static MACHINES: RwLock<Vec<Machine>> = RwLock::new(Vec::new());

/// A machine as the HAL sees it.
struct Machine {
    id: u64,
    dma: Weak<DmaArea>,
    /// Host ranges that drivers may share, each with the physical address of its first byte.
    ranges: Vec<(Range<usize>, PhysAddr)>,
}

/// Lets drivers find the memory of machine `id`: its DMA area and the managed frames of `managed`.
pub(crate) fn register(
    id: u64,
    dma: &Arc<DmaArea>,
    managed: impl Iterator<Item = (Range<usize>, PhysAddr)>,
) {
    let machine = Machine {
        id,
        dma: Arc::downgrade(dma),
        ranges: core::iter::once((dma.host_range(), dma.address()))
            .chain(managed)
            .collect(),
    };
    MACHINES
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .push(machine);
    set_built_machine(id);
}

/// The machine's memory is going away.
pub(crate) fn unregister(id: u64) {
    let mut machines = MACHINES.write().unwrap_or_else(PoisonError::into_inner);
    machines.retain(|machine| machine.id != id);
}

/// The DMA area of the machine that this thread works for.
pub(crate) fn current_dma() -> Option<Arc<DmaArea>> {
    let machines = MACHINES.read().unwrap_or_else(PoisonError::into_inner);
    let find = |id| machines.iter().find(|machine| machine.id == id);
    let machine = match bound_machine() {
        Some(id) => find(id),
        None => find(built_machine()).or(match &machines[..] {
            [only] => Some(only),
            _ => None,
        }),
    };
    machine?.dma.upgrade()
}

/// The physical address of a host range inside a machine's DMA area or managed memory.
pub(crate) fn physical(address: usize, length: usize) -> Option<PhysAddr> {
    let machines = MACHINES.read().unwrap_or_else(PoisonError::into_inner);
    machines
        .iter()
        .flat_map(|machine| &machine.ranges)
        .find_map(|(range, first)| {
            let inside = range.contains(&address) && length <= range.end - address;
            inside.then(|| first + (address - range.start) as u64)
        })
}
