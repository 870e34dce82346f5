//! A small file store.
#![no_std]
#![forbid(unsafe_code)]
