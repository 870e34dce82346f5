//! placeholder
#![no_std]
mod owner;
pub use owner::{MovableOwner, MovePair, Outcome};
