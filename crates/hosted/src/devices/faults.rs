//! Ways in which a balloon device can be made to misbehave, for tests of drivers.

/// What the device does instead of answering a request as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Never answers. Real devices do that, too.
    Silent,
    /// Answers twice with the same id.
    Twice,
    /// Answers with this id, whatever was asked.
    WrongId(u32),
    /// Answers so many nanoseconds later.
    Delay(u64),
    /// Fails as it does when the rings are invalid, and waits for a reset.
    BreakDown,
}

/// Which queue a request came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Frames to be taken by the host.
    Inflate,
    /// Frames to be given back.
    Deflate,
}

/// Which requests get the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// What happens.
    pub fault: Fault,
    /// On which queue; `None`: on both.
    pub queue: Option<Request>,
    /// Requests (of that queue) that are answered well before it begins.
    pub skip: u64,
    /// Requests that get it; after them all are answered well again.
    pub count: u64,
}

impl FaultPlan {
    /// The fault on every request from now on.
    pub const fn always(fault: Fault) -> Self {
        Self {
            fault,
            queue: None,
            skip: 0,
            count: u64::MAX,
        }
    }

    /// The fault on the next request only.
    pub const fn once(fault: Fault) -> Self {
        Self {
            fault,
            queue: None,
            skip: 0,
            count: 1,
        }
    }

    /// The same, on one queue only.
    pub const fn on(mut self, queue: Request) -> Self {
        self.queue = Some(queue);
        self
    }

    /// The same, after `skip` requests that are answered well.
    pub const fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// What to do with the next request; moves the plan on.
    pub(crate) fn next(&mut self, queue: Request) -> Option<Fault> {
        if self.queue.is_some_and(|planned| planned != queue) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
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
        let mut plan = FaultPlan::once(Fault::Silent).on(Request::Deflate).after(1);
        assert_eq!(plan.next(Request::Inflate), None);
        assert_eq!(plan.next(Request::Deflate), None);
        assert_eq!(plan.next(Request::Inflate), None);
        assert_eq!(plan.next(Request::Deflate), Some(Fault::Silent));
        assert_eq!(plan.next(Request::Deflate), None);
    }
}
