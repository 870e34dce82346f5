//! What is registered with a manager.

use dirigible_balloon::BalloonDriver;
use dirigible_frames::{OwnerId, PageTables};
use dirigible_paging::{Audit, AuditError, OutOfMemoryNotifier, Paging, Reclaim, StallObserver};

use crate::chain::{Chain, ask};

/// An owner of frames, and how its books are checked.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    /// Any owner.
    Owner(OwnerId),
    /// A balloon.
    Balloon(OwnerId, &'a dyn BalloonDriver),
    /// Address spaces.
    Paging(OwnerId, &'a dyn Spaces),
}

impl Part<'_> {
    pub fn owner(&self) -> OwnerId {
        match *self {
            Self::Owner(owner) | Self::Balloon(owner, _) | Self::Paging(owner, _) => owner,
        }
    }
}

/// Address spaces, whatever the platform.
pub(crate) trait Spaces: Sync {
    fn audit(&self) -> Result<Audit, AuditError>;
}

impl<P: PageTables> Spaces for Paging<'_, P> {
    fn audit(&self) -> Result<Audit, AuditError> {
        self.audit()
    }
}

/// A notifier that is called before a request fails.
#[derive(Clone, Copy)]
pub(crate) enum Notifier<'a> {
    Balloon(OwnerId, &'a dyn BalloonDriver),
    Other(&'a dyn OutOfMemoryNotifier),
}

impl OutOfMemoryNotifier for Chain<Notifier<'_>> {
    fn release(&self, frames: usize) -> usize {
        ask(self.iter(), frames, |who, frames| match who {
            Notifier::Balloon(_, balloon) => balloon.deflate_on_oom(frames),
            Notifier::Other(other) => other.release(frames),
        })
    }
}

/// Everything that is registered; it lies in the manager's room.
pub(crate) struct Parts<'a> {
    pub owners: Chain<Part<'a>>,
    pub reclaimers: Chain<&'a dyn Reclaim>,
    pub notifiers: Chain<Notifier<'a>>,
    pub observers: Chain<&'a dyn StallObserver>,
}

impl Parts<'_> {
    pub fn new() -> Self {
        Self {
            owners: Chain::new(),
            reclaimers: Chain::new(),
            notifiers: Chain::new(),
            observers: Chain::new(),
        }
    }

    /// Forgets the owner with the number `id`.
    pub fn remove(&self, id: OwnerId) {
        self.owners.remove(|part| part.owner() == id);
        self.notifiers
            .remove(|notifier| matches!(notifier, Notifier::Balloon(owner, _) if *owner == id));
    }
}
