//! Mistakes that balloons, compaction and allocators have made before, by their numbers in `docs/pitfalls.md`.

#![cfg(not(shuttle))]

mod caches;
mod geometry;
mod machine;
mod policy;
mod states;
