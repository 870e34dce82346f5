//! A virtio-balloon driver whose frames stay movable.
#![no_std]
#![cfg_attr(not(feature = "virtio-drivers"), forbid(unsafe_code))]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod balloon;
mod books;
mod config;
mod exchange;
mod features;
mod request;
mod source;
pub mod stats;
#[cfg(feature = "virtio-drivers")]
mod virtio;

pub use balloon::{Balloon, Output, ProtocolError, Work};
pub use books::{Books, MAX_SPAN};
pub use config::{BalloonConfig, BalloonStats, Deflate, Fault, Held, Step};
pub use exchange::{Begin, ExchangeId};
pub use features::{Features, Queue, QueueNumbering, config_space};
pub use request::{MAX_PFNS, Message, REQUESTS, RequestId};
pub use source::{AllocatorSource, FrameSource, NoSettle, Settle};
#[cfg(feature = "virtio-drivers")]
pub use virtio::{BalloonError, DeviceError, QUEUE_SIZE, VirtioBalloon};
