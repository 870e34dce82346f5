//! Guest memory: its layout, its mappings, and how it goes back to the host.

pub(crate) mod discard;
pub(crate) mod dma;
pub(crate) mod guest_ram;
pub(crate) mod layout;
pub(crate) mod managed;
pub(crate) mod registry;
pub(crate) mod residency;
