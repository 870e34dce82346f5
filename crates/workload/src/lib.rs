//! placeholder
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod actor;
pub mod content;
pub mod control;
pub mod director;
pub mod jobs;
pub mod kernel;
pub mod load;
pub mod machine;
pub mod params;
pub mod report;
pub mod rng;
pub mod timeline;
pub mod tuning;
pub mod twin;
pub mod balloon;
pub mod filler;
pub mod kcompactd;
pub mod passes;
pub mod system;
