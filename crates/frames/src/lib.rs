//! A page-frame allocator for guests of a hypervisor: bitfields and ledgers, no lists, no allocation.
//!
//! Memory is divided into pageblocks of 2 MiB. Each has a 512-bit field, in which a set bit is a free frame, and one
//! atomic [`Ledger`] word with the counts of free, movable, balloon and unmovable frames. A block whose free count is
//! 512 *is* a free huge page; nothing has to be merged. An index finds blocks by what is in them, so that placement,
//! compaction and the balloon never scan memory.
//!
//! The allocator deals in frame numbers and never touches the frames. It never allocates: the caller hands in metadata
//! memory.
//!
//! ```
//! use dirigible_frames::*;
//!
//! // One zone of 64 MiB from frame 256 on. Ranges need not be aligned and may have holes.
//! let ranges = [Pfn::new(256)..Pfn::new(256 + 16384)];
//! let watermarks = Watermarks { min: 64, low: 80, high: 96 };
//! let zones = [ZoneConfig { name: "Normal", ranges: &ranges, watermarks, reserve_blocks: 0 }];
//! let config = Config { zones: &zones, cpus: 1, ..Config::default() };
//! let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config)?];
//! let frames = FrameAllocator::new(&config, &mut metadata)?;
//!
//! let cpu = CpuId::new(0);
//! let page = frames.alloc(cpu, AllocRequest::movable())?;
//! let huge = frames.alloc(cpu, AllocRequest::huge())?;
//! assert!(huge.is_aligned(Order::HUGE));
//! frames.free(cpu, page, Order::BASE)?;
//! frames.free(cpu, huge, Order::HUGE)?;
//! assert!(frames.free(cpu, page, Order::BASE).is_err(), "a second free is detected");
//! frames.verify()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to begin: [`AllocRequest`] for requests, [`FrameState`] for the life of a frame,
//! [`FrameAllocator::isolate_block`] for what compaction needs, [`Platform`] for what the machine provides.
//!
//! `docs/calls.md` lists what may be called from an interrupt handler, and what each call waits for.
//!
//! A bitfield and a counter for each 2 MiB are the idea of LLFree (Wrenger et al., USENIX ATC 2023); the ledger by
//! mobility, isolation and evacuation are this project's.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, shuttle))]
extern crate std;

mod access;
mod alloc;
mod allocator;
mod bits;
mod booking;
mod boot;
mod cache;
mod change;
mod class;
mod config;
mod counters;
mod cpu;
mod descriptor;
mod drain;
mod event;
mod filing;
mod frame;
mod free;
mod grow;
mod huge;
mod index;
mod isolate;
mod ladder;
mod layout;
mod ledger;
mod lookup;
mod metadata;
mod pfn;
mod place;
mod placement;
mod platform;
mod position;
mod query;
mod range;
mod refusal;
mod request;
mod search;
mod segment;
mod source;
mod spare;
mod sums;
pub mod sync;
mod take;
mod verify;
mod zone;

pub use access::AccessSection;
pub use allocator::FrameAllocator;
pub use class::{FrameClass, Migratetype};
pub use config::{
    Config, ConfigError, CostFn, Fallback, MAX_BLOCKS, MAX_ZONES, Placement, Watermarks, ZoneConfig,
};
pub use counters::Events;
pub use descriptor::{FrameFlags, FrameState, OwnerId};
pub use event::Event;
pub use frame::{FrameInfo, Marks};
pub use grow::GrowError;
pub use isolate::{IsolateError, IsolatedBlock};
pub use ledger::{BlockState, Ledger, Refusal};
pub use pfn::{
    BLOCK_SHIFT, BlockId, CpuId, FRAME_SHIFT, FRAME_SIZE, FRAMES_PER_BLOCK, Order, Pfn, ZoneId,
};
pub use placement::BalloonPlacement;
pub use platform::{
    Cost, FrameContents, Interrupts, LINES_PER_FRAME, PageTables, Platform, WORDS_PER_LINE,
};
pub use query::{ClassCounts, PageTypeInfo};
pub use range::AllocAtError;
pub use request::{AllocError, AllocRequest, FreeError, Watermark};
pub use source::{NoReclaim, OutOfMemory, PageSource, Reclaim};
pub use verify::VerifyError;
