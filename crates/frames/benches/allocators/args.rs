//! The command line.

use crate::Run;
use crate::peers::Contestant;
use crate::scenario::Scale;

/// A part of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Section {
    /// Means.
    Speed,
    /// Percentiles.
    Latency,
    /// Requests that fail.
    Refused,
    /// Fragmentation.
    Aging,
    /// Setting up.
    Boot,
    /// Size.
    Metadata,
}

impl Section {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 6] = [
        Self::Speed,
        Self::Latency,
        Self::Refused,
        Self::Aging,
        Self::Boot,
        Self::Metadata,
    ];

    /// Its name on the command line and in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Speed => "speed",
            Self::Latency => "latency",
            Self::Refused => "refused",
            Self::Aging => "aging",
            Self::Boot => "boot",
            Self::Metadata => "metadata",
        }
    }
}

/// What was asked for.
pub struct Args {
    /// What runs.
    pub sections: Vec<Section>,
    /// JSON instead of tables.
    pub json: bool,
    /// Only list who takes part.
    pub list: bool,
    quick: bool,
    passes: usize,
    filter: String,
}

const PASSES: usize = 12;
const QUICK_PASSES: usize = 2;

impl Args {
    /// Reads the arguments.
    ///
    /// # Errors
    ///
    /// What is wrong with them, and what is possible.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut parsed = Self {
            sections: Section::ALL.to_vec(),
            json: false,
            list: false,
            quick: false,
            passes: PASSES,
            filter: String::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--json" => parsed.json = true,
                "--list" => parsed.list = true,
                "--quick" => {
                    parsed.quick = true;
                    parsed.passes = QUICK_PASSES;
                }
                "--passes" => {
                    let number = args.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                    parsed.passes = number.ok_or("--passes needs a number above 0")?;
                }
                "--only" => parsed.sections = sections(args.next().map_or("", String::as_str))?,
                name if !name.starts_with('-') => parsed.filter = name.to_owned(),
                other => {
                    return Err(format!(
                        "unknown option {other}; known: --only {} --quick --json --passes N --list NAME",
                        names()
                    ));
                }
            }
        }
        if parsed.contestants().is_empty() {
            return Err(format!(
                "no allocator is called {}; --list names them",
                parsed.filter
            ));
        }
        Ok(parsed)
    }

    fn contestants(&self) -> Vec<Contestant> {
        let named = |c: &Contestant| c.name().contains(&self.filter);
        Contestant::ALL.into_iter().filter(named).collect()
    }

    /// The run that was asked for.
    pub fn run(&self) -> Run {
        Run {
            scale: if self.quick {
                Scale::QUICK
            } else {
                Scale::FULL
            },
            passes: self.passes,
            contestants: self.contestants(),
        }
    }
}

fn names() -> String {
    Section::ALL.map(Section::name).join(",")
}

fn sections(list: &str) -> Result<Vec<Section>, String> {
    let named = |name: &str| {
        let found = Section::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| format!("--only knows {}, not \"{name}\"", names()))
    };
    list.split(',').map(named).collect()
}
