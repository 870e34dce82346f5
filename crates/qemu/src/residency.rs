//! Whether the host really has the balloon's memory: compares the books of guest, QEMU and host.

use dirigible_frames::{FRAME_SIZE, FRAMES_PER_BLOCK};
use dirigible_workload::{
    params::{Column, Params},
    report::{Residency, Tenths},
    tuning::{self, ColumnPolicy},
};

/// Resident memory may differ from the balloon by one part in this many: 2 %.
const TOLERANCE: u64 = 50;

/// By how much resident memory may fall when a balloon is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Allowed {
    least: u64,
    most: u64,
}

impl Allowed {
    /// For a balloon of `bytes` in a guest that may keep `spare` bytes free: frames that came back from the balloon and
    /// were not touched since are not resident.
    pub(crate) const fn new(bytes: u64, spare: u64) -> Self {
        let tolerance = bytes / TOLERANCE;
        Self {
            least: bytes - tolerance,
            most: bytes.saturating_add(tolerance).saturating_add(spare),
        }
    }

    /// Whether it may fall from `before` to `now`.
    ///
    /// # Errors
    ///
    /// A sentence with both figures.
    pub(crate) fn check(self, before: u64, now: u64) -> Result<(), String> {
        let fallen = before.saturating_sub(now);
        if (self.least..=self.most).contains(&fallen) {
            return Ok(());
        }
        Err(format!(
            "QEMU's resident memory fell from {} to {} MiB, by {}, expected {} to {}",
            mib(before),
            mib(now),
            mib(fallen),
            mib(self.least),
            mib(self.most)
        ))
    }
}

/// Bytes in MiB, one decimal.
pub(crate) fn mib(bytes: u64) -> Tenths {
    Tenths::ratio(bytes, 1 << 20)
}

/// Memory that a guest full of files keeps free, in bytes: its high watermark and its reserve.
pub(crate) fn spare(column: Column, params: &Params) -> u64 {
    let reserve =
        u64::from(ColumnPolicy::new(column, params).reserve_high) * FRAMES_PER_BLOCK as u64;
    (tuning::watermarks(params).high + reserve) * FRAME_SIZE as u64
}

/// A full balloon, as the guest reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full {
    /// Frames that it holds, by the guest's report.
    pub frames: u64,
    /// Resident bytes before any balloon.
    pub before: u64,
    /// What the guest may keep free, in bytes.
    pub spare: u64,
}

/// The host's books, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// What the balloon holds in QEMU's books.
    pub frames: u64,
    /// Resident bytes.
    pub resident: u64,
}

impl Full {
    /// Compares the host's books with the guest's report.
    ///
    /// # Errors
    ///
    /// A sentence that names the difference.
    pub(crate) fn judge(&self, look: Look) -> Result<Residency, String> {
        if look.frames != self.frames {
            return Err(format!(
                "the guest reports {} frames in its balloon, QEMU reports {}",
                self.frames, look.frames
            ));
        }
        let bytes = self.frames.saturating_mul(FRAME_SIZE as u64);
        Allowed::new(bytes, self.spare).check(self.before, look.resident)?;
        Ok(Residency {
            empty_balloon_mib: mib(self.before),
            full_balloon_mib: mib(look.resident),
            balloon_mib: mib(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use dirigible_workload::params::Profile;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn two_per_cent_and_what_is_kept_free() {
        let allowed = Allowed::new(100 * MIB, 3 * MIB);
        for (fallen, right) in [
            (97, false),
            (98, true),
            (100, true),
            (105, true),
            (106, false),
        ] {
            let result = allowed.check(1000 * MIB, (1000 - fallen) * MIB);
            assert_eq!(result.is_ok(), right, "{fallen}: {result:?}");
        }
        let text = allowed.check(10 * MIB, 20 * MIB).unwrap_err();
        assert!(text.contains("by 0.0, expected 98.0 to 105.0"), "{text}");
    }

    #[test]
    fn a_guest_keeps_its_watermark_and_its_reserve_free() {
        let of = |column| spare(column, &Params::new(Profile::Quick));
        assert_eq!(of(Column::Movable), 12 * MIB);
        assert_eq!(of(Column::Steered), 28 * MIB);
    }

    #[test]
    fn all_books_have_to_agree() {
        let full = Full {
            frames: 25_600,
            before: 1000 * MIB,
            spare: 0,
        };
        let look = |frames, fallen: u64| {
            full.judge(Look {
                frames,
                resident: (1000 - fallen) * MIB,
            })
        };
        assert_eq!(
            look(25_600, 100).unwrap().balloon_mib,
            Tenths::ratio(100, 1)
        );
        let error = look(25_599, 100).unwrap_err();
        assert!(error.contains("QEMU reports 25599"), "{error}");
        let error = look(25_600, 50).unwrap_err();
        assert!(error.contains("by 50.0"), "{error}");
    }
}
