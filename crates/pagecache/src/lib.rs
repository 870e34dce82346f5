//! A page cache by disk block.
//!
//! One namespace of disk blocks, for the data of files as for what describes them: the cache knows no files. A table
//! has four bytes for each block of the disk: the frame that holds it, or when reclaim took that frame. There is no
//! other memory for a page: its marks are in the frame's state word, its block in the frame's owner word. After
//! [`PageCache::new`] nothing is allocated but frames, and these only for blocks that are wanted: writing and
//! dropping need none.
//!
//! # Who may do what with a page
//!
//! A page is a frame that is `Listed` or `Isolated`, of the cache's owner, and named by its block's slot. Each right
//! to it is taken in one step on the frame's state word:
//!
//! | right | demands | leaves |
//! |---|---|---|
//! | to read it | not `LOCKED` | one more reference |
//! | to change it | not `LOCKED`, not `WRITEBACK` | one more reference |
//! | to write it to the disk | `DIRTY`, no reference, not `LOCKED`, not `WRITEBACK` | `WRITEBACK` in place of `DIRTY` |
//! | to move or remove it | no reference, not `LOCKED`, not `WRITEBACK` | `LOCKED` |
//!
//! After the step the slot is read once more: the frame may have changed its block since it was found. If so the step
//! is undone. With the right in hand the slot cannot change: only who has `LOCKED` the page changes it.
//!
//! So no reference is lost when a frame is freed, though a free is a plain store. References come only to pages that
//! are not `LOCKED`; who removes a page has found none when it set the mark, and takes the frame on to `Allocated`,
//! which is no page. A step on the state word that began before finds another word and fails. Should the frame have
//! become a page again by then, the step is good for that page, and the slot tells whether it is the wanted one.
//!
//! A change is marked `DIRTY` after it is made and before its reference is dropped; a write begins without
//! references. So a write carries whole changes, and none is lost. Readers and writers of one page are not kept
//! apart: files do that.
//!
//! A new page is `Allocated` from when its slot names it until it has been read or written to: others wait.
//!
//! # Frames that somebody has isolated
//!
//! Forgetting a page does not wait for compaction or reclaim, which may have its frame isolated: it is taken off its
//! block and *detached* (`LOCKED` and `WRITEBACK`, which no page has both). Whoever has it isolated frees it in place
//! of putting it back. A listed frame that is detached is freed by the one who isolates it to do so, a step that
//! tests the owner.
//!
//! # Failures
//!
//! A read that fails is an error for those who wait for it, and the block is read anew when it is wanted again. A
//! page that cannot be written stays dirty until it is forgotten; it is then written alone, by a sync or when it is
//! old. Frames that a device may still use, though it was told to stop, are never given back.
//!
//! # Swap
//!
//! A range of blocks at the end of the disk may be swap ([`CacheParts::swap`]): their pages are a program's, and files
//! do not have these blocks. Reclaim brings such a page with its frame ([`PageCache::promise`], [`PageCache::adopt`]);
//! it is dirty then, and is written, moved and dropped like any other. A fault brings it back into memory
//! ([`PageCache::fetch`]) and takes it out of the cache with its frame ([`PageCache::take`]). Nobody is held up because
//! too much of swap is dirty, and what the operator or the file store drops or syncs does not touch it. See
//! `swapped.rs`.
//!
//! No call may be made from an interrupt handler.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod audit;
mod block_set;
mod by_kind;
mod cache;
mod config;
mod evict;
mod finish;
mod flusher;
mod migrate;
mod pages;
mod plan;
mod reading;
mod removing;
mod requests;
mod slot;
mod streams;
mod swap_room;
mod swap_window;
mod swapped;
mod throttle;
mod writing;

pub use audit::{CacheAudit, CacheAuditError};
pub use cache::PageCache;
pub use config::{CacheConfig, CacheCounts, CacheParts, MoveObserver};
pub use flusher::Flusher;
pub use pages::{BlockPages, CacheError};
