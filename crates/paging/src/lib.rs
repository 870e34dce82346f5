//! Address spaces, faults, transparent huge pages and the allocation slow path of a guest.
//!
//! # What it is
//!
//! [`Paging`] keeps x86-64 page tables (four levels, the format that the hardware walks) in frames of the guest itself
//! and reads and writes them through the [`Platform`](dirigible_frames::Platform) alone: a hosted machine walks them in
//! software, bare metal points CR3 at them. It maps anonymous memory at 4 KiB and 2 MiB and gives it back; and it is a
//! [`MovableOwner`](dirigible_mobility::MovableOwner), so compaction can move any mapped page while programs run.
//!
//! [`SlowPath`] is what stands between a request and the allocator when memory is short: reclaim, compaction,
//! evacuation, the reserve, each tried a bounded number of times. Running out is an error, never a panic.
//!
//! # How a mapped frame is owned
//!
//! A frame of anonymous memory has one mapper. Its descriptor names it: owner class of the `Paging`, owner word
//! = address space (28 bits) and page (36 bits). Every step is one atomic transition of the descriptor:
//!
//! | state | the frame is | its page-table entry |
//! |---|---|---|
//! | `Owned` | being filled, or being freed | not there yet, or no more |
//! | `Listed` | mapped | present |
//! | `Isolated` | in compaction's hands | present, then a migration entry |
//! | `Owned` and pinned | in use by somebody outside the tables ([`Paging::pin`]) | present |
//!
//! # Locks
//!
//! Each space has one lock for its tables. It is never held while allocating, filling, copying, or waiting for
//! compaction: a fault gets its frames first, locks, looks again, installs, and gives back what it did not need.
//! [`Paging::access`] takes no lock. Two rules keep it safe: table and data frames are freed only after a shoot-down,
//! and migration replaces the entry by a migration entry, shoots down, copies, installs, in that order.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod audit;
mod entry;
mod fault;
mod migrate;
mod page;
mod paging;
mod pin;
mod slow_path;
mod source;
mod space;
mod split;
mod tables;
mod unmap;

pub use audit::{Audit, AuditError};
pub use fault::{Fault, FaultError, FaultKind};
pub use page::Page;
pub use paging::{Mapping, MoveObserver, Paging, SpaceError, Usage};
pub use slow_path::{SlowPath, SlowPathConfig};
pub use source::{FreeFrames, NoReclaim, OutOfMemory, PageSource, Reclaim};
pub use space::{MAX_SPACES, SpaceId};
pub use split::SplitError;
