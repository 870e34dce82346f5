//! Watermarks that grow with memory as Linux's do.

use dirigible_frames::{FRAME_SIZE, Watermarks};

/// Least and most of `min_free_kbytes` (Linux 6.x, `calculate_min_free_kbytes`).
const MIN_FREE_KIB: (u64, u64) = (128, 262_144);
/// The distance between the marks is at least this many ten-thousandths of the zone (`watermark_scale_factor`).
const SCALE: u64 = 10;
/// KiB in a frame.
const FRAME_KIB: u64 = FRAME_SIZE as u64 / 1024;

/// The marks of a zone of `zone` frames in a guest of `all` frames.
///
/// All zones together leave `sqrt(16 * KiB)` KiB at their min watermark, each by its share; low and high follow at a
/// distance of a quarter of that or a thousandth of the zone, whichever is more. 4 GiB: 2,048, 3,096 and 4,144 frames.
pub fn scaled(zone: u64, all: u64) -> Watermarks {
    let kib = all.saturating_mul(FRAME_KIB).saturating_mul(16).isqrt();
    let min_free = kib.clamp(MIN_FREE_KIB.0, MIN_FREE_KIB.1) / FRAME_KIB;
    let share = |frames: u64, of: u64, in_all: u64| {
        (u128::from(frames) * u128::from(of) / u128::from(in_all.max(1))) as u64
    };
    // A guest of a few frames would have more set aside than it has.
    let min = share(min_free, zone, all).min(zone / 4);
    let gap = (min / 4).max(share(zone, SCALE, 10_000));
    Watermarks {
        min,
        low: min + gap,
        high: min + 2 * gap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_known_guests() {
        let marks = |frames| {
            let Watermarks { min, low, high } = scaled(frames, frames);
            (min, low, high)
        };
        assert_eq!(marks(1 << 20), (2048, 3096, 4144), "4 GiB: 8 MiB");
        assert_eq!(marks(1 << 14), (256, 320, 384), "64 MiB: 1 MiB");
        assert_eq!(marks(1 << 32).0, 65_536, "16 TiB: no more than 256 MiB");
        assert_eq!(
            marks(64),
            (16, 20, 24),
            "a very small guest keeps three quarters"
        );
        assert_eq!(marks(0), (0, 0, 0));
    }

    #[test]
    fn zones_share_by_their_size() {
        let (small, large) = (scaled(1 << 18, 1 << 20), scaled(3 << 18, 1 << 20));
        assert_eq!((small.min, large.min), (512, 1536));
    }
}
