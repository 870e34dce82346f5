//! Drivers that put anything at all into their rings: the device does not panic, does not hang, keeps its books, and
//! leaves everybody else's memory alone.
#![allow(missing_docs)]

mod support;

use dirigible_frames::{FrameContents, Pfn, Platform};
use dirigible_hosted::{AnswerTime, BalloonOptions, HostedMachine, Mode, features};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::*;
use virtio_drivers::transport::{DeviceStatus, Transport};

/// Guest memory: small, so that random addresses often hit something.
const MIB: u64 = 16;

#[derive(Clone, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// What the driver does.
#[derive(Clone, Debug)]
struct Attack {
    size: u16,
    /// Where the rings lie, in bytes from the first managed frame: descriptors, available, used.
    rings: [u64; 3],
    descriptors: Vec<Descriptor>,
    heads: Vec<u16>,
    available: u16,
    queue: u16,
    kicks: u8,
    payload: Vec<u32>,
}

/// Addresses that make sense, nearly make sense, and make none.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..4096).prop_map(|offset| (2 << 20) + 0x8000 + offset * 4),
        2 => 0u64..(MIB << 20) + 8192,
        1 => any::<u64>(),
        1 => (0u64..64).prop_map(|below| u64::MAX - below),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..2048, 2 => (0u32..512).prop_map(|words| words * 4), 1 => any::<u32>()]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let flags = prop_oneof![6 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![6 => 0u16..16, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

fn ring() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0u64..8).prop_map(|page| page * 4096), 1 => 0u64..1 << 16, 1 => any::<u64>()]
}

fn pfn() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 500u32..(MIB << 8) as u32 + 4, 1 => any::<u32>()]
}

fn attack() -> impl Strategy<Value = Attack> {
    let size = prop_oneof![6 => Just(16u16), 1 => any::<u16>(), 1 => 0u16..200];
    let heads = prop::collection::vec(prop_oneof![6 => 0u16..16, 1 => any::<u16>()], 16);
    let available = prop_oneof![6 => 0u16..18, 1 => any::<u16>()];
    (
        size,
        [ring(), ring(), ring()],
        prop::collection::vec(descriptor(), 16),
        heads,
        available,
        0u16..5,
        1u8..4,
        prop::collection::vec(pfn(), 0..600),
    )
        .prop_map(
            |(size, rings, descriptors, heads, available, queue, kicks, payload)| Attack {
                size,
                rings,
                descriptors,
                heads,
                available,
                queue,
                kicks,
                payload,
            },
        )
}

/// Writes bytes at `offset` from the first managed frame, as far as that is memory.
fn poke(machine: &HostedMachine, offset: u64, bytes: &[u8]) {
    let first = Pfn::new(first_frame(machine)).address();
    for (position, &byte) in (offset..).zip(bytes) {
        let address = first.saturating_add(position);
        if address >= MIB << 20 {
            return;
        }
        let (frame, index) = (Pfn::containing(address), (address as usize & 4095) / 8);
        let shift = (address & 7) * 8;
        let word = machine.platform().read_word(frame, index) & !(0xff << shift);
        machine
            .platform()
            .write_word(frame, index, word | u64::from(byte) << shift);
    }
}

/// Lays the attack out in memory.
fn prepare(machine: &HostedMachine, attack: &Attack) {
    let mut table = Vec::new();
    for descriptor in &attack.descriptors {
        table.extend(descriptor.address.to_le_bytes());
        table.extend(descriptor.length.to_le_bytes());
        table.extend(descriptor.flags.to_le_bytes());
        table.extend(descriptor.next.to_le_bytes());
    }
    let mut available = vec![0, 0];
    available.extend(attack.available.to_le_bytes());
    available.extend(attack.heads.iter().flat_map(|head| head.to_le_bytes()));
    let payload: Vec<u8> = attack
        .payload
        .iter()
        .flat_map(|pfn| pfn.to_le_bytes())
        .collect();
    poke(machine, 0x8000, &payload);
    poke(machine, attack.rings[0], &table);
    poke(machine, attack.rings[1], &available);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn any_rings_leave_the_device_standing(
        attacks in prop::collection::vec(attack(), 1..4),
        stats in any::<bool>(),
    ) {
        let features = if stats { features::STATS_VQ } else { 0 };
        let options = BalloonOptions { features, ..BalloonOptions::default() };
        let machine = machine(MIB, Mode::Deterministic, options);
        let balloon = &machine.balloons()[0];
        let metadata = machine.ram().metadata_slice().unwrap();
        metadata.fill(0x5a);
        for attack in &attacks {
            let mut transport = balloon.transport().unwrap();
            transport.write_driver_features(features | features::VERSION_1);
            prepare(&machine, attack);
            let base = Pfn::new(first_frame(&machine)).address();
            let [descriptors, available, used] =
                attack.rings.map(|offset| offset.wrapping_add(base));
            transport.queue_set(attack.queue, attack.size.into(), descriptors, available, used);
            transport.set_status(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
            for _ in 0..attack.kicks {
                transport.notify(attack.queue);
                machine.platform().relax();
                balloon.request_statistics();
            }
        }
        let counters = balloon.counters();
        prop_assert_eq!(counters.inflated, counters.deflated + counters.held_at_reset);
        prop_assert_eq!(counters.discards.frames, counters.inflated);
        prop_assert_eq!(counters.discards.failures, 0);
        prop_assert!(metadata.iter().all(|&byte| byte == 0x5a));

        // The next driver finds a device that works.
        let mut driver = RawDriver::new(balloon);
        driver.send(machine.platform(), INFLATE, &frames(&machine, 5, 1)).unwrap();
        prop_assert_eq!(balloon.held_frames(), 5);
    }
}

/// A driver that announces more than fits into its queue is cut off, and told so.
#[test]
fn an_impossible_available_index_needs_a_reset() {
    let machine = machine(MIB, Mode::Deterministic, BalloonOptions::default());
    let balloon = &machine.balloons()[0];
    let mut transport = balloon.transport().unwrap();
    transport.write_driver_features(features::VERSION_1);
    let base = Pfn::new(first_frame(&machine)).address();
    transport.queue_set(INFLATE, 16, base, base + 4096, base + 8192);
    transport.set_status(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
    poke(&machine, 4096, &[0, 0, 17, 0]);
    transport.notify(INFLATE);
    assert!(balloon.needs_reset());
    assert_eq!(balloon.counters().errors.rings, 1);
    assert!(transport.ack_interrupt().bits() & CONFIG_INTERRUPT != 0);
    drop(transport);
    assert!(!balloon.needs_reset());
}

/// A driver that gives the same request again and again, while the host takes its time, is cut off: the device does not
/// remember more than the ring has entries.
#[test]
fn more_unanswered_requests_than_the_ring_has_entries_need_a_reset() {
    let options = BalloonOptions {
        answer: AnswerTime::After(1_000_000_000),
        ..BalloonOptions::default()
    };
    let machine = machine(MIB, Mode::Deterministic, options);
    let balloon = &machine.balloons()[0];
    let mut transport = balloon.transport().unwrap();
    transport.write_driver_features(features::VERSION_1);
    let base = Pfn::new(first_frame(&machine)).address();
    transport.queue_set(INFLATE, 16, base, base + 4096, base + 8192);
    transport.set_status(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
    poke(&machine, 4096, &[0, 0, 16, 0]);
    transport.notify(INFLATE);
    assert!(!balloon.needs_reset());
    assert_eq!(balloon.counters().inflate_messages, 16);
    poke(&machine, 4096, &[0, 0, 17, 0]);
    transport.notify(INFLATE);
    assert!(balloon.needs_reset());
    assert_eq!(balloon.counters().errors.rings, 1);
}

/// A request that takes the very frames in which the queue lies: the ring is gone, the device is not.
#[test]
fn a_driver_that_inflates_its_own_rings_harms_itself_only() {
    // Answered before the device looks at the rings again.
    let options = BalloonOptions {
        answer: AnswerTime::After(0),
        ..BalloonOptions::default()
    };
    let machine = machine(MIB, Mode::Deterministic, options);
    let balloon = &machine.balloons()[0];
    let mut transport = balloon.transport().unwrap();
    transport.write_driver_features(features::VERSION_1);
    let first = first_frame(&machine);
    let base = Pfn::new(first).address();
    transport.queue_set(INFLATE, 16, base, base + 4096, base + 8192);
    transport.set_status(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
    let request = Attack {
        size: 16,
        rings: [0, 4096, 8192],
        descriptors: vec![Descriptor {
            address: base + 0x8000,
            length: 16,
            flags: 0,
            next: 0,
        }],
        heads: vec![0],
        available: 1,
        queue: INFLATE,
        kicks: 1,
        payload: (first as u32..).take(4).collect(),
    };
    prepare(&machine, &request);
    transport.notify(INFLATE);
    assert_eq!(balloon.held_frames(), 4);
    // The used ring was discarded, then written: the index is there.
    assert_eq!(
        machine.platform().read_word(Pfn::new(first + 2), 0) >> 16 & 0xffff,
        1
    );
    transport.notify(INFLATE);
    drop(transport);
    assert_eq!(balloon.held_frames(), 0);
}
