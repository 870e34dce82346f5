//! Calls that run on stacks of their own and can wait in the middle.
//!
//! A [`scope`] runs any number of [`Calls`]. Each has a [`Stack`] of its own. Code inside a call that must wait calls
//! [`Current::wait`]: control goes back to whoever [resumed](Calls::resume) the call, and the call goes on from there
//! when it is resumed again.
//!
//! Nothing here decides who runs next: that is the business of a schedule. The context switch is corosensei's.
//!
//! ```
//! use dirigible_stacks::{Current, Stack, scope};
//!
//! let current = Current::new();
//! let mut looks = 0;
//! scope(&current, |calls| {
//!     let stack = Stack::new(64 << 10).expect("memory for a stack");
//!     calls.start(7, stack, || {
//!         assert!(current.wait());
//!         assert_eq!(current.number(), Some(7));
//!         "done"
//!     });
//!     while calls.resume(7).is_none() {
//!         looks += 1;
//!     }
//! });
//! assert_eq!(looks, 1);
//! // Outside of a call there is nobody to go back to.
//! assert!(!current.wait());
//! ```
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod calls;
mod current;
#[cfg(not(feature = "std"))]
mod heap;
#[cfg(feature = "std")]
mod mapped;
mod stack;

pub use calls::{Calls, scope};
pub use current::Current;
pub use stack::{NoStack, Stack};
