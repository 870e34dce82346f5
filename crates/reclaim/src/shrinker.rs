//! Caches of objects that can be given up.

/// Who reclaims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// A request that found no memory.
    Direct,
    /// Background reclaim.
    Kswapd,
    /// The operator (drop caches).
    Operator,
}

/// What a call of [`Shrinker::shrink`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shrunk {
    /// Objects that were looked at.
    pub scanned: u64,
    /// Objects of these that were given up.
    pub freed: u64,
    /// Frames that became free with them: of files whose inode was given up, and of the slab.
    pub frames: u64,
}

/// A cache of objects that can be given up and made again.
pub trait Shrinker: Sync {
    /// How many objects it could give up.
    fn count(&self) -> u64;

    /// Looks at up to `objects` objects and gives up those that were not used since the last look. Called with no lock
    /// held; does not wait for a device, and allocates nothing.
    fn shrink(&self, objects: u64, who: Who) -> Shrunk;
}
