//! The places for requests.
#![forbid(unsafe_code)]

use dirigible_frames::FRAME_SIZE;

use super::MAX_DEPTH;
use crate::{Completion, DiskError};

/// What a place holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    /// The device has the request.
    Sent(Sent),
    /// The request has ended by a reset; nobody has taken it yet.
    Ended(Completion),
}

/// A request that the device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sent {
    pub(super) token: u32,
    /// Bytes that the device may write, status included.
    pub(super) writable: u32,
    /// When the device must have answered.
    pub(super) deadline: u64,
}

impl Sent {
    pub(super) const fn new(token: u32, write: bool, frames: usize, deadline: u64) -> Self {
        let data = if write {
            0
        } else {
            (frames * FRAME_SIZE) as u32
        };
        Self {
            token,
            writable: data + 1,
            deadline,
        }
    }

    /// How the request ended; `None`: the answer is none that an honest device gives.
    pub(super) fn answered(self, length: u32, status: u8) -> Option<Completion> {
        // Not the exact length: some devices report 0, or only the data.
        if length > self.writable {
            return None;
        }
        let result = match status {
            0 => Ok(()),
            // An error, and "not supported".
            1 | 2 => Err(DiskError::Io),
            // Among others what stands there as long as no device writes it.
            _ => return None,
        };
        let token = self.token;
        Some(Completion { token, result })
    }
}

/// All places.
pub(super) struct Places {
    places: [Place; MAX_DEPTH],
    /// A bit for each place that is free.
    free: u64,
    /// A bit for each place whose request the device has.
    sent: u64,
}

const _: () = assert!(MAX_DEPTH <= 64);

impl Places {
    pub(super) const fn new(count: usize) -> Self {
        Self {
            places: [Place::Free; MAX_DEPTH],
            free: u64::MAX >> (64 - count),
            sent: 0,
        }
    }

    /// A free place.
    pub(super) fn find(&self) -> Option<usize> {
        (self.free != 0).then_some(self.free.trailing_zeros() as usize)
    }

    /// The device gets, or keeps, the request of a place.
    pub(super) fn send(&mut self, place: usize, sent: Sent) {
        self.places[place] = Place::Sent(sent);
        self.free &= !(1 << place);
        self.sent |= 1 << place;
    }

    /// Frees the place of a request that the device has answered; `None` if it does not have it.
    pub(super) fn take_sent(&mut self, place: usize) -> Option<Sent> {
        let Some(&Place::Sent(sent)) = self.places.get(place) else {
            return None;
        };
        self.places[place] = Place::Free;
        self.free |= 1 << place;
        self.sent &= !(1 << place);
        Some(sent)
    }

    /// When the first request must have been answered; `u64::MAX`: the device has none.
    pub(super) fn first_deadline(&self) -> u64 {
        let sent = self.places.iter().filter_map(|place| match place {
            Place::Sent(sent) => Some(sent.deadline),
            _ => None,
        });
        sent.min().unwrap_or(u64::MAX)
    }

    /// Ends all requests that the device has, each as `error` says of its deadline; gives how many.
    pub(super) fn end_all(&mut self, error: impl Fn(u64) -> DiskError) -> u32 {
        for place in &mut self.places {
            if let Place::Sent(Sent {
                token, deadline, ..
            }) = *place
            {
                let result = Err(error(deadline));
                *place = Place::Ended(Completion { token, result });
            }
        }
        core::mem::take(&mut self.sent).count_ones()
    }

    /// Takes a request that a reset has ended.
    pub(super) fn take_ended(&mut self) -> Option<Completion> {
        let found = self.places.iter().zip(0..).find_map(|(place, number)| {
            let Place::Ended(completion) = place else {
                return None;
            };
            Some((number, *completion))
        });
        let (number, completion): (usize, _) = found?;
        self.places[number] = Place::Free;
        self.free |= 1 << number;
        Some(completion)
    }

    /// Whether there is one.
    pub(super) fn has_ended(&self, count: usize) -> bool {
        (self.free | self.sent).count_ones() < count as u32
    }
}
