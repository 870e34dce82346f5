//! A column's policies as the settings of the crates below.

use core::ops::Range;

use dirigible_balloon::{BalloonConfig, Deflate};
use dirigible_frames::{Config, Pfn, ZoneConfig};
use dirigible_mobility::CompactionConfig;
use dirigible_paging::SlowPathConfig;

use crate::{
    params::Params,
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

    /// The allocation slow path.
    pub fn slow_path(&self) -> SlowPathConfig {
        SlowPathConfig {
            fallback: self.fallback,
            ..SlowPathConfig::default()
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
            ..BalloonConfig::default()
        }
    }
}
