//! `benchmark`.

use std::fmt::Write;

use queztl_api::{BenchmarkRequest, BenchmarkRun, BenchmarkSuite};

use super::lifecycle::report;
use super::session::{Session, failure};
use super::wait;
use crate::cli::{BenchmarkCommand, OutputFormat, SuiteArg};
use crate::output::{self, List, Made};
use crate::report::Failure;
use crate::status::Status;

/// Runs benchmarks, lists runs, shows and compares them.
pub async fn benchmark(session: &Session, command: BenchmarkCommand) -> Result<Status, Failure> {
    let client = &session.client;
    match command {
        BenchmarkCommand::Run { suites, rounds, note } => {
            let suites = suites.into_iter().map(Into::into).collect();
            let request = BenchmarkRequest { suites, rounds, note };
            let begun = client.run_benchmarks(&request).await.map_err(failure)?;
            let id = begun.target.clone().unwrap_or_default();
            let ended = wait::finish_all(client, vec![Ok(begun)]).await;
            let status = report(std::slice::from_ref(&id), ended)?;
            // What was measured before it failed is worth a look, too.
            let run = client.benchmark(&id).await.map_err(failure)?;
            crate::print(&figures(&run));
            Ok(status)
        }
        BenchmarkCommand::List { output } => {
            let runs = client.benchmarks().await.map_err(failure)?;
            output::print(&List(&runs), output.format)
        }
        BenchmarkCommand::Show { id, output } => {
            let run = client.benchmark(&id).await.map_err(failure)?;
            match output.format {
                OutputFormat::Table | OutputFormat::Wide => Ok(crate::print(&figures(&run))),
                format => {
                    output::print(&Made { table: String::new(), names: vec![run.id.clone()], value: run }, format)
                }
            }
        }
        BenchmarkCommand::Compare { before, after } => {
            let (before, after) = (client.benchmark(&before).await, client.benchmark(&after).await);
            Ok(crate::print(&comparison(&before.map_err(failure)?, &after.map_err(failure)?)))
        }
        BenchmarkCommand::Delete { ids } => {
            for id in &ids {
                client.delete_benchmark(id).await.map_err(failure)?;
            }
            Ok(Status::Success)
        }
    }
}

impl From<SuiteArg> for BenchmarkSuite {
    fn from(arg: SuiteArg) -> BenchmarkSuite {
        match arg {
            SuiteArg::Boot => BenchmarkSuite::Boot,
            SuiteArg::Clone => BenchmarkSuite::Clone,
            SuiteArg::Snapshot => BenchmarkSuite::Snapshot,
            SuiteArg::Disk => BenchmarkSuite::Disk,
        }
    }
}

/// The figures of a run, one a line.
fn figures(run: &BenchmarkRun) -> String {
    let mut text = String::new();
    for figure in &run.figures {
        let spread = figure.values.iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(" ");
        // A string takes everything.
        let _ = writeln!(text, "{:<44} {:>12.1} {:<4} ({spread})", figure.name, figure.median, figure.unit);
    }
    text
}

/// Two runs beside each other; the ratio is how much better the second is.
fn comparison(before: &BenchmarkRun, after: &BenchmarkRun) -> String {
    let mut text = format!("{:<44} {:>12} {:>12} {:<4} {:>8}\n", "FIGURE", "BEFORE", "AFTER", "UNIT", "BETTER");
    for old in &before.figures {
        let same = |new: &&queztl_api::BenchmarkFigure| new.suite == old.suite && new.name == old.name;
        let Some(new) = after.figures.iter().find(same) else { continue };
        let ratio = if old.more_is_better { new.median / old.median } else { old.median / new.median };
        let ratio = if ratio.is_finite() { format!("{ratio:.2} x") } else { "-".to_owned() };
        let _ = writeln!(text, "{:<44} {:>12.1} {:>12.1} {:<4} {ratio:>8}", old.name, old.median, new.median, old.unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use queztl_api::{BenchmarkFigure, OperationState, Timestamp};

    use super::*;

    fn run(boot_ms: f64, reads: f64) -> BenchmarkRun {
        let figure = |suite, name: &str, unit: &str, more_is_better, median| BenchmarkFigure {
            suite,
            name: name.into(),
            unit: unit.into(),
            more_is_better,
            values: vec![median],
            median,
        };
        BenchmarkRun {
            id: "1".into(),
            operation: "2".into(),
            state: OperationState::Succeeded,
            problem: None,
            note: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            version: "1".into(),
            host: "h".into(),
            kernel: "k".into(),
            cpus: 2,
            machines: 0,
            figures: vec![
                figure(BenchmarkSuite::Boot, "boot", "ms", false, boot_ms),
                figure(BenchmarkSuite::Disk, "reads", "1/s", true, reads),
            ],
        }
    }

    #[test]
    fn a_comparison_says_how_much_better_the_second_is() {
        let text = comparison(&run(100.0, 1000.0), &run(50.0, 500.0));
        let ratios: Vec<&str> = text.lines().skip(1).map(|line| line[line.len() - 6..].trim()).collect();
        assert_eq!(ratios, ["2.00 x", "0.50 x"]);
        let text = comparison(&run(0.0, 0.0), &run(0.0, 0.0));
        assert!(text.lines().skip(1).all(|line| line.ends_with('-')), "{text}");
    }
}
