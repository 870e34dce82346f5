//! A memory manager for guests that a kernel takes whole.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

#[cfg(feature = "schedule")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod balloon_worker;
pub mod boot;
pub mod chain;
pub mod daemon;
pub mod kcompactd;
mod manager;
pub mod memory_map;
mod parts;
pub mod room;
#[cfg(feature = "schedule")]
pub mod schedule;
mod shutdown;
pub mod watermarks;

pub use manager::{AddError, MANAGER_BYTES, ManagerConfig, MemoryManager, TooManyCpus};
pub use shutdown::{ShutdownError, VerifyError};
