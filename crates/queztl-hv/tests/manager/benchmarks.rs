//! Measurements that the daemon makes of itself.

use queztl_api::{BenchmarkRequest, BenchmarkRun, BenchmarkSuite, Code, OperationState};
use queztl_control::{Manager, Service};

use crate::common::*;

fn request(suites: &[BenchmarkSuite]) -> BenchmarkRequest {
    BenchmarkRequest { suites: suites.to_vec(), rounds: 1, note: "a test".into() }
}

async fn run(manager: &Manager, suites: &[BenchmarkSuite]) -> BenchmarkRun {
    let operation = done(manager, manager.run_benchmarks(request(suites)).await).await;
    let run = manager.benchmark(operation.target.as_deref().unwrap()).await.unwrap();
    assert_eq!((run.state, run.operation.as_str()), (OperationState::Succeeded, operation.id.as_str()));
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_measured_and_the_run_is_kept_for_the_next_daemon() {
    let home = Home::new();
    let manager = home.manager().await;

    let run = run(&manager, &[BenchmarkSuite::Disk]).await;
    manager.close().await;
    drop(manager);
    let next = home.manager().await;

    assert_eq!(run.figures.len(), 2, "{run:?}");
    assert!(run.figures.iter().all(|figure| figure.more_is_better && figure.median > 0.0), "{run:?}");
    assert_eq!(next.benchmarks().await.unwrap(), std::slice::from_ref(&run));
    next.delete_benchmark(&run.id).await.unwrap();
    assert_eq!(next.benchmarks().await.unwrap(), []);
    let left = std::fs::read_dir(home.folder.path()).unwrap();
    assert!(!left.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".benchmark")));
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_would_measure_each_other_and_one_that_is_cancelled_keeps_what_it_has() {
    let home = Home::new();
    let manager = home.manager().await;
    let all = BenchmarkRequest { rounds: 20, ..request(&[BenchmarkSuite::Disk]) };

    let first = manager.run_benchmarks(all.clone()).await.unwrap();
    let second = manager.run_benchmarks(all).await.unwrap_err();
    let id = first.target.clone().unwrap();
    let refused = manager.delete_benchmark(&id).await.unwrap_err();
    while !manager.operation(&first.id).await.unwrap().cancellable {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    manager.cancel_operation(&first.id).await.unwrap();
    let ended = end(&manager, Ok(first)).await;

    assert_eq!((second.code, refused.code), (Code::Busy, Code::State));
    assert_eq!(ended.state, OperationState::Cancelled);
    assert_eq!(manager.benchmark(&id).await.unwrap().state, OperationState::Cancelled);
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_measured_and_gone_afterwards() {
    if linux().is_none() {
        return;
    }
    let home = Home::new();
    let manager = home.manager().await;

    let run = run(&manager, &[BenchmarkSuite::Snapshot, BenchmarkSuite::Boot]).await;

    let names: Vec<&str> = run.figures.iter().map(|figure| figure.name.as_str()).collect();
    assert_eq!(
        names,
        ["until the first output", "until the agent answers", "the guest stands still", "until it is stored"]
    );
    assert!(run.figures.iter().all(|figure| figure.unit == "ms" && figure.median > 0.0), "{run:?}");
    assert!(run.figures[0].median <= run.figures[1].median, "{run:?}");
    assert_eq!(manager.vms().await.unwrap().len(), 0);
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_make_no_sense_are_refused() {
    let home = Home::new();
    let manager = home.manager().await;
    for request in [
        BenchmarkRequest { rounds: 0, ..BenchmarkRequest::default() },
        BenchmarkRequest { rounds: 21, ..BenchmarkRequest::default() },
        BenchmarkRequest { note: "x".repeat(201), ..BenchmarkRequest::default() },
        BenchmarkRequest { note: "a\nb".into(), ..BenchmarkRequest::default() },
    ] {
        assert_eq!(manager.run_benchmarks(request).await.unwrap_err().code, Code::Invalid);
    }
    assert_eq!(manager.benchmarks().await.unwrap(), []);
    manager.close().await;
}
