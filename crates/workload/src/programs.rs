//! The programs of the load. (In the making.)

use serde::{Deserialize, Serialize};

/// A program and its arguments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Program {
    /// Makes tree `tree` from the primary one.
    Copy {
        /// The tree.
        tree: u32,
    },
}
