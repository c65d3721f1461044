//! The table that a person reads.

use std::fmt::Write;

use crate::machine::Machine;
use crate::results::{Column, Figure};

/// All columns side by side: times, their ratios to the host, geometric means, boot times.
pub fn render(columns: &[Column]) -> String {
    let host = columns.iter().find(|c| c.machine == Machine::Host);
    let mut text = String::new();
    line(&mut text, "benchmark", columns.iter().map(|c| heading(c, host.is_some())));
    let names = columns.iter().max_by_key(|c| c.figures.len()).map(|c| &c.figures);
    for (name, _) in names.into_iter().flatten() {
        let base = host.and_then(|h| h.figure(name));
        line(&mut text, name, columns.iter().map(|c| cell(c.figure(name), base, c.machine)));
    }
    if let Some(host) = host {
        line(&mut text, "geometric mean", columns.iter().map(|c| mean(c, host)));
    }
    line(&mut text, "MIPS (known mix)", columns.iter().map(mips));
    line(&mut text, "boot to first command", columns.iter().map(boot));
    text
}

fn line(text: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    // Writing to a string does not fail.
    let _ = write!(text, "{name:<22}");
    for cell in cells {
        let _ = write!(text, "{cell:>22}");
    }
    text.push('\n');
}

fn heading(column: &Column, ratios: bool) -> String {
    if column.machine == Machine::Host || !ratios {
        format!("{} ms", column.machine)
    } else {
        format!("{} ms (x host)", column.machine)
    }
}

fn cell(figure: Option<Figure>, base: Option<Figure>, machine: Machine) -> String {
    let Some(figure) = figure else { return "–".to_owned() };
    let ms = figure.ns as f64 / 1e6;
    match base {
        Some(base) if machine != Machine::Host => {
            format!("{} ({})", digits(ms), digits(figure.ns as f64 / base.ns as f64))
        }
        _ => digits(ms),
    }
}

/// Three significant digits, no more than people read.
fn digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn mean(column: &Column, host: &Column) -> String {
    let ratios: Vec<f64> =
        column.figures.iter().filter_map(|(name, f)| Some((f.ns as f64 / host.figure(name)?.ns as f64).ln())).collect();
    if ratios.is_empty() {
        return "–".to_owned();
    }
    format!("({})", digits((ratios.iter().sum::<f64>() / ratios.len() as f64).exp()))
}

fn mips(column: &Column) -> String {
    let known = column.figures.iter().find(|(_, f)| f.instructions > 0);
    known.map_or("–".to_owned(), |(_, f)| digits(f.instructions as f64 * 1e3 / f.ns as f64))
}

fn boot(column: &Column) -> String {
    column.boot.map_or("–".to_owned(), |b| format!("{} ms", b.as_millis()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn column(machine: Machine, ns: u64) -> Column {
        let figure = Figure { ns, checksum: 1, instructions: 1000 };
        Column { machine, figures: vec![("sieve".into(), figure)], checks: BTreeMap::new(), boot: None }
    }

    #[test]
    fn ratios_are_against_the_host() {
        let mut soft = column(Machine::Soft, 40_000_000);
        soft.boot = Some(Duration::from_millis(1234));
        let text = render(&[column(Machine::Host, 2_000_000), soft]);
        assert!(text.contains("40.0 (20.0)"), "{text}");
        assert!(text.contains("1234 ms"), "{text}");
    }

    #[test]
    fn a_benchmark_that_a_machine_lacks_is_a_dash() {
        let mut soft = column(Machine::Soft, 1);
        soft.figures.clear();
        let text = render(&[column(Machine::Host, 2), soft]);
        assert!(text.lines().nth(1).unwrap().ends_with('–'), "{text}");
    }
}
