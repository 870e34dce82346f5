//! A page cache by disk block.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod pages;

pub use pages::{BlockPages, CacheError};
