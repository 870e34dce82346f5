//! Messages of up to 4096 numbers, for hosts that take them.

mod support;

use dirigible_balloon::{
    Balloon, BalloonConfig, Deflate, Fault, Features, LARGE_PFNS, MAX_PFNS, Message, Output,
    REQUESTS, RequestMemory, Step,
};
use dirigible_frames::{AllocRequest, BalloonPlacement, CpuId, FrameState, Pfn, Watermark};
use dirigible_mobility::Outcome;
use support::host::{Host, Manner, VERSION_1};
use support::moves::relocate;
use support::{Guest, OWNER, all_frames, count, memory};

const CPU: CpuId = CpuId::new(0);

fn large() -> BalloonConfig {
    BalloonConfig {
        batch: LARGE_PFNS,
        exchange_batch: LARGE_PFNS,
        ..BalloonConfig::default()
    }
}

fn guest(blocks: u64, config: BalloonConfig) -> Guest<LARGE_PFNS> {
    Guest::sized(memory(&[blocks]), Host::new(), config)
}

#[test]
fn a_message_holds_4096() {
    let guest = guest(48, large());
    let free = guest.frames.free_frames();
    assert_eq!(guest.to(10_000), Step::Idle);
    assert_eq!(
        (guest.host.messages(), guest.host.inner().longest),
        (3, 4096)
    );
    assert_eq!(guest.host.size(), 10_000);
    let from: Vec<_> = guest.listed().into_iter().step_by(2).collect();
    let to = guest.targets(from.len());
    let outcomes = relocate(&guest, &from, &to);
    assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Moved));
    // 4096 and 904 frames, two messages each.
    assert_eq!(guest.host.messages(), 3 + 4);
    assert_eq!(guest.to(0), Step::Idle);
    assert_eq!(guest.host.messages(), 3 + 4 + 3);
    assert_eq!(guest.frames.free_frames(), free);
    assert_eq!(guest.host.actual(), 0);
    guest.balloon.shutdown().unwrap();
    guest.frames.verify().unwrap();
}

#[test]
fn off_unless_the_settings_say_so() {
    let guest = guest(4, BalloonConfig::default());
    guest.to(1024);
    guest.to(0);
    assert_eq!(guest.host.inner().longest, MAX_PFNS);
    assert_eq!(guest.host.messages(), 8);
}

#[test]
fn settings_out_of_range_name_the_bound() {
    let (frames, none) = (memory(&[2]), Features::empty());
    let fault = |config| Balloon::<_, MAX_PFNS>::new(frames, OWNER, none, config).err();
    for value in [0, 257, usize::MAX] {
        let config = BalloonConfig {
            batch: value,
            ..BalloonConfig::default()
        };
        let range = |setting| Some(Fault::Range { setting, most: 256 });
        assert_eq!(fault(config), range("batch"));
        let config = BalloonConfig {
            exchange_batch: value,
            ..BalloonConfig::default()
        };
        assert_eq!(fault(config.clone()), range("exchange_batch"));
        assert_eq!(
            fault(config).unwrap().to_string(),
            "balloon setting out of range: exchange_batch must be 1 to 256"
        );
    }
    let fits = |config| {
        let mut numbers = Box::new([[0; LARGE_PFNS]; dirigible_balloon::REQUESTS]);
        Balloon::<_, LARGE_PFNS, _>::in_memory(frames, OWNER, none, config, &mut *numbers).is_ok()
    };
    assert!(fits(large()));
    for value in [0, LARGE_PFNS + 1] {
        assert!(!fits(BalloonConfig {
            batch: value,
            ..large()
        }));
        assert!(!fits(BalloonConfig {
            exchange_batch: value,
            ..large()
        }));
    }
}

/// A source that gives a few frames at a time, and one that has no more: the message goes out as it is.
#[test]
fn a_source_that_runs_dry() {
    let guest = guest(8, large());
    let mut taken = vec![Pfn::default(); 4096];
    let got = guest
        .frames
        .alloc_bulk(CPU, AllocRequest::movable(), &mut taken);
    assert_eq!(got, 4096);
    guest.free(&taken[..700]);
    let step = guest.to(3000);
    assert!(matches!(step, Step::RetryAt(_)), "{step:?}");
    assert_eq!((guest.host.size(), guest.host.messages()), (700, 1));
    assert_eq!(guest.balloon.stats().retries, 1);
    guest.free(&taken[700..]);
    guest.clock.pass(200_000_000);
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!((guest.host.size(), guest.host.messages()), (3000, 2));
}

/// The target falls while a message is put together. The interrupt sends what it holds by then, and of the frames just
/// found as many follow as are still wanted.
#[test]
fn the_target_falls_in_the_middle_of_a_message() {
    let guest = guest(16, large());
    let (host, balloon) = (guest.host.clone(), guest.balloon);
    let mut asked = 0;
    guest.source.set_meanwhile(move || {
        asked += 1;
        if asked == 5 {
            host.set_target(1100);
            balloon.handle_interrupt();
        }
    });
    assert_eq!(guest.to(4000), Step::Idle);
    assert_eq!(guest.host.size(), 1100);
    assert_eq!(guest.host.inner().longest, 4 * 256);
    let back = guest
        .source
        .given_back
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(back, 5 * 256 - 1100);
    guest.frames.verify().unwrap();
}

#[test]
fn four_large_messages_at_a_time() {
    let guest = guest(80, large());
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(30_000), Step::Waiting);
    let sent = |guest: &Guest<LARGE_PFNS>| -> Vec<_> {
        let inner = guest.host.inner();
        inner
            .waiting
            .iter()
            .map(|request| request.pfns.len())
            .collect()
    };
    assert_eq!(sent(&guest), [4096; 4]);
    assert!(guest.host.answer_one());
    guest.balloon.handle_interrupt();
    assert_eq!(guest.run(), Step::Waiting);
    assert_eq!(sent(&guest), [4096; 4]);
    assert_eq!(count(guest.frames, FrameState::Listed), 4096);
    assert_eq!(count(guest.frames, FrameState::Entering), 4 * 4096);
}

/// A healing deflation finds the right frames though all of its last messages are still with the host.
#[test]
fn healing_looks_past_what_is_leaving() {
    let guest = guest(80, large());
    // Even blocks: the balloon alone. Odd ones: beside a frame that stays.
    let all = all_frames(guest.frames);
    let mut stays = vec![Pfn::default(); all.len()];
    let got = guest
        .frames
        .alloc_bulk(CPU, AllocRequest::movable(), &mut stays);
    assert_eq!(got, all.len());
    stays.sort_unstable();
    let (keep, give): (Vec<_>, Vec<_>) = stays
        .into_iter()
        .partition(|frame| frame.get() / 512 % 2 == 1 && frame.offset_in_block() == 0);
    guest.free(&give);
    guest.to(give.len() as u32);
    guest.host.set_manner(Manner::OnDemand);
    assert_eq!(guest.to(give.len() as u32 - 4 * 4096), Step::Waiting);
    let leaving = all
        .iter()
        .filter(|&&frame| guest.frames.state(frame) == FrameState::Leaving);
    assert!(leaving.clone().all(|frame| frame.get() / 512 % 2 == 0));
    assert_eq!(leaving.count(), 4 * 4096);
    while guest.host.answer_one() {}
    assert_eq!(guest.run(), Step::Idle);
    assert_eq!(guest.frames.free_blocks(), 32);
    guest.free(&keep);
}

#[test]
fn out_of_memory_gives_up_to_a_message() {
    let host = Host::offering(VERSION_1 | 1 << 2);
    for deflate in [Deflate::Heal, Deflate::NewestFirst] {
        let config = BalloonConfig {
            deflate,
            deflate_on_oom: true,
            ..large()
        };
        let host = Host(host.0.clone());
        let guest = Guest::<LARGE_PFNS>::sized(memory(&[16]), host, config);
        guest.to(6000);
        assert_eq!(guest.balloon.deflate_on_oom(1000), 1000);
        assert_eq!(guest.balloon.deflate_on_oom(usize::MAX), 4096);
        assert_eq!(guest.balloon.deflate_on_oom(usize::MAX), 904);
        guest.check();
        guest.balloon.shutdown().unwrap();
    }
}

/// Kernel stacks are small: everything on one of 128 KiB, with the test's host above it.
#[test]
fn a_kernel_stack_suffices() {
    let work = || {
        let guest = Box::new(guest(32, large()));
        guest.to(9000);
        let from = guest.listed();
        let to = guest.targets(5000);
        relocate(&guest, &from[..5000], &to);
        assert_eq!(guest.to(10), Step::Idle);
        guest.balloon.shutdown().unwrap();
    };
    std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(work)
        .unwrap()
        .join()
        .unwrap();
}

/// Others wait for the lock under which the list is taken apart.
#[test]
fn what_a_reset_gives_back_comes_in_small_pieces() {
    let frames = memory(&[4]);
    let memory = Box::new([[0; LARGE_PFNS]; REQUESTS]);
    let features = Features::empty();
    let mut balloon = Balloon::<_, LARGE_PFNS, Box<RequestMemory<LARGE_PFNS>>>::in_memory(
        frames,
        OWNER,
        features,
        large(),
        memory,
    )
    .unwrap();
    let mut taken = vec![Pfn::default(); 1000];
    let how = BalloonPlacement::Ordinary;
    frames.alloc_balloon(CPU, how, Watermark::None, &mut taken);
    balloon.set_target(1000, 2048);
    assert_eq!(balloon.begin_inflate(&taken, 0), 1000);
    let mut message = Box::new(Message::new());
    while let Some(output) = balloon.next_output(0, &mut message) {
        if let Output::Send { queue, request } = output {
            balloon.complete(queue, request).unwrap();
        }
    }
    balloon.device_reset();
    let mut pieces = Vec::new();
    while let Some(Output::Free) = balloon.next_output(0, &mut message) {
        pieces.push(message.pfns().len());
    }
    assert_eq!(pieces, [256, 256, 256, 232]);
}
