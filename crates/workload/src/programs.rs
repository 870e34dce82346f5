//! The programs of the load: kernels are unpacked, copied and compiled, again and again, by processes.
//!
//! [`Program::Main`] makes the primary source [`tree`], has it copied, and begins a [`Program::Make`] in each tree as
//! soon as it is there; each of them compiles its tree's directories one after the other, with a [`Program::Compile`]
//! for each, that feeds a [`Program::Assemble`] through a pipe. [`Program::Walk`] lists all directories meanwhile.
//!
//! The programs are straight code over [`Calls`] and know nothing else of their kernel. [`run`] is all that a kernel
//! needs; what it runs is the same on every one.
//!
//! # What they ask for
//!
//! Each program draws from a stream of its own, which follows from the seed and from what the program is, and never
//! from what a call answers. So the same [`LoadPlan`] makes the same requests, whatever fails. A request that finds no
//! memory waits and comes again, the same. A program that fails otherwise ends, and whoever began it begins it anew.

mod assemble;
mod compile;
mod copy;
mod delete;
mod link;
mod main;
mod make;
mod plan;
pub mod tree;
mod walk;
mod work;

pub use plan::{CompilePlan, LinkPlan, LoadPlan, TreePlan};

use serde::{Deserialize, Serialize};

use crate::calls::{Calls, Failure};
use work::Work;

/// A program and its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// The root of the load. Runs until it is killed.
    Main,
    /// Makes tree `tree`: unpacks the primary one (0), or copies it.
    Copy {
        /// The tree.
        tree: u32,
    },
    /// Compiles a tree that is there, for ever.
    Make {
        /// The tree.
        tree: u32,
    },
    /// Compiles the sources of a directory.
    Compile {
        /// The tree.
        tree: u32,
        /// The directory.
        unit: u32,
        /// How often the whole tree was compiled before.
        round: u32,
    },
    /// Reads what a [`Compile`](Self::Compile) writes into its pipe, and writes the objects.
    Assemble {
        /// The tree.
        tree: u32,
        /// The directory.
        unit: u32,
        /// How often the whole tree was compiled before.
        round: u32,
    },
    /// Reads the objects of some directories and writes one file.
    Link {
        /// The tree.
        tree: u32,
        /// Which part of the tree.
        part: u32,
        /// How often the whole tree was compiled before.
        round: u32,
    },
    /// Lists all directories of all trees, for ever.
    Walk,
    /// Deletes a whole tree, as far as it is there.
    Delete {
        /// The tree.
        tree: u32,
    },
}

impl Program {
    /// What it is called in reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Copy { .. } => "copy",
            Self::Make { .. } => "make",
            Self::Compile { .. } => "compile",
            Self::Assemble { .. } => "assemble",
            Self::Link { .. } => "link",
            Self::Walk => "walk",
            Self::Delete { .. } => "delete",
        }
    }
}

/// Runs `program` to its end.
///
/// # Errors
///
/// [`Failure::Killed`] when it was killed; else why it gave up.
pub fn run(program: &Program, plan: &LoadPlan, calls: &dyn Calls) -> Result<(), Failure> {
    let mut work = Work::new(plan, calls, program);
    match *program {
        Program::Main => main::run(&mut work),
        Program::Copy { tree } => copy::run(&mut work, tree),
        Program::Make { tree } => make::run(&mut work, tree),
        Program::Compile { tree, unit, round } => compile::run(&mut work, tree, unit, round),
        Program::Assemble { tree, unit, round } => assemble::run(&mut work, tree, unit, round),
        Program::Link { tree, part, round } => link::run(&mut work, tree, part, round),
        Program::Walk => walk::run(&mut work),
        Program::Delete { tree } => delete::run(&mut work, tree),
    }
}
