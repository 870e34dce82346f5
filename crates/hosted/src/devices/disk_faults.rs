//! Ways in which a disk can be made to misbehave, for tests of drivers.

use core::ops::Range;

/// What the disk does instead of doing a request as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Does nothing and reports an error.
    Error,
    /// Does the first half of the request's bytes and reports an error.
    Torn,
    /// Answers so many nanoseconds later.
    Delay(u64),
    /// Never answers, and does nothing.
    Silent,
    /// The same, and takes no reset from then on.
    Deaf,
    /// Answers without touching the status byte.
    NoStatus,
    /// Does the request and answers with this status.
    Status(u8),
    /// Does the request and answers with this id.
    WrongId(u32),
    /// Does the request and says that it wrote so many bytes.
    Length(u32),
    /// Does the request and answers twice.
    Twice,
    /// Fails as it does when the rings are invalid, and waits for a reset.
    BreakDown,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskAccess {
    /// Reads the disk.
    Read,
    /// Writes the disk.
    Write,
}

/// Which requests get the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFaultPlan {
    /// What happens.
    pub fault: DiskFault,
    /// To which kind of requests; `None`: to both. Others are not counted.
    pub access: Option<DiskAccess>,
    /// The first byte of the part of the disk that is bad: requests that touch none of it are not counted.
    pub from: u64,
    /// The first byte behind that part.
    pub to: u64,
    /// Requests that are done well before it begins.
    pub skip: u64,
    /// After that, each request with a number that is a multiple of this gets it: with 1 all, with 3 the third, the
    /// sixth and so on. 0 is taken for 1.
    pub every: u64,
    /// Requests that get it; after them all are done well again.
    pub count: u64,
    /// Requests counted since it began.
    seen: u64,
}

impl DiskFaultPlan {
    /// The fault on every request from now on.
    pub const fn always(fault: DiskFault) -> Self {
        Self {
            fault,
            access: None,
            from: 0,
            to: u64::MAX,
            skip: 0,
            every: 1,
            count: u64::MAX,
            seen: 0,
        }
    }

    /// The fault on the next request only.
    pub const fn once(fault: DiskFault) -> Self {
        let mut plan = Self::always(fault);
        plan.count = 1;
        plan
    }

    /// The same, on one kind of requests only.
    pub const fn on(mut self, access: DiskAccess) -> Self {
        self.access = Some(access);
        self
    }

    /// The same, on requests that touch one of the bytes `from..to` only.
    pub const fn within(mut self, from: u64, to: u64) -> Self {
        self.from = from;
        self.to = to;
        self
    }

    /// The same, on every `every`th request.
    pub const fn every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }

    /// The same, after `skip` requests that are done well.
    pub const fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// What to do with the next request, which touches `bytes`; moves the plan on.
    pub(crate) fn next(&mut self, access: DiskAccess, bytes: &Range<u64>) -> Option<DiskFault> {
        if self.access.is_some_and(|planned| planned != access) {
            return None;
        }
        if bytes.end <= self.from || self.to <= bytes.start {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every.max(1)) {
            return None;
        }
        self.count = self.count.checked_sub(1)?;
        Some(self.fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_its_requests() {
        let plan = DiskFaultPlan::always(DiskFault::Error);
        let mut plan = plan.on(DiskAccess::Write).after(1).every(2);
        plan.count = 2;
        assert_eq!(plan.next(DiskAccess::Read, &(0..512)), None);
        let faults: Vec<_> = (0..8)
            .map(|_| plan.next(DiskAccess::Write, &(0..512)).is_some())
            .collect();
        assert_eq!(
            faults,
            [false, false, true, false, true, false, false, false]
        );
    }

    #[test]
    fn a_plan_for_a_part_of_the_disk_knows_its_borders() {
        let mut plan = DiskFaultPlan::always(DiskFault::Error).within(4096, 8192);
        let mut hits = |bytes| plan.next(DiskAccess::Read, &bytes).is_some();
        assert!(!hits(0..4096) && !hits(8192..12288));
        assert!(hits(0..4608) && hits(7680..12288) && hits(4096..8192) && hits(0..16384));
    }
}
