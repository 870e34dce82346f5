//! Small kernel objects in page frames.
//!
//! A [`SlabCache`] hands out objects of one size. They lie in frames of one class, so that frames that shrinkers can
//! empty stay apart from those that stay for ever. An [`Object`] is a number, not a reference: its words are read and
//! written through the cache, and its handle can be stored in other objects.
//!
//! # Words
//!
//! A *slab* is a frame with objects of one cache. It is *full*, *partial* or *empty*; a cache keeps one empty slab and
//! gives the others back at once. A *slot* is an object's place in its slab.
#![no_std]
#![forbid(unsafe_code)]

mod books;
mod cache;
mod object;
mod verify;

pub use cache::{ConfigError, FreeError, SlabCache, SlabConfig};
pub use object::Object;
pub use verify::VerifyError;
