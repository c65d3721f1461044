//! What a dead daemon was at.
//!
//! The records of machines, snapshots and images say what is whole: what is not is removed when the manager opens its store,
//! and what was to be deleted is deleted then. Here the operations themselves get their end.

use jiff::Timestamp;
use queztl_api::{Code, OperationKind, Problem};

use super::{KEPT, close, note_end};
use crate::manager::Core;
use crate::store::OPERATIONS;

impl Core {
    /// Ends the operations of the daemon before, and forgets old ones. Comes after machines, snapshots and images have been
    /// put in order.
    pub(crate) fn recover_operations(&self) -> Result<(), Problem> {
        let oldest = Timestamp::now().saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        let records = self.store.list(OPERATIONS)?;
        self.store.write(|change| {
            for (id, record) in &records {
                let mut operation = record.operation.clone();
                match operation.ended_at {
                    Some(end) if end < oldest => change.remove(OPERATIONS, id)?,
                    Some(_) => {}
                    None => {
                        let end = end_of(operation.kind);
                        close(&mut operation, end);
                        note_end(change, &operation)?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// What became of the work of an operation whose daemon died.
fn end_of(kind: OperationKind) -> Result<serde_json::Value, Problem> {
    let text = match kind {
        OperationKind::Protect => "the daemon ended before the first copies were whole; the next one goes on with them",
        OperationKind::Delete | OperationKind::DeleteSnapshot => return Ok(serde_json::Value::Null),
        OperationKind::Create
        | OperationKind::Clone
        | OperationKind::Receive
        | OperationKind::Drain
        | OperationKind::KeepCopy
        | OperationKind::Snapshot
        | OperationKind::ImportImage
        | OperationKind::CreateImage
        | OperationKind::ConvertImage => "the daemon ended before this was done, and it was undone: ask again",
        _ => "the daemon ended before this was done: look at how things are, and ask again if need be",
    };
    Err(Problem::new(Code::Internal, text))
}
