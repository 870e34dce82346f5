//! A column's policies as the settings of the crates below.

use dirigible::{
    ManagerConfig,
    balloon_worker::BalloonWorkerConfig,
    boot::{BootConfig, Marks, Tables},
    kcompactd::KcompactdConfig,
};
use dirigible_balloon::{BalloonConfig, Deflate};
use dirigible_frames::CostFn;
use dirigible_mobility::CompactionConfig;
use dirigible_paging::SlowPathConfig;
use dirigible_reclaim::cost_by_age;

use crate::{
    params::Params,
    tuning::{
        BALLOON_MESSAGES, BALLOON_TICK, ColumnPolicy, KCOMPACTD_BLOCKS, KCOMPACTD_TICK, watermarks,
    },
};

impl ColumnPolicy {
    /// How the experiment's allocator is booted, for `cpus` processors: from a map of
    /// [`column_mem_total_frames`](crate::timeline::column_mem_total_frames) usable frames in all, with tables apart from them.
    pub fn boot(&self, params: &Params, cpus: u16) -> BootConfig<'static> {
        BootConfig {
            cpus,
            marks: Marks::Fixed(watermarks(params)),
            reserve_blocks: Some(self.reserve_low),
            placement: self.placement,
            fallback: self.fallback,
            cost: self.drops_cold.then_some(cost_by_age as CostFn),
            tables: Tables::Apart,
            ..BootConfig::default()
        }
    }

    /// How the parts of the manager work together.
    pub fn manager(&self) -> ManagerConfig {
        ManagerConfig {
            compaction: CompactionConfig {
                reserve_low: u64::from(self.reserve_low),
                reserve_high: u64::from(self.reserve_high),
                exchange_batch: self.exchange_batch,
                drops_cold: self.drops_cold,
                ..CompactionConfig::default()
            },
            slow_path: SlowPathConfig {
                fallback: self.fallback,
                // A program that finds no memory waits here, and the hybrid blocks are to be those that policies make.
                any_block_at_last: false,
                ..SlowPathConfig::default()
            },
            kcompactd: KcompactdConfig {
                tick_ns: KCOMPACTD_TICK,
                blocks: KCOMPACTD_BLOCKS,
                ..KcompactdConfig::default()
            },
            balloon_worker: BalloonWorkerConfig {
                tick_ns: BALLOON_TICK,
                messages: BALLOON_MESSAGES,
            },
            ..ManagerConfig::default()
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
