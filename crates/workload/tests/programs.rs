//! The programs of the load on a kernel in miniature.

mod mock;

use dirigible::schedule::{PROGRAM_STACK, time::SECOND};
use dirigible_workload::{
    calls::Ended,
    params::{Params, Profile},
    programs::{LoadPlan, Program, tree::Tree},
};
use mock::{Faults, Kernel, Trace};

fn reference() -> LoadPlan {
    LoadPlan::new(&Params::new(Profile::Paper))
}

/// A load of few and small trees, whose compiles are short.
fn small() -> LoadPlan {
    let params = Params {
        memory: 64 << 20,
        ..Params::new(Profile::Quick)
    };
    let mut plan = LoadPlan::new(&params);
    plan.trees = 3;
    plan.tree.directories = 5;
    plan.tree.sources = 3;
    plan.tree.headers = 4;
    plan.link.units = 2;
    plan
}

#[test]
fn sizes_are_those_of_the_experiment() {
    let plan = reference();
    assert_eq!((plan.trees, plan.copies), (10, 2));
    let tree = Tree::new(&plan, 0);
    let all: u64 = (0..plan.trees)
        .map(|number| Tree::new(&plan, number).pages())
        .sum();
    let mib = all / 256;
    assert!((2_400..2_700).contains(&mib), "all trees: {mib} MiB");
    // Skewed: half of the files are small.
    let mut sizes: Vec<u64> = tree.files().map(|file| file.pages).collect();
    sizes.sort_unstable();
    assert!((1..=2).contains(&sizes[0]) && sizes[sizes.len() - 1] == 64);
    assert!((14..=19).contains(&sizes[sizes.len() / 2]));
    for unit in 0..plan.tree.directories {
        let sources: u64 = tree.sources(unit).map(|file| file.pages).sum();
        let objects: u64 = tree.objects(unit, 0).map(|file| file.pages).sum();
        assert!((600..1_500).contains(&sources), "{sources}");
        assert!((60..130).contains(&objects), "{objects}");
    }
    let mut keys: Vec<u64> = (0..plan.trees)
        .flat_map(|number| Tree::new(&plan, number).files())
        .map(|file| file.key)
        .collect();
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count, "two files with the same contents");
}

#[test]
fn sizes_scale_with_memory_and_load() {
    let of = |memory: u64, load_scale| {
        let plan = LoadPlan::new(&Params {
            memory,
            load_scale,
            ..Params::new(Profile::Paper)
        });
        let pages = Tree::new(&plan, 0).pages() * u64::from(plan.trees);
        pages as f64 * 4096.0 / memory as f64
    };
    for memory in [64 << 20, 256 << 20, 1 << 30, 4 << 30, 16 << 30] {
        let share = of(memory, 1000);
        assert!((0.45..0.75).contains(&share), "{memory}: {share}");
    }
    let (half, double) = (of(4 << 30, 500), of(4 << 30, 2000));
    assert!((0.28..0.35).contains(&half), "{half}");
    assert!((1.15..1.35).contains(&double), "{double}");
}

#[test]
fn the_plan_survives_the_way_through_json() {
    let plan = reference();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<LoadPlan>(&text).unwrap(), plan);
    let program = Program::Compile {
        tree: 1,
        unit: 2,
        round: 3,
    };
    let text = serde_json::to_string(&program).unwrap();
    assert_eq!(serde_json::from_str::<Program>(&text).unwrap(), program);
}

#[test]
fn the_experiments_load_has_its_rates() {
    let until = |seconds: u64| {
        let kernel = Kernel::new(
            reference(),
            Faults {
                until: Some(seconds * SECOND),
                ..Faults::default()
            },
        );
        kernel.run(Program::Main);
        kernel.sums()
    };
    // All trees are there after the first minutes.
    let (early, late) = (until(200), until(500));
    let rate = |of: fn(&mock::Sums) -> u64| (of(&late) - of(&early)) / 300;
    let touched = rate(|sums| sums.touched);
    let read = rate(|sums| sums.read);
    let written = rate(|sums| sums.written);
    assert!(
        (6_000..9_000).contains(&touched),
        "{touched} touches a second"
    );
    assert!((550..1_500).contains(&read), "{read} pages read a second");
    assert!((50..100).contains(&written), "{written} pages written");
    assert!(rate(|sums| sums.compiled) >= 12, "{late:?}");
    // Ten compiles at a time, on average half of their size.
    let most = late.most_mapped / 256;
    assert!((500..1_400).contains(&most), "{most} MiB mapped");
    assert!(late.most_processes < 40, "{late:?}");
    assert!(late.deepest_stack <= PROGRAM_STACK / 4, "{late:?}");
    assert_eq!((late.wrong, late.bad, late.leaks), (0, 0, 0));
}

#[test]
fn the_trees_are_there_in_time() {
    let kernel = Kernel::new(
        reference(),
        Faults {
            until: Some(120 * SECOND),
            ..Faults::default()
        },
    );
    kernel.run(Program::Main);
    let files = kernel.files();
    let plan = reference();
    for number in 0..plan.trees {
        for planned in Tree::new(&plan, number).files() {
            let found = files.binary_search_by(|(path, _)| path.as_str().cmp(&planned.path));
            let pages = found.map(|index| files[index].1);
            assert_eq!(pages, Ok(Some(planned.pages)), "{}", &*planned.path);
        }
    }
}

/// The traces of one program, in the order in which it ended.
fn traces_of(kernel: &Kernel, wanted: impl Fn(&Program) -> bool) -> Vec<Trace> {
    let traces = kernel.traces().into_iter();
    traces
        .filter(|trace| trace.ended == Ended::Done && wanted(&trace.program))
        .collect()
}

#[test]
fn the_same_plan_makes_the_same_requests_whatever_finds_no_memory() {
    let plan = small();
    let run = |no_memory| {
        let kernel = Kernel::new(
            plan,
            Faults {
                no_memory,
                until: Some(400 * SECOND),
                ..Faults::default()
            },
        );
        kernel.run(Program::Main);
        assert_eq!(kernel.alive(), 0);
        kernel
    };
    let free = run(None);
    assert_eq!(free.sums().stalls, 0);
    for no_memory in [3, 20] {
        let short = run(Some(no_memory));
        let (sums, all) = (short.sums(), traces_of(&free, |_| true));
        assert!(sums.stalls > 500, "{sums:?}");
        assert_eq!((sums.wrong, sums.bad, sums.leaks), (0, 0, 0));
        let mut compared = 0;
        for trace in traces_of(&short, |_| true) {
            if let Some(same) = all.iter().find(|same| same.program == trace.program) {
                assert_eq!(same, &trace);
                compared += 1;
            }
        }
        assert!(compared > 40, "{compared}");
        // Those that never end: each one's requests are the beginning of the other's.
        for program in [
            Program::Make { tree: 0 },
            Program::Make { tree: 2 },
            Program::Walk,
        ] {
            let of = |kernel: &Kernel| {
                let mut traces = kernel.traces().into_iter();
                let found = traces.find(|trace| trace.program == program);
                found.unwrap().requests
            };
            let (one, other) = (of(&free), of(&short));
            let common = one.len().min(other.len());
            assert!(common > 5, "{program:?}");
            assert_eq!(one[..common], other[..common], "{program:?}");
        }
    }
}

#[test]
fn what_dies_is_begun_anew_and_does_the_same() {
    let plan = small();
    let run = |kills| {
        let kernel = Kernel::new(
            plan,
            Faults {
                kills,
                until: Some(400 * SECOND),
                ..Faults::default()
            },
        );
        kernel.run(Program::Main);
        kernel
    };
    let (well, ill) = (run(None), run(Some(1_000)));
    let died = ill.traces();
    let died = died.iter().filter(|trace| trace.ended == Ended::Failed);
    assert!(died.count() > 20);
    let sums = ill.sums();
    assert_eq!((sums.wrong, sums.bad, sums.leaks), (0, 0, 0));
    assert_eq!(ill.held(), (0, 0));
    for tree in 0..plan.trees {
        let done = |kernel: &Kernel| -> Vec<Trace> {
            let is = move |program: &Program| matches!(program, Program::Compile { tree: of, .. } | Program::Link { tree: of, .. } if *of == tree);
            traces_of(kernel, is)
        };
        let (well, ill) = (done(&well), done(&ill));
        let common = well.len().min(ill.len());
        assert!(common >= 5, "tree {tree}: {} and {}", well.len(), ill.len());
        for (well, ill) in well.iter().zip(&ill) {
            assert_eq!(well.program, ill.program);
            // What a program that died has left is deleted first; memory is used in the same way.
            let memory = |trace: &Trace| -> Vec<String> {
                let requests = trace.requests.iter();
                let is = |request: &&String| {
                    ["map", "touch", "check", "discard", "unmap", "read"]
                        .iter()
                        .any(|kind| request.starts_with(kind))
                };
                requests.filter(is).cloned().collect()
            };
            assert_eq!(memory(well), memory(ill));
        }
    }
}

#[test]
fn a_kill_at_any_call_ends_everything() {
    let plan = small();
    let whole = Kernel::new(
        plan,
        Faults {
            until: Some(60 * SECOND),
            ..Faults::default()
        },
    );
    whole.run(Program::Main);
    let calls = whole.sums().calls;
    assert!(calls > 1_000);
    // All of the first calls, and some of each kind later.
    let later = (300..calls).step_by((calls / 300) as usize);
    for at in (1..300).chain(later) {
        let kernel = Kernel::new(
            plan,
            Faults {
                kill_all_at: Some(at),
                ..Faults::default()
            },
        );
        kernel.run(Program::Main);
        let sums = kernel.sums();
        assert_eq!(kernel.alive(), 0, "killed at {at}");
        assert_eq!(kernel.held(), (0, 0), "killed at {at}");
        assert_eq!(
            (sums.after_kill, sums.wrong, sums.bad),
            (0, 0, 0),
            "killed at {at}"
        );
        assert!(sums.calls <= at + 32, "killed at {at}: {sums:?}");
    }
}

#[test]
fn at_the_end_all_files_are_deleted() {
    for no_memory in [None, Some(5)] {
        let faults = Faults {
            no_memory,
            until: Some(200 * SECOND),
            ..Faults::default()
        };
        let mut kernel = Kernel::new(small(), faults);
        kernel.run(Program::Main);
        let files = kernel.files();
        assert!(files.iter().any(|(path, _)| path.ends_with(".o")));
        assert!(files.iter().any(|(path, _)| path.contains("image")));
        kernel.go_on();
        for tree in 0..small().trees {
            kernel.run(Program::Delete { tree });
        }
        assert_eq!(kernel.files(), []);
        assert_eq!((kernel.held(), kernel.sums().leaks), ((0, 0), 0));
        // A tree that is not there is deleted as well.
        kernel.run(Program::Delete { tree: 1 });
        assert!(traces_of(&kernel, |program| *program == Program::Delete { tree: 1 }).len() == 2);
    }
}
