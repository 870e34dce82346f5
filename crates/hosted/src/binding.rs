//! Which machine, and which of its CPUs, a thread works for.

use core::{cell::Cell, marker::PhantomData};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use dirigible_frames::CpuId;
use thiserror::Error;

thread_local! {
    /// The machine's number (0: none) and the CPU's.
    static CURRENT: Cell<(u64, u16)> = const { Cell::new((0, 0)) };
    /// The machine that this thread built last (0: none).
    static BUILT: Cell<u64> = const { Cell::new(0) };
}

/// The CPU of machine `machine` that this thread is bound to.
#[inline]
pub(crate) fn bound_cpu(machine: u64) -> Option<CpuId> {
    let (current, cpu) = CURRENT.get();
    (current == machine).then(|| CpuId::new(cpu))
}

/// The machine that this thread is bound to.
pub(crate) fn bound_machine() -> Option<u64> {
    let (machine, _) = CURRENT.get();
    (machine != 0).then_some(machine)
}

/// The machine that this thread built last.
pub(crate) fn built_machine() -> u64 {
    BUILT.get()
}

/// This thread built a machine.
pub(crate) fn set_built_machine(machine: u64) {
    BUILT.set(machine);
}

/// A CPU that a thread cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BindError {
    /// The machine has fewer CPUs.
    #[error("CPU {cpu} of a machine that has {cpus}")]
    NoSuchCpu {
        /// The CPU asked for.
        cpu: usize,
        /// How many there are.
        cpus: usize,
    },
    /// Another thread is this CPU.
    #[error("CPU {cpu} is taken by another thread, or by this one already")]
    Taken {
        /// The CPU asked for.
        cpu: usize,
    },
}

/// Which CPUs of a machine are taken.
#[derive(Debug)]
pub(crate) struct CpuTable {
    machine: u64,
    taken: Box<[AtomicBool]>,
}

impl CpuTable {
    /// `cpus` CPUs, all to be had.
    pub(crate) fn new(machine: u64, cpus: u16) -> Self {
        Self {
            machine,
            taken: (0..cpus).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Makes this thread CPU `cpu` until the result is dropped.
    pub(crate) fn bind(self: &Arc<Self>, cpu: CpuId) -> Result<CpuBinding, BindError> {
        let cpus = self.taken.len();
        let index = cpu.index();
        let taken = self
            .taken
            .get(index)
            .ok_or(BindError::NoSuchCpu { cpu: index, cpus })?;
        // Acquire pairs with the release in `CpuBinding::drop`: what the CPU's former thread did comes before what this
        // one does, as it would on one CPU.
        if taken.swap(true, Ordering::Acquire) {
            return Err(BindError::Taken { cpu: index });
        }
        let number = index as u16;
        let before = CURRENT.replace((self.machine, number));
        Ok(CpuBinding {
            table: Arc::clone(self),
            cpu: number,
            before,
            on_this_thread: PhantomData,
        })
    }
}

/// This thread is a CPU of a machine as long as the value lives.
///
/// Bindings to several machines may be nested; drop them in reverse order.
#[must_use = "the thread is the CPU only as long as the binding lives"]
#[derive(Debug)]
pub struct CpuBinding {
    table: Arc<CpuTable>,
    cpu: u16,
    before: (u64, u16),
    on_this_thread: PhantomData<*const ()>,
}

impl CpuBinding {
    /// Which CPU it is.
    pub fn cpu(&self) -> CpuId {
        CpuId::new(self.cpu)
    }
}

impl Drop for CpuBinding {
    fn drop(&mut self) {
        CURRENT.set(self.before);
        // Release: see `CpuTable::bind`.
        self.table.taken[usize::from(self.cpu)].store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_to_a_cpu() {
        let table = Arc::new(CpuTable::new(9, 2));
        let binding = table.bind(CpuId::new(1)).unwrap();
        assert_eq!(bound_cpu(9), Some(CpuId::new(1)));
        assert_eq!(bound_cpu(8), None);
        assert_eq!(
            table.bind(CpuId::new(1)).unwrap_err(),
            BindError::Taken { cpu: 1 }
        );
        assert_eq!(
            table.bind(CpuId::new(2)).unwrap_err(),
            BindError::NoSuchCpu { cpu: 2, cpus: 2 }
        );
        drop(binding);
        assert_eq!(bound_machine(), None);
        assert_eq!(table.bind(CpuId::new(1)).unwrap().cpu(), CpuId::new(1));
    }

    #[test]
    fn bindings_to_two_machines_nest() {
        let (one, two) = (Arc::new(CpuTable::new(1, 1)), Arc::new(CpuTable::new(2, 1)));
        let outer = one.bind(CpuId::new(0)).unwrap();
        let inner = two.bind(CpuId::new(0)).unwrap();
        assert_eq!(bound_machine(), Some(2));
        drop(inner);
        assert_eq!(bound_machine(), Some(1));
        drop(outer);
        assert_eq!(bound_machine(), None);
    }
}
