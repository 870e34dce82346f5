//! A virtio-balloon driver for guests whose ballooned memory stays movable.
//!
//! A balloon takes page frames from its guest and gives them to the host. If they cannot be moved, they stay spread
//! over physical memory as long as the host wants them, and huge pages become rare. The frames of this balloon can
//! be moved at any time: it *exchanges* them, new frames for old, up to 256 at a time with two messages to the host
//! and no copy. Compaction asks for it through [`MovableOwner`](dirigible_mobility::MovableOwner), as it asks every
//! owner of movable memory.
//!
//! # Three ways to use it
//!
//! | what the kernel has | what it takes | what it writes |
//! |---|---|---|
//! | `dirigible-frames` and `dirigible-mobility` | `VirtioBalloon` | a [`FrameSource`] |
//! | a virtqueue implementation of its own | [`Balloon`] | an adapter of a page: it does what [`Output`] asks for and gets the frames for [`Balloon::begin_inflate`] |
//! | an allocator of its own too | [`Balloon`] | the adapter, and [`Books`] for its frame descriptors |
//!
//! A [`FrameSource`] is for `VirtioBalloon` only. The core takes no frames: its caller passes them to it. Who needs a
//! balloon whatever drives it (a worker, a notifier for out of memory) uses [`BalloonDriver`].
//!
//! `VirtioBalloon` (feature `virtio-drivers`, on by default) is the adapter over the `Transport` and `VirtQueue` of the
//! crate `virtio-drivers`:
//!
//! ```
//! # #[cfg(feature = "virtio-drivers")] {
//! use dirigible_balloon::{AllocatorSource, BalloonConfig, BalloonError, Step, VirtioBalloon};
//! use dirigible_frames::{FrameAllocator, OwnerId, Platform, Watermark};
//! use dirigible_mobility::{Mobility, RegisterError};
//! use virtio_drivers::{Hal, transport::Transport};
//!
//! fn balloon<'a, H: Hal, T: Transport + Send, P: Platform>(
//!     transport: T,
//!     frames: &'a FrameAllocator<'a>,
//!     platform: &'a P,
//! ) -> Result<VirtioBalloon<'a, H, T, P>, BalloonError> {
//!     let id = OwnerId::new(1).unwrap();
//!     VirtioBalloon::new(transport, frames, platform, id, BalloonConfig::default())
//! }
//!
//! /// Once the balloon has its place in memory. It knows nobody, and is declared before the `Mobility` that calls it.
//! fn make_movable<'a, H: Hal, T: Transport + Send, P: Platform>(
//!     balloon: &'a VirtioBalloon<'_, H, T, P>,
//!     mobility: &Mobility<'a, P>,
//! ) -> Result<(), RegisterError> {
//!     mobility.register(balloon.owner_id(), balloon)
//! }
//!
//! /// The worker's turn: after an interrupt, at the time that the last turn named, and now and then.
//! fn turn<H: Hal, T: Transport, P: Platform>(
//!     balloon: &VirtioBalloon<'_, H, T, P>,
//!     source: &AllocatorSource<'_, P>,
//! ) -> Step {
//!     balloon.step(source, 16)
//! }
//! # }
//! ```
//!
//! # The core, with a host of fifteen lines
//!
//! [`Balloon`] does no I/O, takes no lock, allocates nothing and waits for nothing. Events go in by its calls, and what
//! is to be done comes out of [`Balloon::next_output`].
//!
//! ```
//! use std::collections::BTreeSet;
//! use dirigible_balloon::{Balloon, BalloonConfig, Begin, Features, Message, Output, Queue, Work};
//! use dirigible_frames::{
//!     BalloonPlacement, Config, CpuId, Fallback, FrameAllocator, FrameState, OwnerId, Pfn, Placement, Watermark,
//!     Watermarks, ZoneConfig,
//! };
//! use dirigible_mobility::{MovePair, Outcome};
//!
//! // Some memory: 8 MiB from address 0.
//! let ranges = [Pfn::new(0)..Pfn::new(2048)];
//! let zone = ZoneConfig { name: "all", ranges: &ranges, watermarks: Watermarks::default(), reserve_blocks: 0 };
//! let config = Config {
//!     zones: &[zone],
//!     reserved: &[],
//!     cpus: 1,
//!     placement: Placement::FullestFirst,
//!     fallback: Fallback::Evacuate,
//!     ..Config::default()
//! };
//! let mut metadata = vec![0; FrameAllocator::metadata_bytes(&config)?];
//! let frames = FrameAllocator::new(&config, &mut metadata)?;
//! let cpu = CpuId::new(0);
//!
//! // The host: the frame numbers that it has. It answers at once; a real one does so by an interrupt.
//! let mut host = BTreeSet::new();
//! let mut serve = |balloon: &mut Balloon<'_, FrameAllocator<'_>>| {
//!     let mut message = Message::new();
//!     while let Some(output) = balloon.next_output(0, &mut message) {
//!         match output {
//!             Output::Send { queue, request } => {
//!                 match queue {
//!                     Queue::Inflate => host.extend(message.frames()),
//!                     _ => host.retain(|&frame| message.frames().all(|leaving| leaving != frame)),
//!                 }
//!                 balloon.complete(queue, request).unwrap();
//!             }
//!             Output::Free => message.frames().for_each(|frame| frames.free(cpu, frame, Default::default()).unwrap()),
//!             Output::WriteActual(_) => {}
//!         }
//!     }
//!     host.len()
//! };
//!
//! // The host wants 100 frames: the balloon says what to do next, until it is idle.
//! let id = OwnerId::new(1).unwrap();
//! let mut balloon = Balloon::new(&frames, id, Features::empty(), BalloonConfig::default())?;
//! balloon.set_target(100, frames.managed_frames());
//! while let Work::Inflate(want) = balloon.plan(0) {
//!     let mut out = [Pfn::default(); 256];
//!     let got = frames.alloc_balloon(cpu, BalloonPlacement::FillHoles, Watermark::None, &mut out[..want]);
//!     balloon.begin_inflate(&out[..got], 0);
//!     assert_eq!(serve(&mut balloon), 100);
//! }
//!
//! // Compaction wants a frame moved: off the list, new for old, and the old one is the guest's again.
//! let old = (0..2048).map(Pfn::new).find(|&frame| frames.state(frame) == FrameState::Listed).unwrap();
//! let mut new = [Pfn::default()];
//! frames.alloc_balloon(cpu, BalloonPlacement::Ordinary, Watermark::None, &mut new);
//! assert!(balloon.isolate(old));
//! let mut pairs = [MovePair::base(old, new[0])];
//! let Begin::Started(exchange) = balloon.begin_exchange(&mut pairs) else { panic!() };
//! assert_eq!(serve(&mut balloon), 100, "never less than promised");
//! balloon.finish_exchange(exchange, &mut pairs);
//! assert_eq!(pairs[0].outcome, Outcome::Moved);
//! frames.free(cpu, old, Default::default())?;
//!
//! // Empty it again.
//! balloon.set_target(0, frames.managed_frames());
//! while let Work::Deflate(want) = balloon.plan(0) {
//!     balloon.begin_deflate(want, &[], 0);
//!     assert_eq!(serve(&mut balloon), 0);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What keeps memory safe
//!
//! - A frame is reused only after the host has acknowledged its deflation, whatever features were negotiated, or its
//!   device has confirmed a reset; it is asked back only after its inflation was acknowledged.
//! - The lock of the books is held only while books change, and nobody waits for a CPU that is in the device's
//!   configuration space. So a move never has to be refused because of a lock, and an allocation inside inflation may
//!   compact, reclaim, or call for deflation.
//! - A move that the host answers late is kept, in the requests of its exchange, until mobility takes its end. With two
//!   such exchanges the balloon has no room for another move and reports that. No end of the balloon loses one.
//! - Each request has its own frame numbers, in memory of its own.
//! - Nothing from the host is trusted: tokens, counts and targets are checked; a host that answers what nobody
//!   asked is sent nothing more, one that does not answer is reported. Neither loses a frame: they stay on the books,
//!   in the states *Entering*, *Leaving* and *Isolated*, where nobody takes them.
//! - A device that was reset has forgotten every frame: all of them are the guest's again, and the balloon can start
//!   anew ([`Balloon::device_reset`], [`Balloon::restart`]). One that does not confirm its reset keeps them, and the
//!   memory of its queues too.
//! - Frames that are missing from the books are noticed at the next step and reported ([`Fault::Books`]).
//!
//! What may be called from where, with which locks held, stands in `docs/calls.md`, call by call. Nothing here is for
//! an interrupt handler but the core, under a lock that masks interrupts.
//!
//! # What it works with
//!
//! The rules for queue numbers, message sizes and features are those that QEMU, Firecracker, Cloud Hypervisor, crosvm
//! and alioth agree on: one readable descriptor of at most 256 ascending numbers for each request, queues of 16, no
//! indirect descriptors, no event index; see [`Features::accepted`] and [`Queue::number`]. A guest that knows its
//! host to be QEMU may choose requests of up to [`LARGE_PFNS`] numbers, by the balloon's type and
//! [`BalloonConfig::batch`]. Statistics reports have the entries that [`stats::Tag`] lists. Free page hints are never
//! given; reporting and poison are not negotiated.
#![no_std]
#![cfg_attr(not(feature = "virtio-drivers"), forbid(unsafe_code))]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod answers;
mod balloon;
mod books;
mod config;
mod driver;
mod exchange;
mod features;
mod recovery;
mod request;
mod resize;
mod source;
pub mod stats;
#[cfg(feature = "virtio-drivers")]
mod virtio;

pub use balloon::{Balloon, Output, ProtocolError, Work};
pub use books::{Books, MAX_SPAN};
pub use config::{BalloonConfig, BalloonStats, Deflate, Fault, Held, Step};
pub use driver::BalloonDriver;
pub use exchange::{Begin, ExchangeId};
pub use features::{Features, Queue, QueueNumbering, config_space};
pub use request::{LARGE_PFNS, MAX_PFNS, Message, REQUESTS, RequestId, RequestMemory};
pub use source::{AllocatorSource, FrameSource};
#[cfg(feature = "virtio-drivers")]
pub use virtio::{BalloonError, DeviceError, QUEUE_SIZE, VirtioBalloon};
