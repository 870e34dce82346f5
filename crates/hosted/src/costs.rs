//! What things cost on the virtual clock of a deterministic machine, in nanoseconds.
//!
//! The prices are orders of magnitude of real machines (native x86-64, guests under KVM), not a claim about any one of
//! them. They decide when things happen in a run (how much load runs while a request is with the host, how long a
//! compaction takes), and they are the same for every policy, so no column profits from them.

use dirigible_frames::Cost;

/// Entry to the kernel, look-up, page-table walk and entry, return: a minor fault of Linux without the zeroing takes
/// 0.5 µs (0.25 hardware, the rest book-keeping).
const FAULT: u64 = 500;
/// Zeroing or filling 4 KiB that are not in the cache, at about 8 GB/s. `rep stosq` in random order over 1 GiB of 4 KiB
/// host pages measures 0.8 to 1.0 µs of CPU time on the machine this was written on, with both cores busy.
const FILL_FRAME: u64 = 500;
/// Taking one frame off a list: an atomic and a lock shared with few, "isolate about 100 ns".
const ISOLATE_FRAME: u64 = 100;
/// Unmap, flush, copy 4 KiB, map: "migrate one anonymous page 1 to 2 µs". The copy alone, measured as above: 1.3 µs.
const MOVE_FRAME: u64 = 1_500;
/// Reading a ledger and an index word that are seldom in the cache.
const EXAMINE_BLOCK: u64 = 100;
/// A request to the host: exit, wake-up of the device's thread, interrupt, entry; 2 to 10 µs.
const HOST_REQUEST: u64 = 5_000;
/// One page frame number of a request: discarding 4 KiB, or giving it back. Measured on the hosted machine by
/// `examples/balloon_speed.rs`: 140 ns (adjacent) to 450 ns (scattered, `process_madvise`) on an idle host, and up to
/// 770 ns on a busy one.
const HOST_REQUEST_FRAME: u64 = 500;
/// Dropping a clean page of the page cache: isolate, unlink, free.
const RECLAIM_FRAME: u64 = 300;
/// One look at something that is not ready yet: what [`Platform::relax`](dirigible_frames::Platform::relax) lets pass.
pub const RELAX: u64 = 10_000;

/// The price of `cost`; kinds that are not in the table are free.
#[inline]
pub const fn price(cost: Cost) -> u64 {
    match cost {
        Cost::Fault => FAULT,
        Cost::FillFrame => FILL_FRAME,
        Cost::Isolate(frames) => ISOLATE_FRAME * frames as u64,
        Cost::MoveFrame(frames) => MOVE_FRAME * frames as u64,
        Cost::ExamineBlock => EXAMINE_BLOCK,
        Cost::HostRequest(frames) => HOST_REQUEST + HOST_REQUEST_FRAME * frames as u64,
        Cost::Reclaim(frames) => RECLAIM_FRAME * frames as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_costs_less_than_its_parts() {
        assert!(price(Cost::HostRequest(256)) < 256 * price(Cost::HostRequest(1)));
        assert_eq!(price(Cost::MoveFrame(512)), 512 * price(Cost::MoveFrame(1)));
        assert_eq!(price(Cost::Isolate(0)), 0);
    }
}
