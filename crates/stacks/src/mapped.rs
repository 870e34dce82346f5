//! Stacks from the operating system: a mapping each, with a guard page below.

use corosensei::stack::{DefaultStack, Stack, StackPointer};

use crate::NoStack;

/// What sizes are rounded up to.
const ROUND: usize = 4096;

/// A mapping. The guard page is as large as the host's pages, and below what a call may use there may be a part of a
/// page more.
pub(crate) struct Memory {
    mapping: DefaultStack,
    /// What a call may use.
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Result<Self, NoStack> {
        let bytes = bytes.checked_next_multiple_of(ROUND).ok_or(NoStack)?;
        let mapping = DefaultStack::new(bytes).map_err(|_| NoStack)?;
        Ok(Self { mapping, bytes })
    }

    pub(crate) fn top(&self) -> StackPointer {
        self.mapping.base()
    }

    pub(crate) fn limit(&self) -> StackPointer {
        self.mapping.limit()
    }

    /// The lowest word that a call may use.
    pub(crate) fn lowest(&self) -> StackPointer {
        // Whatever the host's page size is, the mapping has this many bytes above its guard page.
        self.mapping
            .limit()
            .saturating_add(self.top().get() - self.limit().get() - self.bytes)
    }

    pub(crate) fn canary(&self) -> Canary {
        Canary
    }
}

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}..{:#x}", self.limit(), self.top())
    }
}

/// Nothing to look at: the guard page does not let an overrun pass.
#[derive(Clone, Copy)]
pub(crate) struct Canary;

impl Canary {
    pub(crate) fn is_intact(self) -> bool {
        true
    }
}
