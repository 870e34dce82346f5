//! Reclaim by generations.
//!
//! # Words
//!
//! Frames that can be reclaimed carry a *generation*, 1 to 4, in their state word; 0 is none. Generations are numbered
//! by age as time goes on (a *sequence*), and four sequences exist at a time.
//!
//! # Parts
//!
//! - [`Generations`] is what owners of frames call: what is added, used, dirtied, moved.
//! - [`Reclaimer`] knows the owners ([`Evictable`]) and the caches of objects ([`Shrinker`]). Its clock hand goes over
//!   the blocks that have frames of the oldest generation. For requests that found no memory it is a
//!   [`Reclaim`](dirigible_frames::Reclaim).
//! - [`Kswapd`] reclaims in the background, a bounded piece at a time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, shuttle))]
extern crate std;

mod callers;
mod config;
mod direct;
mod evictable;
mod generations;
mod hand;
mod index;
mod kswapd;
mod reclaimer;
mod shrinker;
mod slabs;
mod stamp;
mod tally;
mod verify;
mod visit;

pub use config::{KswapdConfig, ReclaimConfig};
pub use evictable::{Evictable, Kept};
pub use generations::{Age, Generations};
pub use kswapd::Kswapd;
pub use reclaimer::{Reclaimer, RegisterError};
pub use shrinker::{Shrinker, Shrunk, Who};
pub use stamp::Stamp;
pub use tally::Tally;
pub use verify::{Audit, VerifyError};
