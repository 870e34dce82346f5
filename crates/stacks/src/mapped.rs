//! Stacks from the operating system: a mapping each, with a guard page below.

use corosensei::stack::{DefaultStack, Stack, StackPointer};

use crate::NoStack;

/// Bytes of the guard page, which the limit includes.
const GUARD: usize = 4096;

/// A mapping.
pub(crate) struct Memory(DefaultStack);

impl Memory {
    pub(crate) fn new(bytes: usize) -> Result<Self, NoStack> {
        DefaultStack::new(bytes).map(Self).map_err(|_| NoStack)
    }

    pub(crate) fn top(&self) -> StackPointer {
        self.0.base()
    }

    pub(crate) fn limit(&self) -> StackPointer {
        self.0.limit()
    }

    /// The lowest word that a call may use.
    pub(crate) fn lowest(&self) -> StackPointer {
        self.0.limit().saturating_add(GUARD)
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
