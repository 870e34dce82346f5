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
//!
//! # The way of a frame
//!
//! A frame begins in the second oldest generation, or in the youngest ([`Age`]). Its first use marks it
//! `REFERENCED`, the next one `ACTIVE`. When it has become one of the oldest, the clock hand meets it and does the
//! first of these that fits:
//!
//! | the frame is | what becomes of it |
//! |---|---|
//! | being written | one generation younger, marked `RECLAIM` |
//! | `ACTIVE` | the youngest generation |
//! | isolated, referenced, locked or pinned | one generation younger |
//! | `REFERENCED` | one generation younger, without the mark |
//! | of a program ([`Kind::Anonymous`]) | one generation younger; also given to swap, if share and room allow it |
//! | dirty | one generation younger, marked `RECLAIM`; in background reclaim that is in trouble it is also written |
//! | else | isolated, dropped by its owner with a [`Stamp`], freed; one generation younger if the share does not allow it |
//!
//! So the oldest generation becomes empty, and then all become older by one, without a change to any frame. A frame
//! with `RECLAIM` becomes one of the oldest as soon as it has been written. Contents that come back
//! ([`Generations::refault`]) soon after their stamp begin young.
//!
//! # Shares
//!
//! A program's frame costs a write before it can be freed, and both kinds cost a read when they are wanted again. Each
//! kind has a weight, of 200 in all: [`ReclaimConfig::swappiness`] that of programs, the rest that of files. It is divided
//! by what the kind has cost of late ([`Generations::cost`]), but never to less than half against the other. The kind
//! with the larger weight is taken whenever it is met, the other in proportion. Without swap, or without room in it, all
//! files' frames are taken; and so are both kinds in the last pass.
//!
//! A frame that was given to swap is one of the page cache's that is being written. What it is given at most is what the
//! request lacks, or what the zones do. As soon as it is written the hand goes back to it.
//!
//! # Passes
//!
//! A pass at priority *p* looks at the 2^-*p* part of all frames, and offers the shrinkers twice the same share of
//! their objects. Requests go from priority 12 to 0 until they have what they lack; they never write, and wait a
//! bounded time where most of what they could take is dirty or being written. Background reclaim goes from 12 to 1, and
//! begins anew. A request that is made inside of reclaim does not reclaim.
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
mod price;
mod reclaimer;
mod shares;
mod shrinker;
mod slabs;
mod stamp;
mod swapping;
mod tally;
mod verify;
mod visit;
mod zones;

pub use config::{KswapdConfig, ReclaimConfig};
pub use evictable::{Evictable, Kept, Kind};
pub use generations::{Age, Generations};
pub use kswapd::Kswapd;
pub use price::cost_by_age;
pub use reclaimer::{Reclaimer, RegisterError};
pub use shrinker::{Shrinker, Shrunk, Who};
pub use stamp::Stamp;
pub use tally::Tally;
pub use verify::{Audit, VerifyError};
