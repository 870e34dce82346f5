//! A memory manager for guests that a kernel takes whole.
//!
//! It puts allocator, compaction, reclaim, address spaces and balloon together, from a boot loader's
//! [memory map](memory_map) to an orderly [`shutdown`](MemoryManager::shutdown):
//!
//! - [`boot`]: zones, [`watermarks`], the place of the tables, the allocator itself;
//! - [`MemoryManager`]: registration of owners, the slow path, reclaimers and notifiers, verification;
//! - [`daemon`]s as steps that a kernel runs in threads and an executor polls: [`kcompactd`], [`khugepaged`],
//!   [`kswapd`], the [`flusher`] of a page cache, the [balloon's worker](balloon_worker);
//! - `schedule` (a feature; needs a heap): a queue that runs daemons and programs in virtual or real time.
//!
//! A kernel with files makes `Generations` and a `Reclaimer` (of `dirigible-reclaim`) on the allocator, and its
//! page cache (`dirigible-pagecache`) over these and a disk. It registers the cache as an owner
//! ([`MemoryManager::register`]) and with the reclaimer, [adds](MemoryManager::add_reclaimer) the reclaimer, and
//! runs the daemons [`kswapd`] and [`flusher`].
//!
//! ```
//! use core::mem::MaybeUninit;
//! use dirigible::{boot::*, memory_map::*, *};
//! use dirigible_frames::{AllocRequest, CpuId, Order, Platform};
//! use dirigible_paging::PageSource;
//!
//! /// A machine with one processor and no clock.
//! struct Machine;
//!
//! impl Platform for Machine {
//!     fn cpu(&self) -> CpuId { CpuId::new(0) }
//!     fn now(&self) -> u64 { 0 }
//!     fn relax(&self) {}
//! }
//!
//! // What the boot loader says: 64 MiB, the kernel at 1 MiB.
//! let map = [
//!     MapEntry::new(0x1000..64 << 20, MemoryKind::Usable),
//!     MapEntry::new(1 << 20..2 << 20, MemoryKind::InUse),
//! ];
//! let plan = BootPlan::new(&map, BootConfig::default())?;
//! // A kernel makes a slice of the frames `plan.place()`, as it reaches physical memory.
//! let mut memory = vec![MaybeUninit::uninit(); plan.bytes()];
//! let Booted { frames, room } = plan.boot(&mut memory, &Machine)?;
//! let manager = MemoryManager::new_in(room, frames, &Machine, ManagerConfig::for_frames(frames))?;
//! // Here owners are registered: address spaces, balloons, the kernel's own.
//!
//! let huge = manager.alloc(AllocRequest::huge())?;
//! manager.free(huge, Order::HUGE);
//! // The kernel's 256 frames stay.
//! manager.shutdown(256)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

#[cfg(feature = "schedule")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod balloon_worker;
pub mod boot;
pub mod chain;
pub mod daemon;
pub mod flusher;
pub mod kcompactd;
pub mod khugepaged;
pub mod kswapd;
mod manager;
pub mod memory_map;
mod parts;
pub mod room;
#[cfg(feature = "schedule")]
pub mod schedule;
mod shutdown;
pub mod watermarks;

pub use manager::{AddError, MANAGER_BYTES, ManagerConfig, MemoryManager, TooManyCpus};
pub use shutdown::{ShutdownError, VerifyError};
