//! Swap: pages of programs on a part of a disk.
//!
//! A slot is a block of the disk, and its contents are a page of the page cache like any other: what reclaim takes from
//! a program becomes a dirty page there, which is written with its neighbours, dropped when it is clean, and read again
//! with readahead. This crate knows which slots are in use.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;
