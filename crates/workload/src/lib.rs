//! stress-highalloc: how many huge pages a loaded guest can get while a balloon moves in it.
//!
//! # What is here
//!
//! - [`params`] says what a run is asked to do, [`tuning`] holds every constant and the policies of the columns,
//!   [`timeline`] makes the plan of phases and balloon targets, [`report`] is what comes out; [`attainable`] computes
//!   the reference, [`series`] the rows of the 2012 table.
//! - The load: [`programs`], which reach their kernel through [`calls`] alone, each drawing from a stream of its own
//!   ([`rng`]), all pages carrying checked [`content`]s.
//! - Our kernel for them: [`processes`], over the parts of a [`system`] and a [`disk`].
//! - The run: [actors](dirigible::schedule) in a queue ordered by time; the [`director`] takes them through the phases
//!   and makes the passes' attempts, with the means of an [`operator`]: [`operations`] on the real machine.
//! - [`mover`]: moves all of the balloon under load; [`stalls`]: how long
//!   requests waited.
//! - [`protocol`]: what the command and a guest in a virtual machine say to each other.
//!
//! Nothing here knows on what it runs. A machine brings its [`PageTables`](dirigible_frames::PageTables), a
//! [`Clock`](dirigible::schedule::Clock) and a [`BalloonControl`](balloon::BalloonControl), and where its hardware
//! walks the page tables, a [`UserMemory`](user::UserMemory). It puts the parts together and lets an [`experiment`] run
//! on them; `dirigible-hosted` shows how (`run_column`).
//!
//! # What makes columns comparable
//!
//! Every source of load draws from its own stream and never from what memory answers; a request that finds no memory
//! waits and comes again, the same. Phases and balloon targets are a function of parameters and seed alone. So all
//! columns see the same requests at the same times, and where they hold less it is because they waited, which the
//! report says.
//!
//! ```
//! use dirigible_workload::params::{Params, Profile};
//! use dirigible_workload::timeline::Timeline;
//!
//! let params = Params {
//!     memory: 128 << 20,
//!     balloon: 32 << 20,
//!     step: 8 << 20,
//!     ..Params::new(Profile::Paper)
//! };
//! let timeline = Timeline::new(&params);
//! let passes: Vec<_> = timeline.passes().map(|(pass, _)| pass.name).collect();
//! assert_eq!(passes, ["pass1", "pass2", "rested"]);
//! assert!(timeline.targets.iter().all(|&(_, frames)| frames <= params.balloon_frames()));
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod attainable;
pub mod balloon;
pub mod calls;
pub mod content;
pub mod control;
pub mod director;
pub mod disk;
mod ending;
pub mod experiment;
pub mod histogram;
pub mod mover;
pub mod operations;
pub mod operator;
pub mod oracle;
pub mod params;
pub mod passes;
mod policy;
pub mod processes;
pub mod programs;
pub mod protocol;
pub mod report;
pub mod rng;
pub mod series;
pub mod stalls;
pub mod system;
pub mod timeline;
pub mod tuning;
pub mod user;
