//! Reclaim by generations.
//!
//! # Words
//!
//! Frames that can be reclaimed carry a *generation*, 1 to 4, in their state word; 0 is none. Generations are numbered
//! by age as time goes on (a *sequence*), and four sequences exist at a time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod evictable;
mod generations;
mod shrinker;

pub use evictable::{Evictable, Kept};
pub use generations::{Age, Generations, Stamp};
pub use shrinker::{Shrinker, Shrunk, Who};
