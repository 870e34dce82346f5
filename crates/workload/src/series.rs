//! The rows of the table in the Linux patch series "make balloon pages movable by compaction" (2012), with its formulas.
//!
//! The series prints differences of counters of `/proc/vmstat` over the whole run, and a few quotients of them. Here
//! they are computed from a run's [`VmStat`] in the same order, with the same truncation. What newer kernels call
//! otherwise is taken under its present name: `pgmigrate_success` and `pgmigrate_fail` for pages moved and move
//! failures, `thp_split_page` for THP splits.

use alloc::{format, string::String};

use crate::report::VmStat;

/// What a row is made of.
#[derive(Clone, Copy, Debug)]
pub struct Counters<'a> {
    /// The events of the whole run.
    pub vmstat: &'a VmStat,
    /// Length of the run on the guest's clock, in milliseconds.
    pub elapsed_ms: u64,
}

/// What a cell counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Pages, objects, events; of `Page Ins` and `Page Outs`, KiB.
    Count,
    /// Per cent, cut off to a whole number.
    Percent,
    /// Thousandths of a page in a second.
    PerSecond,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The series' name.
    pub label: &'static str,
    /// What its cells count.
    pub unit: Unit,
    value: fn(Counters<'_>) -> u64,
}

impl Row {
    /// The cell as a number of the row's [`Unit`].
    pub fn value(&self, counters: Counters<'_>) -> u64 {
        (self.value)(counters)
    }

    /// The cell as the series prints it.
    pub fn cell(&self, counters: Counters<'_>) -> String {
        let value = self.value(counters);
        match self.unit {
            Unit::Count => format!("{value}"),
            Unit::Percent => format!("{value}%"),
            Unit::PerSecond => format!("{}.{:03}", value / 1000, value % 1000),
        }
    }
}

impl Counters<'_> {
    fn of(self, event: &str) -> u64 {
        self.vmstat.get(event)
    }

    /// Pages scanned in a second, in thousandths, to the nearest; 0 for a run of no length.
    fn velocity(self, event: &str) -> u64 {
        let elapsed = u128::from(self.elapsed_ms);
        let scanned = u128::from(self.of(event)) * 1_000_000;
        let rounded = (scanned + elapsed / 2).checked_div(elapsed);
        rounded.map_or(0, |value| value.try_into().unwrap_or(u64::MAX))
    }

    /// How many of 100 scanned pages were reclaimed: all of them if none was scanned.
    fn efficiency(self, reclaimed: &str, scanned: &str) -> u64 {
        percent(self.of(reclaimed), self.of(scanned)).unwrap_or(100)
    }

    fn percent_direct(self) -> u64 {
        let direct = self.of(SCAN_DIRECT);
        percent(direct, direct.saturating_add(self.of(SCAN_KSWAPD))).unwrap_or(0)
    }

    /// Pages of files that reclaim itself wrote: all that it wrote but those for swap.
    fn writes_of_files(self) -> u64 {
        self.of("nr_vmscan_write")
            .saturating_sub(self.of("pswpout"))
    }
}

const SCAN_DIRECT: &str = "pgscan_direct";
const SCAN_KSWAPD: &str = "pgscan_kswapd";
const STEAL_DIRECT: &str = "pgsteal_direct";
const STEAL_KSWAPD: &str = "pgsteal_kswapd";

/// Per cent, cut off; `None` if `whole` is 0.
fn percent(part: u64, whole: u64) -> Option<u64> {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole))?;
    Some(percent.try_into().unwrap_or(u64::MAX))
}

macro_rules! rows {
    ($($label:literal: $unit:ident = $value:expr;)*) => {
        [$(Row { label: $label, unit: Unit::$unit, value: $value },)*]
    };
}

/// All rows, in the series' order.
pub const ROWS: [Row; 32] = rows! {
    "Page Ins": Count = |c| c.of("pgpgin");
    "Page Outs": Count = |c| c.of("pgpgout");
    "Swap Ins": Count = |c| c.of("pswpin");
    "Swap Outs": Count = |c| c.of("pswpout");
    "Direct pages scanned": Count = |c| c.of(SCAN_DIRECT);
    "Kswapd pages scanned": Count = |c| c.of(SCAN_KSWAPD);
    "Kswapd pages reclaimed": Count = |c| c.of(STEAL_KSWAPD);
    "Direct pages reclaimed": Count = |c| c.of(STEAL_DIRECT);
    "Kswapd efficiency": Percent = |c| c.efficiency(STEAL_KSWAPD, SCAN_KSWAPD);
    "Kswapd velocity": PerSecond = |c| c.velocity(SCAN_KSWAPD);
    "Direct efficiency": Percent = |c| c.efficiency(STEAL_DIRECT, SCAN_DIRECT);
    "Direct velocity": PerSecond = |c| c.velocity(SCAN_DIRECT);
    "Percentage direct scans": Percent = |c| c.percent_direct();
    "Page writes by reclaim": Count = |c| c.of("nr_vmscan_write");
    "Page writes file": Count = |c| c.writes_of_files();
    "Page writes anon": Count = |c| c.of("pswpout");
    "Page reclaim immediate": Count = |c| c.of("nr_vmscan_immediate_reclaim");
    "Page rescued immediate": Count = |c| c.of("pgrescued");
    "Slabs scanned": Count = |c| c.of("slabs_scanned");
    "Direct inode steals": Count = |c| c.of("pginodesteal");
    "Kswapd inode steals": Count = |c| c.of("kswapd_inodesteal");
    "Kswapd skipped wait": Count = |c| c.of("kswapd_skip_congestion_wait");
    "THP fault alloc": Count = |c| c.of("thp_fault_alloc");
    "THP collapse alloc": Count = |c| c.of("thp_collapse_alloc");
    "THP splits": Count = |c| c.of("thp_split_page");
    "THP fault fallback": Count = |c| c.of("thp_fault_fallback");
    "THP collapse fail": Count = |c| c.of("thp_collapse_alloc_failed");
    "Compaction stalls": Count = |c| c.of("compact_stall");
    "Compaction success": Count = |c| c.of("compact_success");
    "Compaction failures": Count = |c| c.of("compact_fail");
    "Compaction pages moved": Count = |c| c.of("pgmigrate_success");
    "Compaction move failure": Count = |c| c.of("pgmigrate_fail");
};

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec::Vec};
    use dirigible_frames::Event;

    /// A column that the series published: raw cells by event, length in ms, derived cells by label.
    struct Published {
        raw: &'static [(&'static str, u64)],
        elapsed_ms: u64,
        derived: &'static [(&'static str, &'static str)],
    }

    /// v10, on 3.6-rc5, without and with the patches; v11, on 3.7-rc4, likewise.
    const PUBLISHED: [Published; 4] = [
        Published {
            raw: &[
                ("pgpgin", 5_037_962),
                ("pgpgout", 10_779_728),
                ("pswpin", 34_282),
                ("pswpout", 63_027),
                ("pgscan_direct", 481_017),
                ("pgscan_kswapd", 2_083_130),
                ("pgsteal_kswapd", 1_838_615),
                ("pgsteal_direct", 337_487),
                ("nr_vmscan_write", 157_305),
                ("nr_vmscan_immediate_reclaim", 111_205),
                ("thp_fault_alloc", 688),
                ("thp_fault_fallback", 172),
                ("compact_stall", 1378),
                ("compact_success", 406),
                ("compact_fail", 972),
                ("pgmigrate_success", 3_104_073),
                ("pgmigrate_fail", 92_713),
            ],
            elapsed_ms: 2_008_950,
            derived: &[
                ("Kswapd efficiency", "88%"),
                ("Kswapd velocity", "1036.925"),
                ("Direct efficiency", "70%"),
                ("Direct velocity", "239.437"),
                ("Percentage direct scans", "18%"),
                ("Page writes file", "94278"),
                ("Page writes anon", "63027"),
                ("Page rescued immediate", "0"),
                ("Page Ins", "5037962"),
                ("Compaction pages moved", "3104073"),
            ],
        },
        Published {
            raw: &[
                ("pgpgin", 3_458_106),
                ("pgpgout", 8_969_512),
                ("pswpin", 5565),
                ("pswpout", 19_717),
                ("pgscan_direct", 166_920),
                ("pgscan_kswapd", 1_537_202),
                ("pgsteal_kswapd", 1_459_932),
                ("pgsteal_direct", 120_613),
                ("nr_vmscan_write", 19_855),
                ("nr_vmscan_immediate_reclaim", 64_510),
                ("thp_fault_alloc", 739),
                ("thp_fault_fallback", 45),
                ("compact_stall", 968),
                ("compact_success", 595),
                ("compact_fail", 373),
                ("pgmigrate_success", 1_790_932),
                ("pgmigrate_fail", 41_252),
            ],
            elapsed_ms: 1_650_720,
            derived: &[
                ("Kswapd efficiency", "94%"),
                ("Kswapd velocity", "931.231"),
                ("Direct efficiency", "72%"),
                ("Direct velocity", "101.120"),
                ("Percentage direct scans", "9%"),
                ("Page writes file", "138"),
                ("Page writes anon", "19717"),
                ("Page Outs", "8969512"),
                ("Compaction move failure", "41252"),
            ],
        },
        Published {
            raw: &[
                ("pswpin", 80),
                ("pswpout", 3641),
                ("pgscan_direct", 37_978),
                ("pgsteal_direct", 32_207),
                ("pgscan_kswapd", 1_828_245),
                ("pgsteal_kswapd", 1_710_236),
                ("nr_vmscan_write", 79_252),
                ("slabs_scanned", 2_171_904),
                ("pginodesteal", 385),
                ("kswapd_inodesteal", 659_137),
                ("kswapd_skip_congestion_wait", 1),
                ("thp_split_page", 259),
                ("thp_collapse_alloc", 361),
                ("thp_collapse_alloc_failed", 20),
            ],
            elapsed_ms: 2_273_720,
            derived: &[
                ("Kswapd efficiency", "93%"),
                ("Kswapd velocity", "804.077"),
                ("Direct efficiency", "84%"),
                ("Direct velocity", "16.703"),
                ("Percentage direct scans", "2%"),
                ("Page writes file", "75611"),
                ("Page writes anon", "3641"),
                ("Slabs scanned", "2171904"),
                ("Direct inode steals", "385"),
                ("Kswapd inode steals", "659137"),
                ("Kswapd skipped wait", "1"),
                ("THP splits", "259"),
                ("THP collapse alloc", "361"),
                ("THP collapse fail", "20"),
            ],
        },
        Published {
            raw: &[
                ("pswpout", 476),
                ("pgscan_direct", 33_826),
                ("pgsteal_direct", 31_005),
                ("pgscan_kswapd", 1_342_869),
                ("pgsteal_kswapd", 1_304_099),
                ("nr_vmscan_write", 9704),
            ],
            elapsed_ms: 2_157_060,
            derived: &[
                ("Kswapd efficiency", "97%"),
                ("Kswapd velocity", "622.546"),
                ("Direct efficiency", "91%"),
                ("Direct velocity", "15.682"),
                ("Percentage direct scans", "2%"),
                ("Page writes file", "9228"),
                ("Page writes anon", "476"),
            ],
        },
    ];

    fn vmstat(raw: &[(&str, u64)]) -> VmStat {
        VmStat(raw.iter().map(|&(name, n)| (name.to_string(), n)).collect())
    }

    fn cell(label: &str, raw: &[(&str, u64)], elapsed_ms: u64) -> String {
        let vmstat = vmstat(raw);
        let row = ROWS.iter().find(|row| row.label == label);
        row.unwrap_or_else(|| panic!("no row {label}"))
            .cell(Counters {
                vmstat: &vmstat,
                elapsed_ms,
            })
    }

    #[test]
    fn pitfall_82_the_series_cells_follow_from_its_counters() {
        for published in &PUBLISHED {
            for &(label, expected) in published.derived {
                let found = cell(label, published.raw, published.elapsed_ms);
                assert_eq!(found, expected, "{label}");
            }
        }
        // 88.9 and 70.9 per cent are cut off, as 1000.0005 a second is rounded.
        let raw = [
            ("pgscan_kswapd", 1000),
            ("pgsteal_kswapd", 889),
            ("pgscan_direct", 1000),
            ("pgsteal_direct", 709),
        ];
        assert_eq!(cell("Kswapd efficiency", &raw, 1), "88%");
        assert_eq!(cell("Direct efficiency", &raw, 1), "70%");
        let fast = [("pgscan_kswapd", 2_000_001)];
        assert_eq!(cell("Kswapd velocity", &fast, 2_000_000), "1000.001");
    }

    /// The block layer counts sectors of 512 bytes and prints half of them: a page of 8 sectors is 4.
    #[test]
    fn pitfall_83_page_ins_and_outs_are_kib() {
        let one_page_each = [("pgpgin", 8 / 2), ("pgpgout", 8 / 2)];
        assert_eq!(cell("Page Ins", &one_page_each, 1), "4");
        assert_eq!(cell("Page Outs", &one_page_each, 1), "4");
    }

    #[test]
    fn pitfall_84_nothing_scanned_is_divided_by_nothing() {
        for elapsed_ms in [0, 1000] {
            assert_eq!(cell("Kswapd efficiency", &[], elapsed_ms), "100%");
            assert_eq!(cell("Direct efficiency", &[], elapsed_ms), "100%");
            assert_eq!(cell("Percentage direct scans", &[], elapsed_ms), "0%");
            assert_eq!(cell("Kswapd velocity", &[], elapsed_ms), "0.000");
        }
        assert_eq!(cell("Kswapd velocity", &[("pgscan_kswapd", 7)], 0), "0.000");
        // Frames that were scanned before the first reading and reclaimed after it.
        let odd = [
            ("pgsteal_kswapd", 5),
            ("pswpout", 9),
            ("nr_vmscan_write", 3),
        ];
        assert_eq!(cell("Kswapd efficiency", &odd, 1), "100%");
        assert_eq!(cell("Page writes file", &odd, 1), "0");
        let most = [("pgscan_direct", u64::MAX), ("pgscan_kswapd", u64::MAX)];
        assert_eq!(cell("Direct velocity", &most, 1), "18446744073709551.615");
    }

    #[test]
    fn rows_are_made_of_events_that_exist() {
        // Each event in turn changes the rows that it should: none of them is misspelt.
        let named = Event::ALL.iter().map(|event| event.name());
        let changed: Vec<_> = ROWS
            .iter()
            .filter(|row| {
                named.clone().any(|name| {
                    let at = |n| cell(row.label, &[(name, n)], 1000);
                    at(0) != at(1_000_000)
                })
            })
            .map(|row| row.label)
            .collect();
        let constant: Vec<_> = ROWS
            .iter()
            .map(|row| row.label)
            .filter(|label| !changed.contains(label))
            .collect();
        assert_eq!(constant, ["Page rescued immediate"]);
    }
}
