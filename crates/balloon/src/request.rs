//! Requests: a fixed number of slots, each with frame numbers of its own.
#![forbid(unsafe_code)]

use dirigible_frames::{FRAME_SIZE, Pfn};
use dirigible_mobility::Outcome;

/// The most frame numbers in one request; Firecracker drops longer ones without an answer.
pub const MAX_PFNS: usize = 256;
/// How many requests can exist at once; a queue of 16 takes them all.
pub const REQUESTS: usize = 8;
/// How many of them inflation and deflation may use; the rest is kept for exchanges, two for each.
pub(crate) const MAX_PLAIN: usize = 4;

// A virtio balloon counts in 4 KiB units; with frames of another size each would need several numbers.
const _: () = assert!(FRAME_SIZE == 4096);

/// Names a request from [`Output::Send`](crate::Output::Send) to its completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct RequestId(u8);

impl RequestId {
    /// The request with index `index`. Any number may be asked about: one that names no request is an error of the
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
    /// The new frames of an exchange; the slot of the old ones.
    ExchangeIn(u8),
    /// The old frames of an exchange; the slot of the new ones.
    ExchangeOut(u8),
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
    /// Exchanges: somebody waits to fetch the answer; without, the pairs are settled through outputs.
    pub(crate) attended: bool,
    /// When it was sent.
    pub(crate) sent_at: u64,
    /// Exchanges: how it ended.
    pub(crate) outcome: Outcome,
    /// Pairs of a finished exchange that have been handed out.
    pub(crate) handed_out: usize,
    len: usize,
    /// In the order in which they came: those of an exchange stand opposite their partners.
    pfns: [u32; MAX_PFNS],
}

impl Slot {
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Free,
            role: Role::Inflate,
            attended: false,
            sent_at: 0,
            outcome: Outcome::Todo,
            handed_out: 0,
            len: 0,
            pfns: [0; MAX_PFNS],
        }
    }

    pub(crate) fn begin(&mut self, role: Role, phase: Phase) {
        debug_assert!(self.phase == Phase::Free);
        self.phase = phase;
        self.role = role;
        self.attended = false;
        self.outcome = Outcome::Todo;
        self.handed_out = 0;
        self.len = 0;
    }

    pub(crate) fn release(&mut self) {
        self.phase = Phase::Free;
        self.len = 0;
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Adds a frame; `false` when the request is full.
    pub(crate) fn push(&mut self, frame: Pfn) -> bool {
        match (self.pfns.get_mut(self.len), u32::try_from(frame.get())) {
            (Some(place), Ok(number)) => {
                *place = number;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes the last frame out again.
    pub(crate) fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
    }

    pub(crate) fn frame(&self, at: usize) -> Pfn {
        Pfn::new(u64::from(self.pfns[at]))
    }

    pub(crate) fn pfns(&self) -> &[u32] {
        &self.pfns[..self.len]
    }
}

/// A caller's buffer for one request's frame numbers, ascending.
#[derive(Debug, Clone)]
pub struct Message {
    len: usize,
    pfns: [u32; MAX_PFNS],
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

impl Message {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self {
            len: 0,
            pfns: [0; MAX_PFNS],
        }
    }

    /// Takes the numbers over, sorted: devices that join neighbours look at arrival order only.
    pub(crate) fn fill(&mut self, pfns: &[u32]) {
        self.len = pfns.len().min(MAX_PFNS);
        self.pfns[..self.len].copy_from_slice(&pfns[..self.len]);
        self.pfns[..self.len].sort_unstable();
    }

    /// The frame numbers.
    pub fn pfns(&self) -> &[u32] {
        &self.pfns[..self.len]
    }

    /// The frames.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Pfn> + '_ {
        self.pfns()
            .iter()
            .map(|&number| Pfn::new(u64::from(number)))
    }

    /// Writes the numbers as the device reads them, little-endian, and gives how many bytes that is.
    pub fn encode(&self, bytes: &mut [u8; MAX_PFNS * 4]) -> usize {
        for (place, number) in bytes.chunks_exact_mut(4).zip(self.pfns()) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        self.len * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_20_request_is_never_overrun() {
        let mut slot = Slot::new();
        slot.begin(Role::Inflate, Phase::Ready);
        for number in 0..1000 {
            assert_eq!(slot.push(Pfn::new(number)), number < MAX_PFNS as u64);
        }
        assert_eq!(slot.len(), MAX_PFNS);
        // One number for each frame, four bytes for each number.
        let mut message = Message::new();
        message.fill(slot.pfns());
        assert_eq!(message.encode(&mut [0; MAX_PFNS * 4]), 1024);
        // What a 32-bit number cannot name is not cut short.
        slot.release();
        assert!(!slot.push(Pfn::new(1 << 32)));
    }

    #[test]
    fn pitfall_32_message_bytes() {
        let mut message = Message::new();
        message.fill(&[0x0a0b_0c0d, 1]);
        let mut bytes = [0xff; MAX_PFNS * 4];
        assert_eq!(message.encode(&mut bytes), 8);
        assert_eq!(&bytes[..8], &[1, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
    }
}
