//! Waiting for operations.
//!
//! On a terminal one line shows how far they are; in a pipe nothing is said. The first Ctrl-C says that the work goes on and
//! how to find it, the second one leaves; nothing is cancelled by leaving.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use queztl_api::{Operation, OperationState};
use queztl_client::Client;
use tokio::signal::unix::{SignalKind, signal};

use super::session::{failure, of_problem};
use crate::output::text::{plain, size, word};
use crate::report::Failure;

/// When a line of progress first appears: what is quicker needs none.
const SHOWN_AFTER: Duration = Duration::from_millis(300);

/// Waits for the end of one operation.
///
/// # Errors
/// It failed or was cancelled, the connection broke, or the user left.
pub async fn finish(client: &Client, operation: Operation) -> Result<Operation, Failure> {
    let mut all = finish_all(client, vec![Ok(operation)]).await;
    all.pop().unwrap_or_else(|| Err(Failure::host("the operation is lost")))
}

/// Waits for the end of all of them; each that could not even be begun keeps its failure.
pub async fn finish_all(client: &Client, begun: Vec<Result<Operation, Failure>>) -> Vec<Result<Operation, Failure>> {
    let line = Arc::new(Line::new(begun.iter().filter_map(|begun| begun.as_ref().ok())));
    let ids: Vec<String> = begun.iter().flatten().map(|operation| operation.id.clone()).collect();
    let each = begun.into_iter().enumerate().map(|(index, begun)| {
        let line = line.clone();
        async move {
            let operation = begun?;
            let ended = client.follow(operation, |now| line.show(index, now)).await.map_err(failure)?;
            match (ended.state, &ended.problem) {
                (OperationState::Succeeded, _) => Ok(ended),
                (_, Some(problem)) => Err(of_problem(problem)),
                _ => Err(Failure::stopped(format!("operation {} was cancelled", ended.id))),
            }
        }
    });
    let waiting = futures_util::future::join_all(each);
    let ended = interruptible(waiting, &ids, &line).await;
    line.clear();
    ended.unwrap_or_else(|left| vec![Err(left)])
}

/// Waits for something that Ctrl-C does not end.
async fn interruptible<T>(waiting: impl Future<Output = T>, ids: &[String], line: &Line) -> Result<T, Failure> {
    tokio::pin!(waiting);
    let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return Ok(waiting.await) };
    let named = ids.join(" ");
    tokio::select! {
        done = &mut waiting => return Ok(done),
        _ = interrupt.recv() => {}
    }
    line.clear();
    eprintln!(
        "queztl-hv: the work goes on as operation {named}; queztl-hv operations cancel {named} ends it; \
         Ctrl-C again leaves it alone"
    );
    tokio::select! {
        done = &mut waiting => Ok(done),
        _ = interrupt.recv() => {
            Err(Failure::stopped(format!("left; queztl-hv operations wait {named} waits for it again")))
        }
    }
}

/// The line of progress.
struct Line {
    on_terminal: bool,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    texts: Vec<(usize, String)>,
    count: usize,
    ended: usize,
    shown: bool,
}

impl Line {
    fn new<'a>(begun: impl Iterator<Item = &'a Operation>) -> Line {
        let on_terminal = std::io::stderr().is_terminal();
        Line {
            on_terminal,
            since: Instant::now(),
            state: Mutex::new(State { count: begun.count(), ..State::default() }),
        }
    }

    fn show(&self, index: usize, operation: &Operation) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.texts.retain(|(other, _)| *other != index);
        if operation.state.is_over() {
            state.ended += 1;
        } else {
            state.texts.push((index, describe(operation)));
        }
        if !self.on_terminal || self.since.elapsed() < SHOWN_AFTER {
            return;
        }
        let Some((_, text)) = state.texts.first() else { return };
        let many = if state.count > 1 { format!("{} of {}, ", state.ended + 1, state.count) } else { String::new() };
        eprint!("\r{many}{text}, {} s\x1b[K", self.since.elapsed().as_secs());
        // A terminal that is gone shows nothing.
        let _ = std::io::stderr().flush();
        state.shown = true;
    }

    fn clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.shown) {
            eprint!("\r\x1b[K");
        }
    }
}

/// `snapshot web-1: 120 MiB of 512 MiB`.
fn describe(operation: &Operation) -> String {
    let target = operation.target.as_deref().map(|target| format!(" {}", plain(target))).unwrap_or_default();
    let progress = operation.progress.as_ref().map(|progress| match progress.unit.as_str() {
        "bytes" => format!(": {} of {}", size(progress.done), size(progress.total)),
        unit => format!(": {} of {} {}", progress.done, progress.total, plain(unit)),
    });
    format!("{}{target}{}", word(&operation.kind).replace('-', " "), progress.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use queztl_api::{OperationKind, Progress, Timestamp};

    use super::*;

    #[test]
    fn progress_is_told_in_the_units_of_the_work() {
        let mut operation = Operation {
            id: "op-1".into(),
            kind: OperationKind::ImportImage,
            state: OperationState::Running,
            target: Some("debian\x1b".into()),
            created_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            progress: None,
            cancellable: true,
            result: None,
            problem: None,
        };
        assert_eq!(describe(&operation), "import image debian ");
        operation.progress = Some(Progress { done: 1 << 20, total: 1 << 30, unit: "bytes".into() });
        assert_eq!(describe(&operation), "import image debian : 1 MiB of 1 GiB");
        operation.progress = Some(Progress { done: 3, total: 10, unit: "machines".into() });
        assert_eq!(describe(&operation), "import image debian : 3 of 10 machines");
    }
}
