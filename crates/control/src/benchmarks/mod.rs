//! Measurements that the daemon makes of itself: the same each time, so that two runs can be compared.
//!
//! Promises:
//! - a run is in the store before it begins, with all that was measured when it ends, also when it is cancelled or fails;
//! - one run at a time, and its machines are gone afterwards: by its end, its failure, or the next daemon;
//! - what is measured is the ordinary way: machines, clones and snapshots are made as for anybody.

mod disk;
mod machines;

use std::sync::Arc;

use queztl_api::{
    BenchmarkFigure, BenchmarkRequest, BenchmarkRun, BenchmarkSuite, Code, MAX_BENCHMARK_ROUNDS, Operation,
    OperationKind, OperationState, Problem, Timestamp,
};
use serde_json::json;

use crate::manager::Core;
use crate::operations::Task;
use crate::store::BENCHMARKS;
use crate::vms::naming::new_id;
use machines::Bench;

/// Runs that are kept.
const MAX_RUNS: usize = 200;
/// The longest note, characters.
const MAX_NOTE: usize = 200;
/// Machines of a run have this label, with the run's identifier.
const LABEL: &str = "queztl.benchmark";

impl Core {
    /// All runs, newest first.
    pub(crate) fn benchmarks(&self) -> Result<Vec<BenchmarkRun>, Problem> {
        Ok(self.store.list(BENCHMARKS)?.into_iter().rev().map(|(_, run)| run).collect())
    }

    pub(crate) fn benchmark(&self, id: &str) -> Result<BenchmarkRun, Problem> {
        self.store.get(BENCHMARKS, id)?.ok_or_else(|| Problem::not_found("run of benchmarks", id))
    }

    pub(crate) fn delete_benchmark(&self, id: &str) -> Result<(), Problem> {
        self.store.write(|change| {
            let run = change.get(BENCHMARKS, id)?.ok_or_else(|| Problem::not_found("run of benchmarks", id))?;
            if run.state == OperationState::Running {
                return Err(Problem::new(Code::State, format!("run {id} goes on: cancel its operation first")));
            }
            Ok(change.remove(BENCHMARKS, id)?)
        })
    }

    pub(crate) fn run_benchmarks(self: &Arc<Self>, request: BenchmarkRequest) -> Result<Operation, Problem> {
        let BenchmarkRequest { mut suites, rounds, note } = request;
        if !(1..=MAX_BENCHMARK_ROUNDS).contains(&rounds) {
            return Err(Problem::invalid("rounds", format!("is from 1 to {MAX_BENCHMARK_ROUNDS}")));
        }
        if note.chars().count() > MAX_NOTE || note.chars().any(char::is_control) {
            return Err(Problem::invalid("note", format!("is one line of at most {MAX_NOTE} characters")));
        }
        if suites.is_empty() {
            suites = BenchmarkSuite::ALL.to_vec();
        }
        suites.sort();
        suites.dedup();
        let run = self.new_run(note);
        let (id, noted) = (run.id.clone(), run.clone());
        self.begin(
            OperationKind::Benchmark,
            Some(id),
            |change| {
                let mut runs = change.list_with(BENCHMARKS, "")?;
                if runs.iter().any(|(_, run)| run.state == OperationState::Running) {
                    return Err(Problem::new(Code::Busy, "a run of benchmarks goes on: two would measure each other"));
                }
                let old = (runs.len() + 1).saturating_sub(MAX_RUNS);
                for (id, _) in runs.drain(..old) {
                    change.remove(BENCHMARKS, &id)?;
                }
                Ok(change.put(BENCHMARKS, &noted.id, &noted)?)
            },
            move |core, task| core.measure(task, run, &suites, rounds),
        )
    }

    fn new_run(&self, note: String) -> BenchmarkRun {
        let names = rustix::system::uname();
        let running = self.machines.all().iter().filter(|machine| machine.lock().live.is_some()).count();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        BenchmarkRun {
            id: new_id(),
            operation: String::new(),
            state: OperationState::Running,
            problem: None,
            note,
            started_at: Timestamp::now(),
            ended_at: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: names.nodename().to_string_lossy().into_owned(),
            kernel: names.release().to_string_lossy().into_owned(),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            machines: u32::try_from(running).unwrap_or(u32::MAX),
            figures: Vec::new(),
        }
    }

    /// The work of the operation.
    fn measure(
        self: &Arc<Self>,
        task: &Task,
        mut run: BenchmarkRun,
        suites: &[BenchmarkSuite],
        rounds: u32,
    ) -> Result<serde_json::Value, Problem> {
        run.operation = task.id();
        task.cancellable(true);
        let mut figures = Figures::default();
        let measured = self.measure_all(task, &run.id, suites, rounds, &mut figures);
        task.cancellable(false);
        self.remove_bench_machines(&run.id);
        run.figures = figures.0;
        run.ended_at = Some(Timestamp::now());
        run.problem = measured.as_ref().err().map(|problem| problem.detail.clone());
        run.state = match &measured {
            Ok(()) => OperationState::Succeeded,
            Err(problem) if problem.code == Code::Cancelled => OperationState::Cancelled,
            Err(_) => OperationState::Failed,
        };
        self.store.write(|change| Ok(change.put(BENCHMARKS, &run.id, &run)?))?;
        measured.map(|()| json!(run))
    }

    fn measure_all(
        self: &Arc<Self>,
        task: &Task,
        id: &str,
        suites: &[BenchmarkSuite],
        rounds: u32,
        figures: &mut Figures,
    ) -> Result<(), Problem> {
        let bench = Bench { core: self, task, id };
        let total = suites.len() as u64 * u64::from(rounds);
        let steps = suites.iter().flat_map(|suite| std::iter::repeat_n(*suite, rounds as usize));
        for (done, suite) in steps.enumerate() {
            task.check()?;
            task.progress(done as u64, total, "measurements");
            match suite {
                BenchmarkSuite::Boot => bench.boot(figures)?,
                BenchmarkSuite::Clone => bench.clones(figures)?,
                BenchmarkSuite::Snapshot => bench.snapshot(figures)?,
                BenchmarkSuite::Disk => disk::measure(&self.config.home, task, figures)?,
            }
        }
        task.progress(total, total, "measurements");
        Ok(())
    }

    /// Ends what the daemon before was measuring.
    pub(crate) fn recover_benchmarks(self: &Arc<Self>) -> Result<(), Problem> {
        for (id, mut run) in self.store.list(BENCHMARKS)? {
            if run.state == OperationState::Running {
                self.remove_bench_machines(&id);
                run.state = OperationState::Failed;
                run.problem = Some("the daemon ended before it was done".to_owned());
                run.ended_at = Some(Timestamp::now());
                self.store.write(|change| Ok(change.put(BENCHMARKS, &id, &run)?))?;
            }
        }
        Ok(())
    }
}

/// What was measured so far.
#[derive(Debug, Default)]
struct Figures(Vec<BenchmarkFigure>);

impl Figures {
    /// A time, of which less is better.
    fn milliseconds(&mut self, suite: BenchmarkSuite, name: &str, time: std::time::Duration) {
        self.add(suite, name, "ms", false, time.as_secs_f64() * 1e3);
    }

    fn add(&mut self, suite: BenchmarkSuite, name: &str, unit: &str, more_is_better: bool, value: f64) {
        let known = self.0.iter().position(|figure| figure.suite == suite && figure.name == name);
        let number = known.unwrap_or_else(|| {
            let (name, unit) = (name.to_owned(), unit.to_owned());
            self.0.push(BenchmarkFigure { suite, name, unit, more_is_better, values: Vec::new(), median: value });
            self.0.len() - 1
        });
        let figure = &mut self.0[number];
        figure.values.push(value);
        figure.median = median(&figure.values);
    }
}

/// The value in the middle; of an even number, the mean of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_gathers_the_values_of_all_rounds() {
        let mut figures = Figures::default();
        for value in [3.0, 1.0, 2.0, 9.0] {
            figures.add(BenchmarkSuite::Disk, "reads", "1/s", true, value);
            figures.add(BenchmarkSuite::Boot, "reads", "1/s", true, value);
        }
        assert_eq!(figures.0.len(), 2);
        assert_eq!((figures.0[0].values.len(), figures.0[0].median), (4, 2.5));
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[]), 0.0);
    }
}
