//! The work at the transport, done by whoever gets hold of it.
#![forbid(unsafe_code)]

use dirigible_frames::Platform;
use dirigible_frames::sync::{Ordering, fence};
use virtio_drivers::Hal;
use virtio_drivers::transport::{InterruptStatus, Transport};

use super::VirtioBalloon;
use super::posted::TransportWork;
use super::wire::Wire;

impl<H: Hal, T: Transport, P: Platform, const N: usize> VirtioBalloon<'_, H, T, P, N> {
    /// Does what is posted of `kinds`, by other CPUs too, and gives what it did. If the transport is taken (perhaps by
    /// ourselves, further up in `notify`), the work stays posted, and its holder looks again after letting go.
    ///
    /// A caller that serves only `SWIFT` leaves the rest posted. The next interrupt does it, or the next step,
    /// and a step that finds some at its end asks to be called again soon.
    pub(super) fn serve(&self, kinds: TransportWork) -> TransportWork {
        let mut done = TransportWork::empty();
        loop {
            // Pairs with itself on another CPU. One CPU posts and then tries the transport; the other lets go of the
            // transport and then looks for work. At least one of them sees what the other did.
            fence(Ordering::SeqCst);
            if !self.posted.any(kinds) {
                return done;
            }
            let Some(mut wire) = self.wire.try_lock() else {
                return done;
            };
            self.posted.set_at_work(true);
            let work = self.posted.take(kinds);
            self.do_work(&mut wire, work);
            self.posted.set_at_work(false);
            drop(wire);
            done |= work;
        }
    }

    fn do_work(&self, wire: &mut Wire<'_, T, P>, work: TransportWork) {
        if work.contains(TransportWork::ACKNOWLEDGE) {
            self.note_interrupt(wire.acknowledge());
        }
        for (which, bell) in [
            TransportWork::INFLATE,
            TransportWork::DEFLATE,
            TransportWork::STATS,
        ]
        .into_iter()
        .enumerate()
        {
            if work.contains(bell) {
                wire.ring(which);
            }
        }
        if work.contains(TransportWork::STATUS) && wire.needs_reset() {
            self.state.lock().balloon.needs_reset();
        }
        // With the transport in hand, so the later of two reads or writes is the one that counts.
        if work.contains(TransportWork::TARGET) {
            let asked = self.posted.asked();
            if wire.is_live() {
                let target = wire.read_target().ok();
                let mut state = self.state.lock();
                (state.target, state.read_at) = (target, Some(self.platform.now()));
            }
            self.posted.target_read(asked);
        }
        if work.contains(TransportWork::SIZE) {
            let actual = {
                let mut state = self.state.lock();
                (state.unwritten, state.written_at) = (false, self.platform.now());
                state.balloon.actual()
            };
            wire.write_actual(actual as u32);
        }
    }

    /// Notes what the interrupt status says.
    pub(super) fn note_interrupt(&self, status: InterruptStatus) {
        if status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            // Pairs with the swap in `read_target`.
            self.reconfigured.store(true, Ordering::SeqCst);
            self.posted.add(TransportWork::STATUS);
        } else if status.is_empty() {
            // Under MSI-X the status says nothing, ever. Pairs with the swap in `read_target`.
            self.unsure.store(true, Ordering::SeqCst);
        }
    }
}
