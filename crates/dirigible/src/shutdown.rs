//! Checking all books, and the orderly end.

use dirigible_balloon::Fault;
use dirigible_frames::{OwnerId, Platform};
use dirigible_mobility::{IdentityError, RegisterError};
use dirigible_paging::AuditError;

use crate::{MemoryManager, parts::Part};

/// The most looks of one wait, for clocks that stand still while nothing is charged.
const MAX_LOOKS: u32 = 1 << 20;

/// Books that do not balance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The allocator's.
    #[error("allocator: {0}")]
    Frames(#[from] dirigible_frames::VerifyError),
    /// Compaction's.
    #[error("mobility: {0}")]
    Mobility(#[from] IdentityError),
    /// A balloon's.
    #[error("balloon (owner {}): {error}", owner.get())]
    Balloon {
        /// Its number.
        owner: OwnerId,
        /// What does not fit.
        error: Fault,
    },
    /// Those of address spaces.
    #[error("page tables (owner {}): {error}", owner.get())]
    Paging {
        /// Their number.
        owner: OwnerId,
        /// What does not fit.
        error: AuditError,
    },
}

/// Why a manager cannot be shut down. Nothing is lost: mend it and call again. What was ended stays so: a balloon whose
/// shutdown failed takes no more frames, and lets none be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// Books that do not balance.
    #[error(transparent)]
    Books(#[from] VerifyError),
    /// A balloon does not let go of its frames.
    #[error("the balloon with owner number {} cannot be shut down: {error}", owner.get())]
    Balloon {
        /// Its number.
        owner: OwnerId,
        /// Why.
        error: Fault,
    },
    /// Address spaces are left.
    #[error("{spaces} address spaces with owner number {} are left: end their programs first", owner.get())]
    Spaces {
        /// Their number.
        owner: OwnerId,
        /// How many.
        spaces: u64,
    },
    /// Frames of an owner are isolated still.
    #[error("owner {} cannot leave: {error}", owner.get())]
    Owner {
        /// Its number.
        owner: OwnerId,
        /// Why.
        error: RegisterError,
    },
    /// More or fewer frames are allocated than the caller keeps.
    #[error("{out} frames are allocated, and {kept} are to stay so: free the others first")]
    FramesOut {
        /// How many are not free.
        out: u64,
        /// How many the caller keeps.
        kept: u64,
    },
}

impl<P: Platform> MemoryManager<'_, P> {
    /// Checks the books of all parts against each other. Only while nothing else runs and nothing is under way; walks
    /// all memory's descriptors and all page tables.
    ///
    /// # Errors
    ///
    /// The first book that does not balance.
    pub fn verify(&self) -> Result<(), VerifyError> {
        self.mobility.verify()?;
        for part in self.parts.owners.iter() {
            match part {
                Part::Owner(_) => {}
                Part::Balloon(owner, balloon) => {
                    balloon
                        .verify()
                        .map_err(|error| VerifyError::Balloon { owner, error })?;
                }
                Part::Paging(owner, spaces) => {
                    spaces
                        .audit()
                        .map_err(|error| VerifyError::Paging { owner, error })?;
                }
            }
        }
        self.frames.drain_cpu_caches();
        Ok(self.frames.verify()?)
    }

    /// Waits until nothing is under way any more, at most [`shutdown_ns`](crate::ManagerConfig::shutdown_ns); `false`
    /// when something is. The daemons must not run any more.
    pub fn settle(&self) -> bool {
        let deadline = self.platform.now().saturating_add(self.config.shutdown_ns);
        for _ in 0..MAX_LOOKS {
            for part in self.parts.owners.iter() {
                if let Part::Balloon(_, balloon) = part {
                    balloon.handle_interrupt();
                }
            }
            let is_closed = self.mobility.abandon_background_step(self.platform.cpu());
            self.mobility.poll_pending();
            if is_closed && self.mobility.isolated_frames() == 0 {
                return true;
            }
            if self.platform.now() >= deadline {
                break;
            }
            self.platform.relax();
        }
        false
    }

    /// Ends everything: waits for what is under way, checks that no address space is left, has the balloons give their
    /// frames back, checks all books, demands that all frames are free but `kept` (the kernel's own, memory for DMA
    /// that a balloon's driver still has), and takes all owners out.
    ///
    /// When it has succeeded, owners, reclaimers, notifiers and observers may be dropped, and the memory of the tables
    /// be used for something else.
    ///
    /// # Errors
    ///
    /// What stands in the way. All balloons are tried, also when one fails.
    pub fn shutdown(&self, kept: u64) -> Result<(), ShutdownError> {
        self.settle();
        for part in self.parts.owners.iter() {
            if let Part::Paging(owner, spaces) = part {
                let audit = spaces
                    .audit()
                    .map_err(|error| VerifyError::Paging { owner, error })?;
                if audit.spaces > 0 {
                    return Err(ShutdownError::Spaces {
                        owner,
                        spaces: audit.spaces,
                    });
                }
            }
        }
        let mut ended = Ok(());
        for part in self.parts.owners.iter() {
            if let Part::Balloon(owner, balloon) = part
                && let Err(error) = balloon.shutdown()
            {
                ended = ended.and(Err(ShutdownError::Balloon { owner, error }));
            }
        }
        self.mobility.drain_settled();
        ended?;
        self.verify()?;
        let (managed, free) = (self.frames.managed_frames(), self.frames.free_frames());
        let out = managed.saturating_sub(free);
        if out != kept {
            return Err(ShutdownError::FramesOut { out, kept });
        }
        for part in self.parts.owners.iter() {
            let owner = part.owner();
            match self.mobility.unregister(owner) {
                // Somebody has taken it out by hand.
                Ok(()) | Err(RegisterError::Absent) => self.parts.remove(owner),
                Err(error) => return Err(ShutdownError::Owner { owner, error }),
            }
        }
        self.parts.reclaimers.remove(|_| true);
        self.parts.notifiers.remove(|_| true);
        self.parts.observers.remove(|_| true);
        self.mobility.observe(None);
        Ok(())
    }
}
