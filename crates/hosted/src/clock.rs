//! Time: virtual in deterministic machines, real in threaded ones.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

/// Nanoseconds since the machine began.
#[derive(Debug)]
pub struct Clock(Kind);

#[derive(Debug)]
enum Kind {
    Virtual(AtomicU64),
    Real(Instant),
}

impl Clock {
    /// A clock that stands still until it is charged or advanced.
    pub fn virtual_time() -> Self {
        Self(Kind::Virtual(AtomicU64::new(0)))
    }

    /// A clock that begins now.
    pub fn real_time() -> Self {
        Self(Kind::Real(Instant::now()))
    }

    /// Nanoseconds since the machine began.
    #[inline]
    pub fn now(&self) -> u64 {
        match &self.0 {
            // Relaxed: a number that only grows; nothing is published with it.
            Kind::Virtual(now) => now.load(Ordering::Relaxed),
            Kind::Real(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Lets `ns` of virtual time pass; real time passes by itself.
    #[inline]
    pub fn charge(&self, ns: u64) {
        if let Kind::Virtual(now) = &self.0 {
            now.fetch_add(ns, Ordering::Relaxed);
        }
    }

    /// Moves virtual time on to `ns` unless it is later already; real time cannot be moved.
    pub fn advance_to(&self, ns: u64) {
        if let Kind::Virtual(now) = &self.0 {
            now.fetch_max(ns, Ordering::Relaxed);
        }
    }
}

/// Something of a deterministic machine that has work at some moment of virtual time.
pub(crate) trait Due: Send + Sync {
    /// When; `u64::MAX`: never as it stands.
    fn due(&self) -> u64;
    /// Does what is due at `now`.
    fn run(&self, now: u64);
}

impl core::fmt::Debug for dyn Due {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "due at {}", self.due())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_never_goes_back() {
        let clock = Clock::virtual_time();
        clock.charge(10);
        clock.advance_to(5);
        assert_eq!(clock.now(), 10);
        clock.advance_to(50);
        assert_eq!(clock.now(), 50);
    }

    #[test]
    fn real_time_cannot_be_moved() {
        let clock = Clock::real_time();
        clock.charge(1 << 50);
        clock.advance_to(1 << 50);
        assert!(clock.now() < 1 << 50);
    }
}
