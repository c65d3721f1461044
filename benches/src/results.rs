//! What the programs print, read back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::machine::Machine;

/// One benchmark on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Shortest run, nanoseconds.
    pub ns: u64,
    /// Proof of the work done.
    pub checksum: u64,
    /// Instructions of one run; 0 where it is not known.
    pub instructions: u64,
}

/// One machine's column of the table.
#[derive(Debug)]
pub struct Column {
    /// Which machine.
    pub machine: Machine,
    /// Benchmarks in the order in which they ran.
    pub figures: Vec<(String, Figure)>,
    /// Checksums of `cpucheck`, by group.
    pub checks: BTreeMap<String, u64>,
    /// Median time from process start to the first command; `None` on the host.
    pub boot: Option<Duration>,
}

impl Column {
    /// Reads the output of the programs on one machine.
    pub fn parse(machine: Machine, output: &str, boot: Option<Duration>) -> Column {
        Column { machine, figures: figures(output), checks: checks(output), boot }
    }

    /// The figure of one benchmark.
    pub fn figure(&self, name: &str) -> Option<Figure> {
        self.figures.iter().find(|(n, _)| n == name).map(|(_, f)| *f)
    }
}

/// The `bench` lines of an output; lines of another form are not ours.
fn figures(output: &str) -> Vec<(String, Figure)> {
    output.lines().filter_map(figure).collect()
}

fn figure(line: &str) -> Option<(String, Figure)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["bench", name, ns, checksum, instructions] = words[..] else { return None };
    let figure = Figure {
        ns: ns.parse().ok().filter(|&ns| ns > 0)?,
        checksum: u64::from_str_radix(checksum, 16).ok()?,
        instructions: instructions.parse().ok()?,
    };
    Some((name.to_owned(), figure))
}

/// The `check` lines of an output.
fn checks(output: &str) -> BTreeMap<String, u64> {
    let check = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["check", name, checksum] = words[..] else { return None };
        Some((name.to_owned(), u64::from_str_radix(checksum, 16).ok()?))
    };
    output.lines().filter_map(check).collect()
}

/// A sentence for each checksum that differs from the first machine's.
pub fn differences(columns: &[Column]) -> Vec<String> {
    let Some((first, others)) = columns.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    for other in others {
        for (name, figure) in &other.figures {
            let wanted = first.figure(name).map(|f| f.checksum);
            if wanted.is_some_and(|w| w != figure.checksum) {
                found.push(format!("{name} on {} is not what {} computed", other.machine, first.machine));
            }
        }
        for (name, checksum) in &other.checks {
            if first.checks.get(name).is_some_and(|w| w != checksum) {
                found.push(format!("instructions {name} on {} differ from {}", other.machine, first.machine));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(machine: Machine, output: &str) -> Column {
        Column::parse(machine, output, None)
    }

    #[test]
    fn bench_lines_are_found_among_others() {
        let found = figures("[    0.1] Linux\nbench sieve 100 00ff 7\r\nbench broken\nbench zero 0 1 0\n");
        assert_eq!(found, [("sieve".to_owned(), Figure { ns: 100, checksum: 255, instructions: 7 })]);
    }

    #[test]
    fn another_checksum_is_a_difference() {
        let host = column(Machine::Host, "bench a 1 1 0\ncheck add 5\n");
        let same = column(Machine::Tcg, "bench a 9 1 0\nbench b 1 3 0\ncheck add 5\n");
        let other = column(Machine::Soft, "bench a 9 2 0\ncheck add 6\n");
        assert!(differences(&[host, same]).is_empty());
        let host = column(Machine::Host, "bench a 1 1 0\ncheck add 5\n");
        assert_eq!(differences(&[host, other]).len(), 2);
    }
}
