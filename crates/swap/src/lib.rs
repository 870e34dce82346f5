//! Swap: pages of programs on a part of a disk.
//!
//! A slot is a block of the disk, and its contents are a page of the page cache like any other: what reclaim takes from
//! a program becomes a dirty page there, which is written with its neighbours, dropped when it is clean, and read again
//! with readahead. This crate knows which slots are in use ([`Slots`]), and lends them to address spaces ([`Swap`]).
//!
//! # The way of a slot
//!
//! ```text
//! free -> taken -> promised -> adopted: a dirty page -> written, clean -> dropped: on the disk only -> read again
//!  ^        |                       |                    |                      |                          |
//!  +--------+-----------------------+-- taken out, or not wanted any more ------+--------------------------+
//! ```
//!
//! A slot is free again only after the cache's table has no contents for it. So one that is handed out is empty, and
//! whoever still knows its number from before finds that.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod audit;
mod slots;
mod swap;

pub use audit::{SwapAudit, SwapAuditError};
pub use slots::Slots;
pub use swap::Swap;
