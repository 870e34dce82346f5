//! Address spaces, faults, transparent huge pages and the allocation slow path of a guest.
//!
//! # What it is
//!
//! [`Paging`] keeps x86-64 page tables (four levels, the format that the hardware walks) in frames of the guest. It
//! accesses them only through [`PageTables`](dirigible_frames::PageTables): a hosted machine walks them in software, on
//! bare metal CR3 points to them. It maps and unmaps anonymous memory, in pages of 4 KiB and 2 MiB. It is a
//! [`MovableOwner`](dirigible_mobility::MovableOwner), so compaction can move any mapped page while programs run.
//!
//! [`SlowPath`] serves requests when the allocator has no free frame: by reclaim, compaction, evacuation and the
//! reserve, each tried a bounded number of times. If memory runs out, the result is an error, never a panic.
//!
//! # How a mapped frame is owned
//!
//! A frame of anonymous memory is mapped once. Its descriptor names the mapping: the owner id is that of the `Paging`,
//! the owner word holds the address space (28 bits) and the page (36 bits). Every step is one atomic transition of the
//! descriptor:
//!
//! | state | the frame is | its page-table entry |
//! |---|---|---|
//! | `Allocated` | being filled, or being freed | not present |
//! | `Listed` | mapped | present |
//! | `Isolated` | in compaction's hands | present, then a migration entry |
//! | `Allocated` and pinned | in use outside the page tables ([`Paging::pin`]) | present |
//! | `Isolated` | in reclaim's hands, on its way into swap | present, then a swapped entry |
//! | not this owner's | a page of swap's cache, or there is none | a swapped entry |
//!
//! # Swap
//!
//! With [`Paging::with_swap`] reclaim can take pages away whose contents are nowhere else: `Paging` is an
//! [`Evictable`](dirigible_reclaim::Evictable). The frames that it maps are in generations, a huge page by its head; the
//! accessed bits, which a harvest clears, say which of them were used. An old one that was not used since goes into swap:
//! its entry is replaced by a swapped entry, which names a slot of the [`SwapSpace`]; after a shoot-down the frame is
//! given away. The next fault of the page waits until the contents are in memory again, takes the frame that holds them
//! out of swap, and maps it. A huge page is split first. [`Paging::keep_in_memory`] exempts a space.
//!
//! # Locks
//!
//! Each space has one lock for its tables. It is never held while frames are allocated, filled or copied, or while
//! waiting for compaction or for swap. A fault allocates its frames first, then locks, walks again, installs, and
//! frees what it did not need. [`Paging::access`] takes no lock. Two rules make this safe. Table and data frames are
//! freed only after a shoot-down. Migration replaces the entry by a migration entry, shoots down, copies, and installs
//! the new entry, in that order.
//!
//! [`Paging::collapse`] does the same with a whole last-level table: one migration entry above it hides it while its
//! pages are copied into a huge page. So the lock is held to look through the table and to isolate its frames, and to
//! install the huge page, but not in between.
//!
//! The lock does not mask interrupts, so interrupt handlers must not make calls that take it. For each call,
//! `docs/calls.md` says what the caller may hold, what the call waits for, and what it calls.
//!
//! # A page, from fault to move
//!
//! ```
//! # mod guest { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/guest.rs")); }
//! use dirigible_frames::*;
//! use dirigible_mobility::{CompactionConfig, Mobility, MovePair};
//! use dirigible_paging::{FaultKind, NoReclaim, Page, PageSource, Paging, SlowPath, SlowPathConfig};
//! // A `PageTables` over a vector of words, in a hundred lines: tests/support/guest.rs.
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
//! // A program accesses a page that is not mapped, and writes into it.
//! let space = paging.create_space(&memory)?;
//! let page = Page::containing(0x7f00_1234_5000);
//! assert_eq!(paging.translate(space, page), None);
//! let fault = paging.fault(space, page, FaultKind::Base, &memory)?;
//! assert!(fault.fresh);
//! paging.access(space, page, true, |frame| guest.write_word(frame, 0, 42));
//!
//! // Compaction moves its frame. The program's contents stay the same.
//! let to = memory.alloc(AllocRequest::movable())?;
//! assert!(mobility.isolate(fault.frame));
//! mobility.migrate_frames(&mut [MovePair::base(fault.frame, to)]);
//! assert_eq!(paging.translate(space, page), Some(to));
//! let word = paging.access(space, page, false, |frame| guest.read_word(frame, 0));
//! assert_eq!(word, Some(42));
//!
//! // The space is destroyed; its frames and tables are free again.
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
mod collapse;
mod eligible;
mod entry;
mod evict;
mod fault;
mod harvest;
mod hidden;
mod lifetime;
mod migrate;
mod page;
mod paging;
mod pin;
mod slow_path;
mod source;
mod space;
mod split;
mod swap;
mod swap_in;
mod swap_out;
mod tables;
mod unmap;

pub use audit::{Audit, AuditError};
pub use collapse::{CollapseConfig, CollapseError, Collapsed};
pub use eligible::CollapseCursor;
pub use fault::{Fault, FaultError, FaultKind};
pub use harvest::Harvest;
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
pub use swap::{SwapError, SwapSpace};
