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
/// Sending a request to the host: making the descriptor, and the notification, an exit to the kernel that signals an
/// eventfd and returns; 1 to 2 µs.
const HOST_REQUEST: u64 = 2_000;
/// Writing one page frame number of a request.
const HOST_REQUEST_FRAME: u64 = 10;
/// From the notification to the driver's interrupt handler, without the work on frames, for a host like QEMU: its main
/// thread wakes up on the eventfd (5 to 50 µs, by what the host's processor was doing), takes the lock of the machine,
/// takes the request out of the queue, and answers by an interrupt (5 µs, and an exit where the guest's processor
/// runs). QEMU serves a balloon in its main thread, not in one of its own.
const HOST_ANSWER: u64 = 30_000;
/// The host's work on one page frame number of a request: discarding 4 KiB, or giving it back. Measured on the hosted
/// machine by `examples/balloon_speed.rs`: 140 ns (adjacent) to 450 ns (scattered, `process_madvise`) on an idle host,
/// and up to 770 ns on a busy one.
const HOST_ANSWER_FRAME: u64 = 500;
/// Dropping a clean page of the page cache: isolate, unlink, free.
const RECLAIM_FRAME: u64 = 300;
/// One look at something that is not ready yet: what [`Platform::relax`](dirigible_frames::Platform::relax) lets pass.
pub const RELAX: u64 = 10_000;

/// The price of `cost`: what passes on the caller's processor. A request to the host also takes the host's time, in
/// which the guest goes on ([`host_answer`]). Kinds that are not in the table are free.
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

/// How long after the notification the host answers a request of `frames` page frame numbers.
#[inline]
pub const fn host_answer(frames: usize) -> u64 {
    HOST_ANSWER + HOST_ANSWER_FRAME * frames as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_costs_less_than_its_parts() {
        assert!(price(Cost::HostRequest(256)) < 256 * price(Cost::HostRequest(1)));
        assert!(host_answer(256) < 256 * host_answer(1));
        assert_eq!(price(Cost::MoveFrame(512)), 512 * price(Cost::MoveFrame(1)));
        assert_eq!(price(Cost::Isolate(0)), 0);
    }
}
