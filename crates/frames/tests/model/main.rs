//! Random use of the allocator against a naive model of who holds what, checked after each step.

#![cfg(not(shuttle))]

mod blocks;
mod check;
mod geometry;
mod model;
mod operation;
mod oracle;
mod ranges;

use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};

use model::Model;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        max_shrink_iters: 4000,
        ..ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("proptest-regressions"))
    })]

    #[test]
    fn the_allocator_agrees_with_a_naive_model(
        geometry in geometry::geometry(),
        operations in vec(operation::operation(), 1..160),
    ) {
        geometry.with(|frames| {
            let mut model = Model::new(&geometry, frames);
            for operation in &operations {
                model.step(operation);
            }
            model.finish();
        });
    }
}
