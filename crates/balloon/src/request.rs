//! Requests: a fixed number of slots, each with frame numbers of its own.
#![forbid(unsafe_code)]

use core::borrow::BorrowMut;
use core::ops::{Index, IndexMut};

use arrayvec::ArrayVec;
use bitflags::bitflags;
use dirigible_frames::{FRAME_SIZE, Pfn};
use dirigible_mobility::Outcome;

/// The most frame numbers in one request, unless the guest says that its host takes more; Firecracker drops longer
/// requests without an answer.
pub const MAX_PFNS: usize = 256;
/// The most that a guest may choose, for a host that takes them (QEMU does): 16 MiB of memory in one request.
///
/// The size is a parameter of the balloon's type, and the compiler checks it:
///
/// ```
/// let message = dirigible_balloon::Message::<4096>::new();
/// ```
///
/// ```compile_fail
/// let message = dirigible_balloon::Message::<4097>::new();
/// ```
pub const LARGE_PFNS: usize = 4096;
/// How many requests can exist at once; a queue of 16 takes them all.
pub const REQUESTS: usize = MAX_PLAIN + MAX_RELIEF + MAX_EXCHANGE;
/// How many of them inflation and deflation may use.
pub(crate) const MAX_PLAIN: usize = 4;
/// How many are kept for out-of-memory deflation, which must not wait until an inflation is answered.
pub(crate) const MAX_RELIEF: usize = 1;
/// How many are kept for exchanges, two for each.
pub(crate) const MAX_EXCHANGE: usize = 4;

/// The memory in which a balloon keeps the frame numbers of its requests.
pub type RequestMemory<const N: usize> = [[u32; N]; REQUESTS];

/// Checked at compile time: whether requests may have so many numbers.
const fn check_size(numbers: usize) {
    assert!(
        1 <= numbers && numbers <= LARGE_PFNS,
        "a request holds 1 to 4096 frame numbers"
    );
}

// A virtio balloon counts in 4 KiB units; with frames of another size each would need several numbers.
const _: () = assert!(FRAME_SIZE == 4096);

/// Names a request from [`Output::Send`](crate::Output::Send) to its completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct RequestId(u8);

impl RequestId {
    /// The request with index `index`. Any index may come from a device: one that names no request is an error of the
    /// device.
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The index, below [`REQUESTS`] for all requests that the balloon hands out.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Inflate,
    Deflate,
    /// An out-of-memory deflation, in the slot that is kept for it.
    Relief,
    /// The new frames of an exchange; the slot of the old ones.
    ExchangeIn(u8),
    /// The old frames of an exchange; the slot of the new ones.
    ExchangeOut(u8),
}

bitflags! {
    /// A set of roles.
    #[derive(Clone, Copy)]
    pub(crate) struct Roles: u8 {
        const INFLATE = 1 << 0;
        const DEFLATE = 1 << 1;
        const RELIEF = 1 << 2;
        const EXCHANGE_IN = 1 << 3;
        const EXCHANGE_OUT = 1 << 4;
        /// Frames leave for good.
        const DEFLATIONS = Self::DEFLATE.bits() | Self::RELIEF.bits();
        /// Frames enter.
        const ENTERING = Self::INFLATE.bits() | Self::EXCHANGE_IN.bits();
        /// Frames leave.
        const LEAVING = Self::DEFLATIONS.bits() | Self::EXCHANGE_OUT.bits();
        /// The balloon's size changes.
        const RESIZING = Self::INFLATE.bits() | Self::DEFLATIONS.bits();
        /// The balloon's size stays.
        const EXCHANGES = Self::EXCHANGE_IN.bits() | Self::EXCHANGE_OUT.bits();
    }
}

impl Role {
    pub(crate) const fn is_among(self, roles: Roles) -> bool {
        roles.contains(match self {
            Self::Inflate => Roles::INFLATE,
            Self::Deflate => Roles::DEFLATE,
            Self::Relief => Roles::RELIEF,
            Self::ExchangeIn(_) => Roles::EXCHANGE_IN,
            Self::ExchangeOut(_) => Roles::EXCHANGE_OUT,
        })
    }
}

/// How far a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The slot is not in use.
    Free,
    /// Not to be sent yet: the old frames of an exchange before the new ones are acknowledged, or the new ones after.
    Held,
    /// To be sent.
    Ready,
    /// With the host.
    Sent,
    /// Acknowledged; what follows from it is to be handed out.
    Done,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) phase: Phase,
    pub(crate) role: Role,
    /// Exchanges: its beginner has yet to fetch the answer. Otherwise the pairs stay here until they are taken.
    pub(crate) attended: bool,
    /// When it was sent.
    pub(crate) sent_at: u64,
    /// Exchanges: how it ended.
    pub(crate) outcome: Outcome,
    /// Pairs of a finished exchange that have been handed out.
    pub(crate) handed_out: usize,
    /// Deflations: how many of the frames were asked back because memory ran out.
    pub(crate) relief: u64,
    len: usize,
}

impl Slot {
    const fn new() -> Self {
        Self {
            phase: Phase::Free,
            role: Role::Inflate,
            attended: false,
            sent_at: 0,
            outcome: Outcome::Todo,
            handed_out: 0,
            relief: 0,
            len: 0,
        }
    }

    pub(crate) fn begin(&mut self, role: Role, phase: Phase) {
        debug_assert!(self.phase == Phase::Free);
        self.phase = phase;
        self.role = role;
        self.attended = false;
        self.outcome = Outcome::Todo;
        self.handed_out = 0;
        self.relief = 0;
        self.len = 0;
    }

    pub(crate) fn release(&mut self) {
        self.phase = Phase::Free;
        self.len = 0;
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether this is the new half of an exchange that has ended and waits to be taken.
    pub(crate) const fn is_settled(&self) -> bool {
        matches!((self.phase, self.role), (Phase::Done, Role::ExchangeIn(_))) && !self.attended
    }
}

/// All slots, and the memory for their numbers. The memory is apart, because large requests are too big for some
/// stacks.
#[derive(Debug)]
pub(crate) struct Requests<const N: usize, M> {
    slots: [Slot; REQUESTS],
    /// Of each slot in the order in which they came: those of an exchange stand opposite their partners.
    numbers: M,
}

impl<const N: usize, M> Requests<N, M> {
    pub(crate) const fn new(numbers: M) -> Self {
        const { check_size(N) }
        Self {
            slots: [const { Slot::new() }; REQUESTS],
            numbers,
        }
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Slot> {
        self.slots.get(at)
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

// Sums over all slots. They do not depend on the size of requests, and are not inlined, as the compiler would unroll
// them.

/// Frames in requests of these roles that the host has or is to have.
#[inline(never)]
pub(crate) fn under_way(slots: &[Slot], roles: Roles) -> u64 {
    slots
        .iter()
        .filter(|slot| {
            matches!(slot.phase, Phase::Ready | Phase::Sent) && slot.role.is_among(roles)
        })
        .map(|slot| slot.len() as u64)
        .sum()
}

/// Requests of these roles that have not ended.
#[inline(never)]
pub(crate) fn in_use(slots: &[Slot], roles: Roles) -> usize {
    let used = |slot: &&Slot| slot.phase != Phase::Free && slot.role.is_among(roles);
    slots.iter().filter(used).count()
}

/// Frames that the host has let go of and that have not been handed out yet.
#[inline(never)]
pub(crate) fn to_be_freed(slots: &[Slot]) -> u64 {
    slots
        .iter()
        .filter(|slot| slot.phase == Phase::Done && slot.role.is_among(Roles::RESIZING))
        .map(|slot| slot.len() as u64)
        .sum()
}

/// Pairs of exchanges that have ended and wait to be taken, with this outcome or with any.
#[inline(never)]
pub(crate) fn settled(slots: &[Slot], outcome: Option<Outcome>) -> u64 {
    slots
        .iter()
        .filter(|slot| slot.is_settled() && outcome.is_none_or(|of| of == slot.outcome))
        .map(|slot| (slot.len() - slot.handed_out) as u64)
        .sum()
}

/// When the oldest request that has no answer was sent.
#[inline(never)]
pub(crate) fn oldest_sent(slots: &[Slot]) -> Option<u64> {
    slots
        .iter()
        .filter(|slot| slot.phase == Phase::Sent)
        .map(|slot| slot.sent_at)
        .min()
}

impl<const N: usize, M: BorrowMut<RequestMemory<N>>> Requests<N, M> {
    /// Adds a frame; `false` when the request is full.
    pub(crate) fn push(&mut self, at: usize, frame: Pfn) -> bool {
        let slot = &mut self.slots[at];
        let numbers: &mut RequestMemory<N> = self.numbers.borrow_mut();
        match (numbers[at].get_mut(slot.len), u32::try_from(frame.get())) {
            (Some(place), Ok(number)) => {
                *place = number;
                slot.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes the last frame out again.
    pub(crate) fn pop(&mut self, at: usize) {
        self.slots[at].len = self.slots[at].len.saturating_sub(1);
    }

    pub(crate) fn frame(&self, at: usize, n: usize) -> Pfn {
        Pfn::new(u64::from(self.pfns(at)[n]))
    }

    pub(crate) fn pfns(&self, at: usize) -> &[u32] {
        let numbers: &RequestMemory<N> = self.numbers.borrow();
        &numbers[at][..self.slots[at].len]
    }
}

impl<const N: usize, M> Index<usize> for Requests<N, M> {
    type Output = Slot;

    fn index(&self, at: usize) -> &Slot {
        &self.slots[at]
    }
}

impl<const N: usize, M> IndexMut<usize> for Requests<N, M> {
    fn index_mut(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }
}

/// A caller's buffer for one request's frame numbers, ascending.
#[derive(Debug, Clone, Default)]
pub struct Message<const N: usize = MAX_PFNS> {
    pfns: ArrayVec<u32, N>,
}

impl<const N: usize> Message<N> {
    /// An empty buffer.
    pub const fn new() -> Self {
        const { check_size(N) }
        Self {
            pfns: ArrayVec::new_const(),
        }
    }

    /// Takes the numbers over, sorted: devices that join neighbours look at arrival order only.
    pub(crate) fn fill(&mut self, pfns: &[u32]) {
        self.pfns.clear();
        self.pfns.extend(pfns.iter().copied().take(N));
        self.pfns.sort_unstable();
    }

    /// Adds a number, not yet in its place; `false` when the message is full.
    pub(crate) fn push(&mut self, frame: Pfn) -> bool {
        u32::try_from(frame.get()).is_ok_and(|number| self.pfns.try_push(number).is_ok())
    }

    pub(crate) fn clear(&mut self) {
        self.pfns.clear();
    }

    pub(crate) fn sort(&mut self) {
        self.pfns.sort_unstable();
    }

    /// The frame numbers.
    pub fn pfns(&self) -> &[u32] {
        &self.pfns
    }

    /// The frames.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Pfn> + '_ {
        self.pfns()
            .iter()
            .map(|&number| Pfn::new(u64::from(number)))
    }

    /// Writes the numbers as the device reads them, little-endian, as far as they fit, and gives how many bytes that
    /// is: four for each number.
    pub fn encode(&self, bytes: &mut [u8]) -> usize {
        let (places, _) = bytes.as_chunks_mut::<4>();
        for (place, number) in places.iter_mut().zip(self.pfns()) {
            *place = number.to_le_bytes();
        }
        places.len().min(self.pfns.len()) * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;

    fn never_overrun<const N: usize>() {
        let mut requests = Requests::<N, _>::new(Box::new([[0; N]; REQUESTS]));
        for at in 0..REQUESTS {
            requests[at].begin(Role::Inflate, Phase::Ready);
            for number in 0..5000 {
                assert_eq!(requests.push(at, Pfn::new(number)), number < N as u64);
            }
            assert_eq!(requests[at].len(), N);
        }
        // One number for each frame, four bytes for each number; nothing is written behind the buffer's end.
        let mut message = Box::new(Message::<N>::new());
        let mut bytes = vec![0xee; 4 * LARGE_PFNS];
        for at in 0..REQUESTS {
            message.fill(requests.pfns(at));
            assert_eq!(message.encode(&mut bytes), 4 * N);
            assert!(bytes[4 * N..].iter().all(|&byte| byte == 0xee));
        }
        assert_eq!(message.encode(&mut bytes[..4 * N - 1]), 4 * N - 4);
        message.fill(&vec![1; N + 1]);
        assert_eq!(message.pfns().len(), N);
        // What a 32-bit number cannot name is not cut short.
        requests[0].release();
        assert!(!requests.push(0, Pfn::new(1 << 32)));
    }

    #[test]
    fn pitfall_20_request_is_never_overrun() {
        never_overrun::<1>();
        never_overrun::<100>();
        never_overrun::<MAX_PFNS>();
        never_overrun::<LARGE_PFNS>();
    }

    #[test]
    fn pitfall_32_message_bytes() {
        let mut message = Message::<MAX_PFNS>::new();
        message.fill(&[0x0a0b_0c0d, 1]);
        let mut bytes = [0xff; MAX_PFNS * 4];
        assert_eq!(message.encode(&mut bytes), 8);
        assert_eq!(&bytes[..9], &[1, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a, 0xff]);
    }

    #[test]
    fn a_large_message_ascends_whatever_came() {
        let mut requests = Requests::<LARGE_PFNS, _>::new(Box::new([[0; LARGE_PFNS]; REQUESTS]));
        requests[7].begin(Role::Deflate, Phase::Ready);
        // 2657 has no factor in common with 4096: each number once, in no order.
        for number in 0..LARGE_PFNS as u64 {
            assert!(requests.push(7, Pfn::new(number * 2657 % 4096)));
        }
        let mut message = Box::new(Message::<LARGE_PFNS>::new());
        message.fill(requests.pfns(7));
        assert!(message.pfns().iter().copied().eq(0..LARGE_PFNS as u32));
        // The order of arrival is kept: in exchanges it says who is whose partner.
        assert_eq!(requests.frame(7, 1), Pfn::new(2657));
    }
}
