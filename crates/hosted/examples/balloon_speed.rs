//! How fast the balloon device takes memory and gives it back: MiB/s and ns a frame, by order of the frames and by what
//! backs guest memory.
//!
//!     cargo run --release -p dirigible-hosted --example balloon_speed -- [MiB, 1024] [frames a request, 256]
#![allow(missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{env, error::Error, process::ExitCode, time::Instant};

use dirigible_hosted::{
    Backing, BalloonOptions, DiscardMethod, HostFacts, HostedMachine, MachineBuilder, Mode,
};
use support::{DEFLATE, INFLATE, RawDriver, first_frame, shuffled};

/// Frames to be ballooned, in the order in which they are sent.
fn in_order(machine: &HostedMachine, frames: u32, order: &str) -> Vec<u32> {
    let first = first_frame(machine) as u32;
    let ascending = first..first + frames;
    match order {
        "ascending" => ascending.collect(),
        "every second" => (0..frames / 2).map(|index| first + 2 * index).collect(),
        "blocks shuffled" => {
            let blocks = shuffled((0..frames / 512).collect());
            blocks
                .iter()
                .flat_map(|block| (0..512).map(move |frame| first + block * 512 + frame))
                .collect()
        }
        _ => shuffled(ascending.collect()),
    }
}

/// Sends all frames on a queue; nanoseconds for each.
fn send(
    machine: &HostedMachine,
    driver: &mut RawDriver,
    queue: u16,
    frames: &[u32],
    batch: usize,
) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    for request in frames.chunks(batch) {
        driver.send(machine.platform(), queue, request)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / frames.len() as f64)
}

fn measure(
    mib: u64,
    batch: usize,
    mode: Mode,
    backing: Backing,
    discard: DiscardMethod,
    order: &str,
) -> Result<(), Box<dyn Error>> {
    // Room for the machine's own reserved part.
    let machine = MachineBuilder::new((mib + mib / 64 + 64) << 20)
        .mode(mode)
        .backing(backing)
        .balloon(BalloonOptions {
            discard,
            ..BalloonOptions::default()
        })
        .build()?;
    machine.ram().touch_all();
    let before = machine.ram().resident_frames()?;
    let mut driver = RawDriver::new(&machine.balloons()[0]);
    let frames = in_order(&machine, (mib << 8) as u32, order);
    let inflate = send(&machine, &mut driver, INFLATE, &frames, batch)?;
    let given = before - machine.ram().resident_frames()?;
    let deflate = send(&machine, &mut driver, DEFLATE, &frames, batch)?;
    let speed = |ns: f64| 1e9 / ns / 256.0;
    let discards = machine.balloons()[0].counters().discards;
    println!(
        "{:<13} {:<10} {:<8} {:<16} {:>8.0} {:>7.1} {:>9.0} {:>7.1} {:>9} {:>8}",
        format!("{mode:?}"),
        format!("{backing:?}"),
        format!("{discard:?}"),
        order,
        speed(inflate),
        inflate,
        speed(deflate),
        deflate,
        given / 256,
        discards.calls,
    );
    Ok(())
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let batch: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    if mib < 2 || batch == 0 {
        return Err("at least 2 MiB and one frame a request".into());
    }
    let facts = HostFacts::gather();
    println!("{facts:?}\n{mib} MiB, {batch} frames a request\n");
    println!(
        "{:<13} {:<10} {:<8} {:<16} {:>8} {:>7} {:>9} {:>7} {:>9} {:>8}",
        "machine",
        "backing",
        "discard",
        "order",
        "in MiB/s",
        "ns",
        "out MiB/s",
        "ns",
        "given MiB",
        "calls"
    );
    for mode in [Mode::Deterministic, Mode::Threads] {
        for backing in [Backing::BasePages, Backing::HugePages] {
            for order in ["ascending", "blocks shuffled", "every second", "shuffled"] {
                measure(mib, batch, mode, backing, DiscardMethod::Auto, order)?;
            }
        }
    }
    measure(
        mib,
        batch,
        Mode::Deterministic,
        Backing::BasePages,
        DiscardMethod::Madvise,
        "shuffled",
    )
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("balloon_speed: {error}");
            ExitCode::FAILURE
        }
    }
}
