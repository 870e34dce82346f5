//! A page cache by disk block.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod audit;
mod block_set;
mod cache;
mod config;
mod evict;
mod finish;
mod flusher;
mod migrate;
mod pages;
mod reading;
mod removing;
mod requests;
mod slot;
mod streams;
mod throttle;
mod writing;

pub use audit::{CacheAudit, CacheAuditError};
pub use cache::PageCache;
pub use config::{CacheConfig, CacheCounts, CacheParts, MoveObserver};
pub use flusher::Flusher;
pub use pages::{BlockPages, CacheError};
