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
/// Looking at one frame: its state word, its page-table entry or its links, half of them not in the cache.
const SCAN_FRAME: u64 = 50;
/// Copying 4 KiB between a file's page and a program, both mostly in the cache: at about 14 GB/s.
const COPY_FRAME: u64 = 300;
/// A request to a disk: the block layer's work, the notification (an exit, as for [`HOST_REQUEST`]) and the share of an
/// interrupt.
const DISK_REQUEST: u64 = 2_000;
/// One frame of it: descriptor, and its page's locks and marks on both ways.
const DISK_REQUEST_FRAME: u64 = 50;
/// How many requests a disk works on at a time; more wait inside it. The least that drives of today have.
pub const DISK_DEPTH: usize = 32;
/// What a disk needs for a request beside the transfer, with others at the same time: 100 µs, a virtual disk on flash
/// memory.
const DISK_LATENCY: u64 = 100_000;
/// What a disk needs to transfer 1024 bytes, one request after the other: about 500 MB/s, a SATA drive or the usual
/// quota of a cloud's disk.
const DISK_TRANSFER_KIB: u64 = 2_048;
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
        Cost::Scan(frames) => SCAN_FRAME * frames as u64,
        Cost::CopyFrame(frames) => COPY_FRAME * frames as u64,
        Cost::DiskRequest(frames) => DISK_REQUEST + DISK_REQUEST_FRAME * frames as u64,
        _ => 0,
    }
}

/// How long after the notification the host answers a request of `frames` page frame numbers.
#[inline]
pub const fn host_answer(frames: usize) -> u64 {
    HOST_ANSWER + HOST_ANSWER_FRAME * frames as u64
}

/// How long after a disk has begun a request its transfer can begin, at `speed` thousandths (not 0) of the usual speed.
///
/// A disk begins up to [`DISK_DEPTH`] requests at a time, in the order in which they come. The transfer follows when
/// those of all requests begun before are over, and takes [`disk_transfer`]; then the request is answered.
#[inline]
pub const fn disk_latency(speed: u32) -> u64 {
    scaled(DISK_LATENCY, speed)
}

/// How long a disk transfers `bytes` bytes, at `speed` thousandths (not 0) of the usual speed.
#[inline]
pub const fn disk_transfer(bytes: u64, speed: u32) -> u64 {
    scaled(bytes.saturating_mul(DISK_TRANSFER_KIB) / 1024, speed)
}

/// `ns` at `speed` thousandths of the speed.
const fn scaled(ns: u64, speed: u32) -> u64 {
    ns.saturating_mul(1000) / speed as u64
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

    #[test]
    fn a_slow_disk_takes_longer_for_all_of_a_request() {
        assert_eq!(disk_latency(1000), 100_000);
        assert_eq!(disk_latency(100), 10 * disk_latency(1000));
        assert_eq!(disk_transfer(4096, 1000), 8_192);
        assert_eq!(disk_transfer(4096, 100), 81_920);
        assert!(disk_transfer(u64::MAX, 1) > u64::MAX / 2);
        assert!(disk_latency(u32::MAX) < 100);
    }
}
