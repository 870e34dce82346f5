//! A column's policies as the settings of the crates below.

use core::ops::Range;

use dirigible_balloon::{BalloonConfig, Deflate};
use dirigible_frames::{Config, PageTables, Pfn, ZoneConfig};
use dirigible_mobility::{CompactionConfig, Mobility};
use dirigible_paging::{Reclaim, SlowPath, SlowPathConfig};

use crate::{
    params::Params,
    relief::Relief,
    stalls::Stalls,
    tuning::{ColumnPolicy, watermarks},
};

impl ColumnPolicy {
    /// The one zone of the experiment's allocator, over `ranges`: [`mem_total_frames`](crate::timeline::mem_total_frames)
    /// in all.
    pub fn zone<'z>(&self, params: &Params, ranges: &'z [Range<Pfn>]) -> ZoneConfig<'z> {
        ZoneConfig {
            name: "Normal",
            ranges,
            watermarks: watermarks(params),
            reserve_blocks: self.reserve_low,
        }
    }

    /// The allocator over `zones`, for `cpus` processors.
    pub fn allocator<'z>(&self, zones: &'z [ZoneConfig<'z>], cpus: u16) -> Config<'z> {
        Config {
            zones,
            reserved: &[],
            cpus,
            placement: self.placement,
            fallback: self.fallback,
            ..Config::default()
        }
    }

    /// Compaction.
    pub fn compaction(&self) -> CompactionConfig {
        CompactionConfig {
            reserve_low: u64::from(self.reserve_low),
            reserve_high: u64::from(self.reserve_high),
            exchange_batch: self.exchange_batch,
            ..CompactionConfig::default()
        }
    }

    /// The allocation slow path over `mobility`. It asks `relief` before a request fails where the balloon accepts to deflate
    /// for that ([`balloon`](Self::balloon)): what is not wired is not negotiated. `stalls` hears of what is not served at once.
    pub fn slow_path<'a, P: PageTables>(
        &self,
        mobility: &'a Mobility<'a, P>,
        reclaim: &'a dyn Reclaim,
        relief: &'a Relief<'a>,
        stalls: &'a Stalls<'a, P>,
    ) -> SlowPath<'a, P> {
        let config = SlowPathConfig {
            fallback: self.fallback,
            ..SlowPathConfig::default()
        };
        let path = SlowPath::new(mobility, reclaim, config).observed_by(stalls);
        if self.deflate_on_oom {
            path.with_notifier(relief)
        } else {
            path
        }
    }

    /// The balloon.
    pub fn balloon(&self) -> BalloonConfig {
        BalloonConfig {
            mobility: self.balloon_movable,
            placement: self.inflate,
            exchange_batch: self.exchange_batch,
            deflate: if self.heal {
                Deflate::Heal
            } else {
                Deflate::NewestFirst
            },
            deflate_on_oom: self.deflate_on_oom,
            ..BalloonConfig::default()
        }
    }
}
