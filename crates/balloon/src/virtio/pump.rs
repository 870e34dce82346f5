//! Between the state machine and the device: outputs are done, answers taken, until there is neither.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use dirigible_frames::sync::{Ordering, fence};
use dirigible_frames::{Cost, Event, FRAME_SIZE, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::{InterruptStatus, Transport};

use super::VirtioBalloon;
use crate::balloon::Output;
use crate::request::Message;
use crate::stats::{Report, Tag};

/// How long the configuration space is left alone while the host has requests: not for ever, as an interrupt that says
/// that the target has changed may get lost, and somebody may watch the balloon grow.
const CONFIG_PAUSE_NS: u64 = 100_000_000;
/// Frames that go from hand to hand at once, on the stack.
pub(super) const CHUNK: usize = 256;

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// The device has interrupted: takes its answers and does what follows from them.
    ///
    /// It may be called from any thread, and from within `Transport::notify`. It takes the balloon's locks, so an
    /// interrupt handler that may have interrupted the balloon on its own CPU must leave the call to a bottom half.
    pub fn handle_interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        // Pairs with the fences in `turn` and `look_again`: whoever holds the device sees the flag after letting go, or we
        // see the device free.
        fence(Ordering::SeqCst);
        let free = self.device.try_lock().is_some();
        // Held: perhaps by ourselves, further up in `notify`. The holder looks at the rings when it has let go.
        if free {
            self.pump();
        }
    }

    /// After the device was held outside of `turn`: does what an interrupt meanwhile left to us.
    pub(super) fn look_again(&self) {
        // Pairs with the fence in `handle_interrupt`.
        fence(Ordering::SeqCst);
        if self.interrupted.load(Ordering::SeqCst) {
            self.pump();
        }
    }

    /// Does all outputs, takes all answers, until there is neither; then tells the device and the vm events of it.
    pub(super) fn pump(&self) {
        loop {
            self.turn();
            // Writing takes the device, and perhaps long.
            if !self.write_actual() {
                break;
            }
        }
        self.publish();
    }

    /// The same without telling anybody: for more than one message at a time.
    pub(super) fn turn(&self) {
        let mut message = Message::new();
        let mut stats_due = true;
        loop {
            // Pairs with the store in `handle_interrupt`.
            if self.interrupted.swap(false, Ordering::SeqCst) {
                let status = self.device.lock().acknowledge_interrupt();
                if status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
                    self.reconfigured.store(true, Ordering::SeqCst);
                }
            }
            self.do_outputs(&mut message);
            // Once per call: a device that returns the buffer at once does not keep us here.
            if stats_due && self.fill_stats() {
                stats_due = false;
            }
            if self.take_answers() {
                continue;
            }
            // Pairs with the fence in `handle_interrupt`.
            fence(Ordering::SeqCst);
            if !self.interrupted.load(Ordering::SeqCst) {
                break;
            }
        }
    }

    fn do_outputs(&self, message: &mut Message<N>) {
        loop {
            // A statement of its own: the lock is released before the output is done.
            let output = self
                .state
                .lock()
                .balloon
                .next_output(self.platform.now(), message);
            match output {
                None => break,
                Some(Output::Send { queue, request }) => {
                    self.platform
                        .charge(Cost::HostRequest(message.pfns().len() as u32));
                    let sent = self.device.lock().send(queue, request, message);
                    if sent.is_err() {
                        self.state.lock().balloon.send_failed(request);
                    }
                }
                Some(Output::Free) => self.free(message),
                Some(Output::Settled { from, to, outcome }) => {
                    self.settle.settled(from, to, outcome);
                }
                Some(Output::WriteActual(_)) => self.state.lock().unwritten = true,
            }
        }
    }

    fn free(&self, message: &Message<N>) {
        let mut frames = message.frames();
        while frames.len() > 0 {
            let chunk: ArrayVec<_, CHUNK> = frames.by_ref().take(CHUNK).collect();
            if self.frames.free_bulk(self.platform.cpu(), &chunk).is_err() {
                // Frames that were ours and cannot be freed: somebody else freed them.
                self.state.lock().balloon.damaged(chunk.len() as u64);
            }
        }
    }

    /// Takes the used rings' entries; `true` if there was one.
    fn take_answers(&self) -> bool {
        let answers = self.device.lock().answers();
        if answers.is_empty() {
            return false;
        }
        let mut state = self.state.lock();
        for &(queue, request) in &answers.requests {
            // The device's fault, counted by the balloon.
            let _ = state.balloon.complete(queue, request);
        }
        if answers.broken {
            state.balloon.protocol_broken();
        }
        true
    }

    /// Gives the device its statistics buffer when it has none; whether it did.
    fn fill_stats(&self) -> bool {
        if !self.device.lock().wants_stats() {
            return false;
        }
        let mut report = Report::new();
        report.set(Tag::MemFree, self.frames.free_frames() * FRAME_SIZE as u64);
        report.set(
            Tag::MemTotal,
            self.frames.managed_frames() * FRAME_SIZE as u64,
        );
        let sent = self.device.lock().send_stats(&report);
        if sent {
            self.state.lock().balloon.stats.stats_buffers += 1;
        }
        sent
    }

    /// Reads the target, if there is reason to.
    ///
    /// A worker that `begins` a piece of work reads it, unless the host is busy with our requests and it was read not
    /// long ago. In the middle of the work it is read only when the device has said that it is another one.
    pub(super) fn read_target(&self, begins: bool) {
        let now = self.platform.now();
        let reconfigured = self.reconfigured.swap(false, Ordering::SeqCst);
        let is_due = || {
            let state = self.state.lock();
            state.target.is_none()
                || !state.balloon.is_waiting()
                || state
                    .read_at
                    .is_none_or(|at| now >= at.saturating_add(CONFIG_PAUSE_NS))
        };
        if !(reconfigured || begins && is_due()) {
            return;
        }
        let device = self.device.lock();
        let target = device.read_target().ok();
        {
            // With the device in hand: of two readers the later stores the later value.
            let mut state = self.state.lock();
            (state.target, state.read_at) = (target, Some(now));
        }
        drop(device);
        self.look_again();
    }

    /// Tells the device the balloon's size; whether it did. Not while the host is busy with our requests, as long as it
    /// was told not long ago.
    fn write_actual(&self) -> bool {
        let now = self.platform.now();
        {
            let state = self.state.lock();
            let pauses = state.balloon.is_waiting()
                && now < state.written_at.saturating_add(CONFIG_PAUSE_NS);
            if !state.unwritten || pauses {
                return false;
            }
        }
        let mut device = self.device.lock();
        let actual = {
            // In the same way: of two writers the later writes the later value.
            let mut state = self.state.lock();
            (state.unwritten, state.written_at) = (false, now);
            state.balloon.actual()
        };
        device.write_actual(actual as u32);
        true
    }

    /// Raises the vm events by what has happened since the last call.
    fn publish(&self) {
        let mut state = self.state.lock();
        let (new, old) = (state.balloon.stats(), state.published);
        if new == old {
            return;
        }
        state.published = new;
        let cpu = self.platform.cpu();
        for (event, new, old) in [
            (Event::BalloonInflate, new.inflated, old.inflated),
            (Event::BalloonDeflate, new.deflated, old.deflated),
            (Event::BalloonMigrate, new.frames_moved, old.frames_moved),
            (Event::BalloonMessages, new.messages, old.messages),
            (
                Event::BalloonMigrateMessages,
                new.migrate_messages,
                old.migrate_messages,
            ),
            (Event::BalloonRetry, new.retries, old.retries),
        ] {
            if new > old {
                self.frames.events().add(cpu, event, new - old);
            }
        }
    }
}
