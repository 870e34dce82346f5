//! What a frame is allocated for: migratetypes of blocks and requests, classes of frames.

/// Which pageblocks serve a request; each block carries one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Migratetype {
    /// Can never be moved: kernel data, page tables.
    Unmovable = 0,
    /// Can be moved by its owner: user memory, page cache, balloon.
    Movable = 1,
    /// Cannot be moved, but can be given back under pressure: inode and dentry caches.
    Reclaimable = 2,
}

impl Migratetype {
    /// All of them, in the order of `/proc/pagetypeinfo`.
    pub const ALL: [Self; 3] = [Self::Unmovable, Self::Movable, Self::Reclaimable];

    /// The type with number `bits`, the inverse of `as u8`; numbers above 2 give `Unmovable`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Movable,
            2 => Self::Reclaimable,
            _ => Self::Unmovable,
        }
    }

    /// The name that `/proc/pagetypeinfo` prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmovable => "Unmovable",
            Self::Movable => "Movable",
            Self::Reclaimable => "Reclaimable",
        }
    }
}

/// How a used frame is counted in the ledger of its block.
///
/// `Unmovable` and `Reclaimable` share the ledger's *unmovable* count, together with reserved frames and holes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FrameClass {
    /// Kernel data, page tables, and the balloon's frames where its mobility is off.
    Unmovable = 0,
    /// Movable memory with contents.
    Movable = 1,
    /// Slab that shrinkers can empty.
    Reclaimable = 2,
    /// Held by a balloon: moving it costs a message to the host and no copy.
    Balloon = 3,
}

impl FrameClass {
    /// The class with number `bits`, the inverse of `as u8` (only the two low bits count).
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Unmovable,
            1 => Self::Movable,
            2 => Self::Reclaimable,
            _ => Self::Balloon,
        }
    }

    /// The blocks that serve requests for this class.
    pub const fn migratetype(self) -> Migratetype {
        match self {
            Self::Unmovable => Migratetype::Unmovable,
            Self::Reclaimable => Migratetype::Reclaimable,
            Self::Movable | Self::Balloon => Migratetype::Movable,
        }
    }

    /// Whether compaction may ask the owner to move it.
    pub const fn is_movable(self) -> bool {
        matches!(self, Self::Movable | Self::Balloon)
    }
}
