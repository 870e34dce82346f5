//! The progress bar: one line for each task that runs, on a terminal only.

use std::{collections::BTreeMap, io::IsTerminal};

use dirigible_workload::report::{Observer, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    children::{News, Step},
    plan::ChildTask,
};

/// Bars for tasks, hidden if standard error is no terminal.
pub struct Bars {
    /// All bars, and the one that counts tasks.
    shown: Option<(MultiProgress, ProgressBar)>,
    names: Vec<String>,
    running: BTreeMap<usize, ProgressBar>,
}

impl Bars {
    /// Bars for `tasks`.
    pub fn new(tasks: &[ChildTask]) -> Self {
        let several_seeds = tasks
            .windows(2)
            .any(|pair| pair[0].params.seed != pair[1].params.seed);
        let name = |task: &ChildTask| match several_seeds {
            true => format!("{} seed {}", task.name(), task.params.seed),
            false => task.name().to_string(),
        };
        let shown = std::io::stderr().is_terminal().then(|| {
            let bars = MultiProgress::new();
            let total = bars.add(ProgressBar::new(tasks.len() as u64));
            total.set_style(style("{pos}/{len} done, {elapsed} so far"));
            total.enable_steady_tick(std::time::Duration::from_secs(1));
            (bars, total)
        });
        Self {
            shown,
            names: tasks.iter().map(name).collect(),
            running: BTreeMap::new(),
        }
    }

    /// Shows what has happened.
    pub fn update(&mut self, news: News) {
        let Some((bars, total)) = &self.shown else {
            return;
        };
        match news {
            News::Step(
                index,
                Step {
                    phase,
                    now_ms,
                    end_ms,
                },
            ) => {
                let bar = self.running.entry(index).or_insert_with(|| {
                    let bar = bars.insert_before(total, ProgressBar::new(end_ms.max(1)));
                    bar.set_style(style("{prefix:>20} [{bar:40}] {percent:>3}% {msg}"));
                    bar.set_prefix(self.names[index].clone());
                    bar
                });
                bar.set_length(end_ms.max(1));
                bar.set_position(now_ms);
                bar.set_message(phase);
            }
            News::Done(index) => {
                if let Some(bar) = self.running.remove(&index) {
                    bar.finish_and_clear();
                }
                total.inc(1);
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some((bars, total)) = &self.shown {
            total.finish_and_clear();
            // If the terminal is closed there is nothing to clear.
            let _ = bars.clear();
        }
    }
}

/// A bar for one run in this process, hidden if standard error is no terminal.
pub struct OneBar(Option<ProgressBar>);

impl OneBar {
    /// A bar for the run called `name`.
    pub fn new(name: &str) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            bar.set_style(style("{prefix:>20} [{bar:40}] {percent:>3}% {msg}"));
            bar.set_prefix(name.to_string());
            bar
        }))
    }
}

impl Observer for OneBar {
    fn progress(&mut self, progress: Progress) {
        if let Some(bar) = &self.0 {
            bar.set_length(progress.end_ms.max(1));
            bar.set_position(progress.now_ms);
            bar.set_message(progress.phase);
        }
    }
}

impl Drop for OneBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
