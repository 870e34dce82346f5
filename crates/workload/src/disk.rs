//! The disk of a run: formatted for what the load puts on it.

use alloc::{format, string::String};

use dirigible_files::{FileStore, Parts, StoreConfig};
use dirigible_frames::FrameContents;

use crate::programs::LoadPlan;

/// Chains of the tables of inodes and names in memory.
const CHAINS: usize = 1 << 14;

/// Formats the disk of `parts` with inodes for all files of the load `plan`, and mounts it.
///
/// # Errors
///
/// The disk is too small, or it fails.
pub fn format_and_mount<'a, P: FrameContents>(
    parts: Parts<'a, P>,
    plan: &LoadPlan,
) -> Result<FileStore<'a, P>, String> {
    let text = |error: &dyn core::fmt::Display| format!("the disk cannot be used: {error}");
    FileStore::format(&parts, inodes(plan)).map_err(|error| text(&error))?;
    let config = StoreConfig {
        inode_chains: CHAINS,
        name_chains: CHAINS,
    };
    FileStore::mount(parts, config).map_err(|error| text(&error))
}

/// Inodes for all trees: each source has an object, each part an image; and a quarter more.
fn inodes(plan: &LoadPlan) -> u32 {
    let tree = &plan.tree;
    let directory = u64::from(tree.sources) * 2 + 2;
    let all = u64::from(tree.directories) * directory + u64::from(tree.headers) + 16;
    let inodes = u64::from(plan.trees) * all * 5 / 4;
    u32::try_from(inodes).unwrap_or(u32::MAX)
}
