//! A balloon driver without a memory manager: sends what it is told to.
#![allow(dead_code, unsafe_code)]

pub mod guest;

use std::time::{Duration, Instant};

use dirigible_frames::{FrameContents, Pfn, Platform};
use dirigible_hosted::{
    BalloonOptions, HostBalloon, HostedHal, HostedMachine, InProcessTransport, MachineBuilder, Mode,
};
use virtio_drivers::{
    Error,
    queue::VirtQueue,
    transport::{DeviceStatus, Transport},
};

/// Number of the inflate queue.
pub const INFLATE: u16 = 0;
/// Number of the deflate queue.
pub const DEFLATE: u16 = 1;
/// Number of the statistics queue.
pub const STATS: u16 = 2;

/// Interrupt status: buffers were used.
pub const QUEUE_INTERRUPT: u32 = 1;
/// Interrupt status: the configuration changed.
pub const CONFIG_INTERRUPT: u32 = 2;

type Queue = VirtQueue<HostedHal, 16>;

/// The driver. Its buffers live on the heap, so the HAL copies them into guest memory and back.
pub struct RawDriver {
    transport: InProcessTransport,
    queues: Vec<Queue>,
    /// Longest wait for an answer, in the machine's time.
    pub patience: Duration,
}

impl RawDriver {
    /// Takes the device over.
    pub fn new(balloon: &HostBalloon) -> Self {
        let mut transport = balloon.transport().expect("no driver has the device");
        let features = transport.read_device_features();
        transport.set_status(DeviceStatus::empty());
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        transport.write_driver_features(features);
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        assert_eq!(transport.get_status(), status);
        let mut queues = Vec::new();
        for queue in 0..3 {
            if transport.max_queue_size(queue) > 0 {
                queues.push(Queue::new(&mut transport, queue, false, false).unwrap());
            }
        }
        transport.finish_init();
        Self {
            transport,
            queues,
            patience: Duration::from_secs(5),
        }
    }

    /// Sends one request and waits for the answer.
    pub fn send(
        &mut self,
        platform: &impl Platform,
        queue: u16,
        pfns: &[u32],
    ) -> Result<(), Error> {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.send_bytes(platform, queue, &bytes)
    }

    /// Sends one request of any bytes and waits for the answer.
    pub fn send_bytes(
        &mut self,
        platform: &impl Platform,
        number: u16,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let queue = &mut self.queues[usize::from(number)];
        // SAFETY: `bytes` is borrowed until the request is popped; if the device never answers, what it may still read
        // is the HAL's copy.
        let token = unsafe { queue.add(&[bytes], &mut []) }?;
        self.transport.notify(number);
        let deadline = platform.now() + self.patience.as_nanos() as u64;
        while !queue.can_pop() {
            if platform.now() > deadline {
                return Err(Error::NotReady);
            }
            platform.relax();
        }
        // SAFETY: the buffer that `token` was given for.
        unsafe { queue.pop_used(token, &[bytes], &mut []) }.map(drop)
    }

    /// Announces one request without waiting for it; `bytes` must live until `pop`.
    pub fn post(&mut self, number: u16, bytes: &'static [u8]) -> u16 {
        let queue = &mut self.queues[usize::from(number)];
        // SAFETY: `bytes` lives for ever and nobody writes it.
        let token = unsafe { queue.add(&[bytes], &mut []) }.unwrap();
        self.transport.notify(number);
        token
    }

    /// The id of the next answer.
    pub fn peek(&self, number: u16) -> Option<u16> {
        self.queues[usize::from(number)].peek_used()
    }

    /// Takes the answer to a posted request.
    pub fn pop(&mut self, number: u16, token: u16, bytes: &'static [u8]) -> Result<u32, Error> {
        // SAFETY: the buffer that `post` gave.
        unsafe { self.queues[usize::from(number)].pop_used(token, &[bytes], &mut []) }
    }

    /// Tells the device that it wants no interrupts from a queue, or wants them again.
    pub fn want_interrupts(&mut self, number: u16, wanted: bool) {
        self.queues[usize::from(number)].set_dev_notify(wanted);
    }

    /// Reads and clears the interrupt status.
    pub fn acknowledge(&mut self) -> u32 {
        self.transport.ack_interrupt().bits()
    }

    /// The target that the host set.
    pub fn target(&self) -> u32 {
        self.transport
            .read_consistent(|| self.transport.read_config_space(0))
            .unwrap()
    }

    /// Tells the host how large the balloon is.
    pub fn write_actual(&mut self, frames: u32) {
        self.transport.write_config_space(4, frames).unwrap();
    }

    /// The transport, for what the driver does not do.
    pub fn transport(&mut self) -> &mut InProcessTransport {
        &mut self.transport
    }
}

/// A machine with one balloon.
pub fn machine(mib: u64, mode: Mode, options: BalloonOptions) -> HostedMachine {
    MachineBuilder::new(mib << 20)
        .cpus(4)
        .mode(mode)
        .balloon(options)
        .build()
        .unwrap()
}

/// The machine's lowest managed frame.
pub fn first_frame(machine: &HostedMachine) -> u64 {
    machine.ram().layout().managed()[0].start.get()
}

/// `count` managed frames, `step` apart.
pub fn frames(machine: &HostedMachine, count: usize, step: u64) -> Vec<u32> {
    let first = first_frame(machine);
    (0..count as u64)
        .map(|index| (first + index * step) as u32)
        .collect()
}

/// The same numbers in an order that is the same each time.
pub fn shuffled(mut numbers: Vec<u32>) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for index in (1..numbers.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        numbers.swap(index, (state >> 33) as usize % (index + 1));
    }
    numbers
}

/// Writes the frame's number into all its lines.
pub fn stamp(machine: &HostedMachine, frame: u32) {
    machine
        .platform()
        .write_lines(Pfn::new(frame.into()), &[u64::from(frame) << 32 | 1; 64]);
}

/// What stands in all lines of the frame, if it is the same everywhere.
pub fn stamp_of(machine: &HostedMachine, frame: u32) -> Option<u64> {
    let mut lines = [0; 64];
    machine
        .platform()
        .read_lines(Pfn::new(frame.into()), &mut lines);
    lines
        .iter()
        .all(|&line| line == lines[0])
        .then_some(lines[0])
}

/// Waits in real time until `done`, a minute at most.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited a minute for {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
