//! Between the state machine and the device: does outputs and takes answers until there is neither.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use dirigible_frames::sync::Ordering;
use dirigible_frames::{Cost, Event, FRAME_SIZE, Pfn, Platform};
use virtio_drivers::Hal;
use virtio_drivers::transport::{InterruptStatus, Transport};

use super::VirtioBalloon;
use super::posted::TransportWork;
use crate::balloon::Output;
use crate::request::Message;
use crate::stats::{Report, Tag};
use crate::{Fault, Queue};

/// How long the configuration space is left alone while the host has requests: not for ever, as an interrupt that says
/// that the target has changed may get lost, and somebody may watch the balloon grow.
const CONFIG_PAUSE_NS: u64 = 100_000_000;
/// Frames that go from hand to hand at once, on the stack.
pub(super) const CHUNK: usize = 256;

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// The device has interrupted: takes the line down, takes the answers and does what follows from them.
    ///
    /// It may be called from any thread, and from within `Transport::notify`. It takes the balloon's locks, so an
    /// interrupt handler that may have interrupted the balloon on its own CPU must leave the call to a bottom half.
    ///
    /// If another CPU is at the transport, the line comes down when that one is done. Where a line that stays up would
    /// interrupt without pause, the handler reads the status itself and calls
    /// [`handle_interrupt_with`](Self::handle_interrupt_with).
    pub fn handle_interrupt(&self) {
        self.posted.add(TransportWork::ACKNOWLEDGE);
        self.pump();
    }

    /// The same for a handler that has read the interrupt status and thereby taken the line down, which needs no
    /// lock. Under MSI-X the status is always empty, so the target may have changed: it is read again in the course
    /// of the work, but no more often than every 100 ms.
    pub fn handle_interrupt_with(&self, status: InterruptStatus) {
        self.note_interrupt(status);
        self.pump();
    }

    /// Does all outputs and takes all answers until there is neither; then brings the device's configuration, the vm
    /// events and the allocator's ledger up to date.
    pub(super) fn pump(&self) {
        loop {
            self.turn(TransportWork::all());
            self.ask_the_silent();
            // Writing may take long.
            if self.size_is_due() {
                self.posted.add(TransportWork::SIZE);
            }
            if self.serve(TransportWork::all()).is_empty() {
                break;
            }
        }
        self.publish();
        self.keep_ledger();
    }

    /// The first half of [`pump`](Self::pump), for more than one message at a time. At the transport it does work of
    /// `kinds` only.
    pub(super) fn turn(&self, kinds: TransportWork) {
        let mut message = Message::new();
        let mut stats_due = true;
        loop {
            self.do_outputs(&mut message);
            // Once per call: a device that returns the buffer at once does not keep us here.
            if stats_due && self.fill_stats() {
                stats_due = false;
            }
            let served = self.serve(kinds);
            // Behind `serve`: a device may answer inside the notification, others' too.
            if !self.take_answers() && served.is_empty() {
                break;
            }
        }
    }

    fn do_outputs(&self, message: &mut Message<N>) {
        while let Some(output) = self.next_output(message) {
            match output {
                Output::Send { .. } => {
                    self.platform
                        .charge(Cost::HostRequest(message.pfns().len() as u32));
                }
                Output::Free => {
                    let mut frames = message.frames();
                    while frames.len() > 0 {
                        let chunk: ArrayVec<_, CHUNK> = frames.by_ref().take(CHUNK).collect();
                        self.give_back(&chunk);
                    }
                }
                Output::WriteActual(_) => self.state.lock().unwritten = true,
            }
        }
    }

    /// The next output. A request is on its queue by then, and its bell is posted.
    fn next_output(&self, message: &mut Message<N>) -> Option<Output> {
        // Both locks: a reset comes before a request is made or after it is in its queue.
        let mut queues = self.queues.lock();
        let mut state = self.state.lock();
        let output = state.balloon.next_output(self.platform.now(), message);
        match output {
            Some(Output::Send { queue, request }) => match queues.send(queue, request, message) {
                Ok(()) => self.posted.add(TransportWork::bell(queue)),
                Err(_) => state.balloon.send_failed(request),
            },
            Some(Output::Free) => state.returning += message.pfns().len() as u64,
            _ => {}
        }
        state.note_undone();
        // Exchanges of a device that has failed are given up before they are sent.
        self.note_settled(&state);
        output
    }

    /// Gives frames to the allocator that were the balloon's and count as `returning`.
    #[inline(never)]
    pub(super) fn give_back(&self, frames: &[Pfn]) {
        self.count_as_balloon(frames);
        let freed = self.frames.free_bulk(self.platform.cpu(), frames);
        let count = frames.len() as u64;
        let mut state = self.state.lock();
        state.returning = state.returning.saturating_sub(count);
        state.given_back += count;
        if freed.is_err() {
            // Frames that were ours and cannot be freed: somebody else freed them.
            state.balloon.damaged(count);
        }
    }

    /// Takes the used rings' entries; `true` if there was one.
    fn take_answers(&self) -> bool {
        // Both locks, as in `next_output`.
        let mut queues = self.queues.lock();
        let answers = queues.answers();
        if answers.is_empty() {
            return false;
        }
        let mut state = self.state.lock();
        let mut arrived = false;
        for &(queue, request) in &answers.requests {
            // If it fits no request it is the device's fault, counted by the balloon.
            if state.balloon.complete(queue, request).is_ok() {
                state.restarts = 0;
                arrived |= queue == Queue::Inflate;
            }
        }
        if answers.broken {
            state.balloon.protocol_broken();
        }
        if arrived && state.unmovable != Some(false) {
            // New on the list, and movable in the ledger: the next look at it begins a new walk.
            state.unmovable = None;
        }
        self.note_settled(&state);
        true
    }

    /// A device that does not answer may need a reset: posts a look at its status. Not each time, as that is an exit
    /// to the host.
    fn ask_the_silent(&self) {
        let now = self.platform.now();
        let mut state = self.state.lock();
        state.balloon.tick(now);
        let is_silent = matches!(state.balloon.fault(), Some(Fault::Silent { .. }));
        if is_silent && now >= state.asked_at.saturating_add(self.config.retry_delay_ns) {
            state.asked_at = now;
            drop(state);
            self.posted.add(TransportWork::STATUS);
        }
    }

    /// Gives the device its statistics buffer when it has none; whether it did.
    fn fill_stats(&self) -> bool {
        if !self.queues.lock().wants_stats() {
            return false;
        }
        let mut report = Report::new();
        report.set(Tag::MemFree, self.frames.free_frames() * FRAME_SIZE as u64);
        report.set(
            Tag::MemTotal,
            self.frames.managed_frames() * FRAME_SIZE as u64,
        );
        let sent = self.queues.lock().send_stats(&report);
        if sent {
            self.posted.add(TransportWork::STATS);
            self.state.lock().balloon.stats.stats_buffers += 1;
        }
        sent
    }

    /// Reads the target, if there is reason to.
    ///
    /// A worker that `begins` a piece of work reads it, unless the host is busy with our requests and it was read not
    /// long ago. In the middle of the work it is read only when the device has said that it is another one, or may
    /// have said so and it was read long ago. If another CPU is at the transport, that one reads it. Gives whether
    /// there was reason.
    pub(super) fn read_target(&self, begins: bool) -> bool {
        let now = self.platform.now();
        // Both pair with the stores in `note_interrupt`.
        let reconfigured = self.reconfigured.swap(false, Ordering::SeqCst);
        let is_unsure = self.unsure.load(Ordering::SeqCst);
        let is_due = {
            let state = self.state.lock();
            let is_old = state
                .read_at
                .is_none_or(|at| now >= at.saturating_add(CONFIG_PAUSE_NS));
            let is_idle = state.target.is_none() || !state.balloon.is_waiting();
            (is_unsure && is_old) || begins && (is_idle || is_old)
        };
        if !(reconfigured || is_due) {
            return false;
        }
        // An interrupt without a status may also mean that the device needs a reset.
        if self.unsure.swap(false, Ordering::SeqCst) {
            self.posted.add(TransportWork::STATUS);
        }
        self.posted.ask_target();
        if self
            .serve(TransportWork::all())
            .intersects(TransportWork::SWIFT)
        {
            self.turn(TransportWork::all());
        }
        true
    }

    /// Whether the device is to be told the balloon's size. Not while the host is busy with our requests, as long as it
    /// was told not long ago.
    fn size_is_due(&self) -> bool {
        let now = self.platform.now();
        let state = self.state.lock();
        let pauses =
            state.balloon.is_waiting() && now < state.written_at.saturating_add(CONFIG_PAUSE_NS);
        state.unwritten && !pauses
    }

    /// Raises the vm events by what has happened since the last call.
    #[inline(never)]
    pub(super) fn publish(&self) {
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
