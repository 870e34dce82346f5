//! The command's words translated into the workload's and back.

use dirigible_workload::{
    params::{self, InflatePlacement, Params},
    report::{Parameters, TenThousandths},
};

use crate::{
    args::{Column, Placement, Profile, Schedule},
    plan::{Job, Plan},
};

/// The workload's parameters for `job`. The twin has no column; it is told one and does not look at it.
pub fn params(job: &Job) -> Params {
    let plan = &job.plan;
    Params {
        memory: plan.memory,
        balloon: plan.balloon,
        step: plan.step,
        period: plan.period_ms.saturating_mul(1_000_000),
        schedule: match plan.schedule {
            Schedule::Cycle => params::Schedule::Cycle,
            Schedule::Held => params::Schedule::Held,
        },
        seed: plan.seed,
        threads: usize::try_from(plan.threads).unwrap_or(usize::MAX),
        placement: match plan.placement {
            Placement::FillHoles => InflatePlacement::FillHoles,
            Placement::WholeBlocks => InflatePlacement::WholeBlocks,
        },
        // The command line's largest factor is 100,000 thousandths.
        load_scale: plan.load_scale as u32,
        watermark_scale: plan.watermark_scale as u32,
        filler: plan.filler,
        time_scale: plan.time_scale as u32,
        deflate_on_oom: plan.deflate_on_oom,
        host_answer: plan.host_answer_ms.saturating_mul(1_000_000),
        ..Params::new(
            match job.column {
                Some(Column::Pinned) | None => params::Column::Pinned,
                Some(Column::Movable) => params::Column::Movable,
                Some(Column::Steered) => params::Column::Steered,
            },
            match plan.profile {
                Profile::Paper => params::Profile::Paper,
                Profile::Quick => params::Profile::Quick,
            },
        )
    }
}

/// The parameters as the report prints them.
pub fn parameters(plan: &Plan) -> Parameters {
    let factor = |thousandths| TenThousandths::ratio(thousandths, 1000);
    Parameters {
        memory_bytes: plan.memory,
        balloon_bytes: plan.balloon,
        step_bytes: plan.step,
        period_ms: plan.period_ms,
        schedule: plan.schedule.name().into(),
        placement: plan.placement.name().into(),
        threads: plan.threads,
        load_scale: factor(plan.load_scale),
        watermark_scale: factor(plan.watermark_scale),
        filler: plan.filler,
        time_scale: factor(plan.time_scale),
        deflate_on_oom: plan.deflate_on_oom,
        host_answer_ms: plan.host_answer_ms,
    }
}
