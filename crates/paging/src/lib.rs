//! Address spaces, faults, transparent huge pages and the allocation slow path of a guest.
//!
//! # What it is
//!
//! [`Paging`] keeps x86-64 page tables (four levels, the format that the hardware walks) in frames of the guest itself
//! and reads and writes them through [`PageTables`](dirigible_frames::PageTables) alone: a hosted machine walks them in
//! software, bare metal points CR3 at them. It maps anonymous memory at 4 KiB and 2 MiB and gives it back; and it is a
//! [`MovableOwner`](dirigible_mobility::MovableOwner), so compaction can move any mapped page while programs run.
//!
//! [`SlowPath`] is what stands between a request and the allocator when memory is short: reclaim, compaction,
//! evacuation, the reserve, each tried a bounded number of times. Running out is an error, never a panic.
//!
//! # How a mapped frame is owned
//!
//! A frame of anonymous memory has one mapper. Its descriptor names it: the `Paging`'s owner number, owner word
//! = address space (28 bits) and page (36 bits). Every step is one atomic transition of the descriptor:
//!
//! | state | the frame is | its page-table entry |
//! |---|---|---|
//! | `Allocated` | being filled, or being freed | not there yet, or no more |
//! | `Listed` | mapped | present |
//! | `Isolated` | in compaction's hands | present, then a migration entry |
//! | `Allocated` and pinned | in use by somebody outside the tables ([`Paging::pin`]) | present |
//!
//! # Locks
//!
//! Each space has one lock for its tables. It is never held while allocating, filling, copying, or waiting for
//! compaction: a fault gets its frames first, locks, looks again, installs, and gives back what it did not need.
//! [`Paging::access`] takes no lock. Two rules keep it safe: table and data frames are freed only after a shoot-down,
//! and migration replaces the entry by a migration entry, shoots down, copies, installs, in that order.
//!
//! The lock does not mask interrupts, so nothing that takes it is for interrupt handlers. Call by call, `docs/calls.md`
//! says what may be held, what is waited for and who is called.
//!
//! # A page, from fault to move
//!
//! ```
//! # mod guest { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/guest.rs")); }
//! use dirigible_frames::*;
//! use dirigible_mobility::{CompactionConfig, Mobility, MovePair};
//! use dirigible_paging::{FaultKind, NoReclaim, Page, PageSource, Paging, SlowPath, SlowPathConfig};
//! // A `PageTables` over a vector of words, a hundred lines: tests/support/guest.rs.
//! use guest::MockGuest;
//!
//! // Four blocks of memory from frame 1024 on.
//! let ranges = [Pfn::new(1024)..Pfn::new(1024 + 4 * 512)];
//! let zones = [ZoneConfig {
//!     name: "Normal",
//!     ranges: &ranges,
//!     watermarks: Watermarks { min: 8, low: 16, high: 32 },
//!     reserve_blocks: 0,
//! }];
//! let config = Config {
//!     zones: &zones,
//!     reserved: &[],
//!     cpus: guest::CPUS,
//!     placement: Placement::FullestFirst,
//!     fallback: Fallback::Evacuate,
//!     ..Config::default()
//! };
//! let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config)?];
//! let frames = FrameAllocator::new(&config, &mut metadata)?;
//! let guest = MockGuest::new(4 * 512);
//!
//! let owner = OwnerId::new(1).expect("not 0");
//! let paging = Paging::new(&frames, &guest, owner, 16);
//! let mobility = Mobility::new(&frames, &guest, CompactionConfig::default());
//! mobility.register(owner, &paging)?;
//! let memory = SlowPath::new(&mobility, &NoReclaim, SlowPathConfig::default());
//!
//! // A program touches a page that is not there, and writes into it.
//! let space = paging.create_space(&memory)?;
//! let page = Page::containing(0x7f00_1234_5000);
//! assert_eq!(paging.translate(space, page), None);
//! let fault = paging.fault(space, page, FaultKind::Base, &memory)?;
//! assert!(fault.fresh);
//! paging.access(space, page, true, |frame| guest.write_word(frame, 0, 42));
//!
//! // Its frame is moved, as compaction does it. The program does not notice.
//! let to = memory.alloc(AllocRequest::movable())?;
//! assert!(mobility.isolate(fault.frame));
//! mobility.migrate_frames(&mut [MovePair::base(fault.frame, to)]);
//! assert_eq!(paging.translate(space, page), Some(to));
//! let word = paging.access(space, page, false, |frame| guest.read_word(frame, 0));
//! assert_eq!(word, Some(42));
//!
//! // The space ends; its frames and tables are free again.
//! assert_eq!(paging.destroy_space(space), 1);
//! frames.verify()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod audit;
mod entry;
mod fault;
mod lifetime;
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
pub use lifetime::SpaceError;
pub use page::Page;
pub use paging::{Mapping, MoveObserver, Paging, Usage};
pub use slow_path::{SlowPath, SlowPathConfig};
pub use source::{
    FreeFrames, NoNotifier, NoReclaim, OutOfMemory, OutOfMemoryNotifier, PageSource, Reclaim,
    StallObserver,
};
pub use space::{MAX_SPACES, SpaceId};
pub use split::SplitError;
