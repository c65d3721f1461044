//! Names for completion. A daemon that does not run is not started for them, and one that is slow gives none.

use std::time::Duration;

use clap_complete::CompletionCandidate;

use super::session::{Session, runtime};
use crate::cli::DaemonArgs;
use crate::output::text::word;

/// How long a shell may be held up.
const LIMIT: Duration = Duration::from_millis(500);

/// The machines, with their states.
pub fn vms() -> Vec<CompletionCandidate> {
    ask(async |session| {
        let vms = session.client.vms().await.ok()?;
        Some(vms.into_iter().map(|vm| (vm.name.to_string(), word(&vm.state))).collect())
    })
}

/// The nodes of the cluster, with their states.
pub fn nodes() -> Vec<CompletionCandidate> {
    ask(async |session| {
        let nodes = session.client.nodes().await.ok()?;
        Some(nodes.into_iter().map(|node| (node.name.to_string(), word(&node.state))).collect())
    })
}

/// The images of the store.
pub fn images() -> Vec<CompletionCandidate> {
    ask(async |session| {
        let images = session.client.images().await.ok()?;
        Some(images.into_iter().map(|image| (image.name.to_string(), word(&image.format))).collect())
    })
}

fn ask(question: impl AsyncFnOnce(&Session) -> Option<Vec<(String, String)>>) -> Vec<CompletionCandidate> {
    let (Ok(session), Ok(runtime)) = (Session::without_start(&DaemonArgs::default()), runtime()) else {
        return Vec::new();
    };
    let asked = async { tokio::time::timeout(LIMIT, question(&session)).await.ok().flatten() };
    let found = runtime.block_on(asked).unwrap_or_default();
    found.into_iter().map(|(name, help)| CompletionCandidate::new(name).help(Some(help.into()))).collect()
}
