//! Small kernel objects in page frames.
#![no_std]
#![forbid(unsafe_code)]
