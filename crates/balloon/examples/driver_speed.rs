//! What the driver itself costs, and whether a host ever waits for it.
//!
//!     cargo run --release -p dirigible-balloon --example driver_speed -- [MiB, 512]
//!
//! First with a host that answers inside the notification and reads nothing: nanoseconds for each frame are the guest's
//! alone. Then with one in a thread of its own that works like QEMU: a fixed time for each number, under a lock that an
//! access to the configuration space has to wait for. It should never be idle.
#![allow(missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst, fence};
use std::thread;
use std::time::{Duration, Instant};

use dirigible_balloon::{
    BalloonConfig, Deflate, LARGE_PFNS, MAX_PFNS, QUEUE_SIZE, Step, VirtioBalloon,
};
use dirigible_frames::{AllocRequest, CpuId, FrameAllocator, Pfn};
use dirigible_mobility::{MovableOwner, MovePair, Outcome};
use support::host::{FakeHal, VERSION_1};
use support::{Clock, OWNER, Source, memory};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};

const CPU: CpuId = CpuId::new(0);
/// Messages in one call of the driver.
const MESSAGES: usize = 16;
/// What a host needs for one number, in nanoseconds, by queue.
const INFLATE_NS: u64 = 1200;
const DEFLATE_NS: u64 = 650;
/// How often each is measured; the best counts.
const ROUNDS: usize = 5;

/// One queue's rings.
#[derive(Default)]
struct Rings {
    descriptors: AtomicU64,
    driver: AtomicU64,
    device: AtomicU64,
    seen: AtomicU16,
}

/// The device: what both sides share.
#[derive(Default)]
struct Device {
    queues: [Rings; 5],
    target: AtomicU32,
    status: AtomicU32,
    /// Nanoseconds for each number on the two queues; 0: served inside the notification, unread.
    price: [AtomicU64; 2],
    /// QEMU's big lock.
    lock: Mutex<()>,
    interrupt: AtomicU32,
    config_accesses: AtomicU64,
}

impl Device {
    /// Takes one request and answers it; `false` when there is none.
    fn serve(&self, queue: usize) -> bool {
        let rings = &self.queues[queue];
        let driver = rings.driver.load(SeqCst);
        if driver == 0 {
            return false;
        }
        let seen = rings.seen.load(SeqCst);
        // SAFETY: the rings that the driver set up, which live until it is dropped.
        let len = unsafe {
            if (driver as *const u16).add(1).read_volatile() == seen {
                return false;
            }
            fence(SeqCst);
            let place = usize::from(seen) % QUEUE_SIZE;
            let head = (driver as *const u16).add(2 + place).read_volatile();
            let descriptor = rings.descriptors.load(SeqCst) + u64::from(head) * 16;
            let len = ((descriptor + 8) as *const u32).read_volatile();
            let used = rings.device.load(SeqCst);
            Self::work(self.price[queue].load(SeqCst) * u64::from(len / 4));
            ((used + 4 + place as u64 * 8) as *mut u32).write_volatile(u32::from(head));
            fence(SeqCst);
            ((used + 2) as *mut u16).write_volatile(seen.wrapping_add(1));
            len
        };
        rings.seen.store(seen.wrapping_add(1), SeqCst);
        len > 0
    }

    fn work(ns: u64) {
        let start = Instant::now();
        while (start.elapsed().as_nanos() as u64) < ns {
            std::hint::spin_loop();
        }
    }

    /// The host's thread: serves everything that is there, then releases the lock.
    fn run(&self, over: &AtomicBool) {
        while !over.load(SeqCst) {
            let guard = self.lock.lock().unwrap();
            for queue in 0..2 {
                while self.serve(queue) {
                    self.interrupt.fetch_or(1, SeqCst);
                }
            }
            drop(guard);
            thread::yield_now();
        }
    }

    fn is_threaded(&self) -> bool {
        self.price[0].load(SeqCst) > 0
    }

    fn config_access(&self) {
        self.config_accesses.fetch_add(1, SeqCst);
        if self.is_threaded() {
            drop(self.lock.lock().unwrap());
        }
    }
}

struct Wire(Arc<Device>);

impl Transport for Wire {
    fn device_type(&self) -> DeviceType {
        DeviceType::MemoryBalloon
    }
    fn read_device_features(&mut self) -> u64 {
        VERSION_1
    }
    fn write_driver_features(&mut self, _driver_features: u64) {}
    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        128
    }
    fn notify(&mut self, queue: u16) {
        if !self.0.is_threaded() {
            while self.0.serve(usize::from(queue)) {}
        }
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.status.load(SeqCst))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.status.store(status.bits(), SeqCst);
        if status.is_empty() {
            self.0
                .queues
                .iter()
                .for_each(|rings| rings.driver.store(0, SeqCst));
        }
    }
    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, _size: u32, descriptors: u64, driver: u64, device: u64) {
        let rings = &self.0.queues[usize::from(queue)];
        rings.descriptors.store(descriptors, SeqCst);
        rings.device.store(device, SeqCst);
        rings.seen.store(0, SeqCst);
        rings.driver.store(driver, SeqCst);
    }
    fn queue_unset(&mut self, _queue: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queues[usize::from(queue)].driver.load(SeqCst) != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.0.interrupt.swap(0, SeqCst))
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<V: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        _offset: usize,
    ) -> virtio_drivers::Result<V> {
        self.0.config_access();
        let target = self.0.target.load(SeqCst).to_le_bytes();
        V::read_from_bytes(&target).map_err(|_| virtio_drivers::Error::IoError)
    }
    fn write_config_space<V: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        _offset: usize,
        _value: V,
    ) -> virtio_drivers::Result<()> {
        self.0.config_access();
        Ok(())
    }
}

type Driver<const N: usize> = VirtioBalloon<'static, FakeHal, Wire, Clock, N>;

struct Guest<const N: usize> {
    frames: &'static FrameAllocator<'static>,
    clock: &'static Clock,
    device: Arc<Device>,
    source: Source,
    driver: Box<Driver<N>>,
    start: Instant,
}

impl<const N: usize> Guest<N> {
    /// A guest whose balloon finds `frames` frames: one frame in `nth` is free.
    fn new(frames: u64, nth: u64, deflate: Deflate) -> Self {
        let blocks = (frames / 512 + 16) * nth;
        let frames = memory(&[blocks]);
        let clock: &'static Clock = Box::leak(Box::default());
        let device = Arc::new(Device::default());
        if nth > 1 {
            let mut all = vec![Pfn::default(); frames.managed_frames() as usize];
            assert_eq!(
                frames.alloc_bulk(CPU, AllocRequest::movable(), &mut all),
                all.len()
            );
            all.retain(|frame| frame.get() % nth == 0);
            frames.free_bulk(CPU, &all).unwrap();
        }
        let config = BalloonConfig {
            deflate,
            batch: N,
            exchange_batch: N,
            ..BalloonConfig::default()
        };
        let wire = Wire(device.clone());
        let driver = VirtioBalloon::new(wire, frames, clock, OWNER, config).unwrap();
        Self {
            frames,
            clock,
            device,
            source: Source::new(frames),
            driver: Box::new(driver),
            start: Instant::now(),
        }
    }

    /// Follows the target as a balloon's worker does; how long it took.
    fn to(&self, target: u64) -> Duration {
        let start = Instant::now();
        self.device.target.store(target as u32, SeqCst);
        self.device.interrupt.fetch_or(2, SeqCst);
        loop {
            self.clock
                .now
                .store(self.start.elapsed().as_nanos() as u64, SeqCst);
            if self.device.interrupt.load(SeqCst) != 0 {
                self.driver.handle_interrupt();
            }
            match self.driver.step(&self.source, MESSAGES) {
                Step::Busy => {}
                Step::Waiting => {
                    while self.device.interrupt.load(SeqCst) == 0 {
                        thread::yield_now();
                    }
                }
                Step::Idle => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(self.driver.actual(), target);
        start.elapsed()
    }

    /// Moves all frames of the balloon once; how long isolation and exchange took.
    fn exchange(&self, count: u64) -> Duration {
        let first: Pfn = self
            .frames
            .block_start(self.frames.blocks().next().unwrap());
        let all = (0..self.frames.blocks().count() as u64 * 512).map(|at| first.plus(at));
        let held: Vec<Pfn> = all
            .filter(|&frame| self.frames.state(frame) == dirigible_frames::FrameState::Listed)
            .collect();
        assert_eq!(held.len() as u64, count);
        let mut taken = Duration::ZERO;
        for from in held.chunks(N) {
            let mut to = vec![Pfn::default(); from.len()];
            let how = dirigible_frames::BalloonPlacement::FillHoles;
            let none = dirigible_frames::Watermark::None;
            assert_eq!(self.frames.alloc_balloon(CPU, how, none, &mut to), to.len());
            let mut pairs: Vec<_> = from
                .iter()
                .zip(&to)
                .map(|(&from, &to)| MovePair::base(from, to))
                .collect();
            let start = Instant::now();
            assert!(from.iter().all(|&frame| self.driver.isolate(frame)));
            self.driver.migrate(&mut pairs);
            taken += start.elapsed();
            assert!(pairs.iter().all(|pair| pair.outcome == Outcome::Moved));
            self.frames.free_bulk(CPU, from).unwrap();
        }
        taken
    }
}

/// The least of several, as the machine may have other work.
fn best(mut measure: impl FnMut() -> [f64; 3]) -> [f64; 3] {
    let mut best = [f64::MAX; 3];
    for _ in 0..ROUNDS {
        for (best, new) in best.iter_mut().zip(measure()) {
            *best = best.min(new);
        }
    }
    best
}

fn alone<const N: usize>(frames: u64, nth: u64, deflate: Deflate) {
    let [inflate, exchange, back] = best(|| {
        let guest = Guest::<N>::new(frames, nth, deflate);
        let ns = |time: Duration| time.as_nanos() as f64 / frames as f64;
        let inflate = ns(guest.to(frames));
        let exchange = ns(guest.exchange(frames));
        [inflate, exchange, ns(guest.to(0))]
    });
    println!(
        "{N:>5} {:<8} {:<12} {inflate:>8.1} {back:>8.1} {exchange:>9.1}",
        format!("1 in {nth}"),
        format!("{deflate:?}"),
    );
}

fn together<const N: usize>(frames: u64) {
    let guest = Guest::<N>::new(frames, 2, Deflate::Heal);
    let device = guest.device.clone();
    device.price[0].store(INFLATE_NS, SeqCst);
    device.price[1].store(DEFLATE_NS, SeqCst);
    let over = Arc::new(AtomicBool::new(false));
    let thread = {
        let (device, over) = (device.clone(), over.clone());
        thread::spawn(move || device.run(&over))
    };
    let mut best = [(f64::MAX, 0); 2];
    for round in 0..2 * ROUNDS {
        device.config_accesses.store(0, SeqCst);
        let taken = guest.to(if round % 2 == 0 { frames } else { 0 });
        let ns = taken.as_nanos() as f64 / frames as f64;
        if ns < best[round % 2].0 {
            best[round % 2] = (ns, device.config_accesses.load(SeqCst));
        }
    }
    for ((ns, accesses), (what, price)) in best
        .into_iter()
        .zip([("inflate", INFLATE_NS), ("deflate", DEFLATE_NS)])
    {
        let busy = price as f64 / ns * 100.0;
        println!("{N:>5} {what:<8} {ns:>8.1} {busy:>7.1} % {accesses:>10}");
    }
    over.store(true, SeqCst);
    thread.join().unwrap();
}

fn main() {
    let mib: u64 = env::args()
        .nth(1)
        .map_or(512, |text| text.parse().expect("a number of MiB"));
    let frames = mib << 8;
    println!("ns a frame, the host answering at once\n");
    println!("batch memory   deflation     inflate  deflate  exchange");
    for deflate in [Deflate::NewestFirst, Deflate::Heal] {
        for nth in [1, 2, 16] {
            alone::<MAX_PFNS>(frames, nth, deflate);
            alone::<LARGE_PFNS>(frames, nth, deflate);
        }
    }
    println!("\nthe host in a thread, {INFLATE_NS} and {DEFLATE_NS} ns a number\n");
    println!("batch what     ns/frame  host busy   config accesses");
    together::<MAX_PFNS>(frames);
    together::<LARGE_PFNS>(frames);
}
