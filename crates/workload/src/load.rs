//! The actors of the load, in their fixed order.

use alloc::{boxed::Box, vec::Vec};

use crate::{
    control::Control, jobs::CompileJob, kernel::KernelLoad, machine::LoadMemory, params::Params,
    rng::Source, tuning::LoadTuning,
};
use dirigible::schedule::Actor;

/// The actors of the load of `params` on `memory`. All begin at time 0, and each acknowledges each stage once. The
/// filler is not among them: it belongs to the machine.
pub fn actors<'a, M: LoadMemory>(
    memory: &'a M,
    control: &'a Control,
    params: &Params,
) -> Vec<Box<dyn Actor + 'a>> {
    let tuning = LoadTuning::new(params);
    let seed = params.seed;
    let mut actors: Vec<Box<dyn Actor + 'a>> = Vec::new();
    for (number, kernel) in tuning.long_kernel.into_iter().enumerate() {
        let source = Source::LongKernel(number as u32);
        actors.push(Box::new(KernelLoad::new(
            memory, control, kernel, seed, source,
        )));
    }
    for (number, kernel) in tuning.short_kernel.into_iter().enumerate() {
        let source = Source::ShortKernel(number as u32);
        actors.push(Box::new(KernelLoad::new(
            memory, control, kernel, seed, source,
        )));
    }
    for number in 0..tuning.jobs.jobs {
        actors.push(Box::new(CompileJob::new(
            memory,
            control,
            tuning.jobs,
            seed,
            number,
        )));
    }
    actors
}
