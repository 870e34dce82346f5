//! One interface for every page frame that can move, and compaction that knows none of them by name.
//!
//! User memory, page cache and a balloon are *owners*: each implements [`MovableOwner`] (isolate, migrate, putback),
//! is registered with [`Mobility`] under an owner number, and writes that number into the descriptors of its frames.
//! Whoever needs room then asks `Mobility`:
//!
//! | call | for whom | what it does |
//! |---|---|---|
//! | [`compact_direct`](Mobility::compact_direct) | a request for a huge page | empties the cheapest block and hands it over |
//! | [`compact_background`](Mobility::compact_background) | a background worker | keeps a reserve of wholly free blocks |
//! | [`background_step`](Mobility::background_step) | one that must not wait | the same in steps |
//! | [`alloc`](Mobility::alloc) | an unmovable request | allocates, and gives it a whole block where its own are full, so that no hybrid block is left |
//! | [`evacuate_for`](Mobility::evacuate_for) | the same | only gives it the block |
//! | [`alloc_contiguous`](Mobility::alloc_contiguous) | a buffer for a device, a large stack | empties the cheapest stretch of blocks and gives its frames |
//! | [`alloc_at`](Mobility::alloc_at) | the same at a named place | the same there |
//! | [`evacuate`](Mobility::evacuate), [`evacuate_many`](Mobility::evacuate_many) | anybody | empties named blocks |
//! | [`migrate_frames`](Mobility::migrate_frames) | anybody | moves named frames |
//! | [`drain_settled`](Mobility::drain_settled) | daemons | ends moves that a host answered late |
//!
//! # Evacuation
//!
//! There are no scanners. The allocator's index names the blocks that are cheapest to empty (no unmovable frame, few
//! used ones; a balloon frame costs an eighth of a frame with contents, as it is not copied). Such a block is
//! isolated, so that nothing is allocated from it; targets for *all* its used frames are reserved in the fullest
//! other blocks, never in a wholly free one; all its used frames are isolated; only then does anything move. If any
//! of that falls short, everything is put back. Owners get their frames in batches: a balloon sends one message for
//! up to 256 of them, also when they come from several blocks.
//!
//! A block that was given up is no candidate for a time, so that no number of them keeps compaction from the others:
//! a millisecond and then longer and longer if a frame of it was under way, a second and longer if an owner refused.
//! The refusal ends when the frame that stood in the way is freed or unpinned. When it ends by time alone and was no
//! matter of a moment, the block is on probation: a request tries one or two of these, beside others. Blocks with
//! pinned frames are no candidates at all: pinned frames count as unmovable in the ledger.
//!
//! What is set aside for a block, its own free frames and its targets, is 512 frames, and so many must be free above
//! a watermark: the min watermark for a request that takes the block in the end, the low watermark for background
//! compaction and for `evacuate_for`, so that the requests of others succeed meanwhile.
//!
//! # Dropping
//!
//! With [`drops_cold`](CompactionConfig::drops_cold) frames are isolated before targets are reserved, and each owner
//! says which it would rather drop than move ([`MovableOwner::plan`]): those need no target. No more are dropped than
//! reclaim owes at that moment, a request's huge page counted in, and for a request as many as it lacks targets. They
//! count as reclaimed, by background reclaim if the block is for the reserve, else by direct reclaim.
//!
//! # Ranges
//!
//! A contiguous range is a stretch of blocks that are evacuated together: all are isolated first, then emptied batch
//! by batch, and what is captured becomes single frames of the wanted class. If one block cannot be emptied, all are
//! opened again and the next stretch is tried. Here targets may also come from wholly free blocks outside of the
//! stretch: one breaking one whole block gains several in a row.
//!
//! # Counting
//!
//! `Mobility` raises `compact_*` and `pgmigrate_*` (the owners raise their own, such as `balloon_migrate`). A frame
//! that its owner released instead of moving it ([`Outcome::Released`]) counts as moved, as in Linux.
//! [`Mobility::verify`] checks the identities between them. `compact_refused_*` say why blocks were given up.
//! `Mobility` charges the platform for looking at blocks and their frames, and for isolating frames; the owner who
//! copies or sends charges for that.
//!
//! # Locks
//!
//! Each zone has a lock that is held while a block is chosen, isolated and given its targets; owners are asked to
//! isolate under it, and take the locks of their books; they never call in here. It is released before frames are
//! handed to their owners: nobody waits for the host with a lock held, and meanwhile another CPU takes the next block.
//! A few workspaces bound how many evacuations run at once. Compaction that is entered again from inside itself (an
//! owner that allocates) does not wait: it is skipped. The lock order is: a zone's compaction, owner's books, registry
//! or CPU caches.
//!
//! None of these locks masks interrupts: a handler wakes a thread that calls. Call by call, `docs/calls.md` says what
//! may be held, what is waited for and who is called.
//!
//! # A first owner
//!
//! ```
//! use std::sync::Mutex;
//! use dirigible_frames::*;
//! use dirigible_mobility::*;
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
//! /// Keeps one frame.
//! struct Keeper<'a> {
//!     frames: &'a FrameAllocator<'a>,
//!     book: Mutex<Option<Pfn>>,
//! }
//!
//! impl MovableOwner for Keeper<'_> {
//!     fn isolate(&self, frame: Pfn) -> bool {
//!         let mut book = self.book.lock().unwrap();
//!         *book == Some(frame)
//!             && self.frames.transition(frame, FrameState::Listed, FrameState::Isolated).is_ok()
//!             && book.take().is_some()
//!     }
//!
//!     fn migrate(&self, pairs: &mut [MovePair]) {
//!         for pair in pairs {
//!             // Here the contents of `from` are copied to `to`.
//!             self.frames.set_owner(pair.to, OwnerId::new(1).unwrap(), 0);
//!             self.frames.transition(pair.to, FrameState::Allocated, FrameState::Listed).unwrap();
//!             *self.book.lock().unwrap() = Some(pair.to);
//!             self.frames.transition(pair.from, FrameState::Isolated, FrameState::Allocated).unwrap();
//!             pair.outcome = Outcome::Moved;
//!         }
//!     }
//!
//!     fn putback(&self, frame: Pfn) {
//!         *self.book.lock().unwrap() = Some(frame);
//!         self.frames.transition(frame, FrameState::Isolated, FrameState::Listed).unwrap();
//!     }
//! }
//!
//! // Two pageblocks of memory.
//! let layout = Config {
//!     zones: &[ZoneConfig {
//!         name: "Normal",
//!         ranges: &[Pfn::new(0)..Pfn::new(1024)],
//!         watermarks: Watermarks { min: 16, low: 24, high: 32 },
//!         reserve_blocks: 0,
//!     }],
//!     reserved: &[],
//!     cpus: 1,
//!     placement: Placement::FullestFirst,
//!     fallback: Fallback::Evacuate,
//!     ..Config::default()
//! };
//! let mut metadata = vec![0; FrameAllocator::metadata_bytes(&layout)?];
//! let frames = FrameAllocator::new(&layout, &mut metadata)?;
//! let (cpu, machine) = (CpuId::new(0), Machine);
//! let keeper = Keeper { frames: &frames, book: Mutex::new(None) };
//! let mobility = Mobility::new(&frames, &machine, CompactionConfig::default());
//! let id = OwnerId::new(1).unwrap();
//! mobility.register(id, &keeper)?;
//!
//! // The owner gets a frame, puts its number on it and lists it: from now on it can move.
//! let frame = frames.alloc(cpu, AllocRequest::movable())?;
//! frames.set_owner(frame, id, 0);
//! *keeper.book.lock().unwrap() = Some(frame);
//! frames.transition(frame, FrameState::Allocated, FrameState::Listed).unwrap();
//!
//! // Somebody wants it elsewhere.
//! assert!(mobility.isolate(frame));
//! let target = frames.alloc(cpu, AllocRequest::movable())?;
//! let stats = mobility.migrate_frames(&mut [MovePair::base(frame, target)]);
//! assert_eq!(stats.moved, 1);
//! assert_eq!(*keeper.book.lock().unwrap(), Some(target));
//! assert_eq!(frames.state(frame), FrameState::Free);
//! mobility.verify()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![deny(unsafe_code)]

mod account;
mod alloc;
mod background;
mod candidate;
mod config;
mod contiguous;
mod defer;
mod direct;
mod empty;
mod evacuate;
mod handover;
mod migrate;
mod mobility;
mod observer;
mod owner;
mod piece;
mod place;
mod plan;
mod range;
mod refusal;
mod registry;
mod targets;
mod window;
mod workspace;
mod zone;

pub use account::{IdentityError, PerClass};
pub use alloc::evacuates;
pub use background::{BackgroundResult, BackgroundStep};
pub use config::{CompactionConfig, MAX_BATCH_BLOCKS, MAX_LOOK, MAX_RANGE_USED, WORKSPACE_FRAMES};
pub use contiguous::{ContiguousError, ContiguousRequest};
pub use direct::CompactResult;
pub use evacuate::EvacuateError;
pub use migrate::MigrateStats;
pub use mobility::Mobility;
pub use observer::EmptyingObserver;
pub use owner::{MovableOwner, MovePair, Outcome};
pub use plan::Fate;
pub use registry::{OWNERS, RegisterError};
