//! `node`.

use std::io::Read;

use queztl_api::{DrainReport, InitNode, JoinNode, NodeToken, NodeTokenRequest};

use super::session::{Session, failure};
use super::wait;
use crate::cli::{NodeCommand, OutputFormat};
use crate::output::{self, List, Made};
use crate::report::Failure;
use crate::status::Status;

/// The longest token that is read.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Makes, joins, shows, empties and leaves a cluster.
pub async fn node(session: &Session, command: NodeCommand) -> Result<Status, Failure> {
    let client = &session.client;
    match command {
        NodeCommand::Init { place, coordinator } => {
            let (name, listen, advertise) = (place.name, place.listen, place.advertise);
            let request = InitNode { name, listen, advertise, coordinator };
            client.init_node(&request).await.map_err(failure)?;
            joined(session).await
        }
        NodeCommand::Token { ttl, output } => {
            let request = NodeTokenRequest { expires_in_seconds: Some(ttl) };
            token(client.node_token(&request).await.map_err(failure)?, output.format)
        }
        NodeCommand::Join { token, place } => {
            let (name, listen, advertise) = (place.name, place.listen, place.advertise);
            let request = JoinNode { token: read_token(token)?, name, listen, advertise };
            client.join_node(&request).await.map_err(failure)?;
            joined(session).await
        }
        NodeCommand::List { output } => {
            let nodes = client.nodes().await.map_err(failure)?;
            output::print(&List(&nodes), output.format)
        }
        NodeCommand::Drain { node, undo: true, .. } | NodeCommand::Ready { node } => {
            let node = this(session, node).await?;
            client.ready_node(&node).await.map_err(failure)?;
            Ok(Status::Success)
        }
        NodeCommand::Drain { node, undo: false, output } => {
            let node = this(session, node).await?;
            let begun = client.drain_node(&node).await.map_err(failure)?;
            let ended = wait::finish(client, begun).await?;
            let report: DrainReport = serde_json::from_value(ended.result.unwrap_or_default()).map_err(|error| {
                Failure::host(format!("the node is drained, but its report cannot be read: {error}"))
            })?;
            drained(report, output.format)
        }
        NodeCommand::Leave { force } => {
            client.leave_cluster(force).await.map_err(failure)?;
            Ok(Status::Success)
        }
        NodeCommand::Remove { node } => {
            client.remove_node(&node).await.map_err(failure)?;
            Ok(Status::Success)
        }
    }
}

/// Says what the daemon is now.
async fn joined(session: &Session) -> Result<Status, Failure> {
    let nodes = session.client.nodes().await.map_err(failure)?;
    let own = nodes.iter().find(|node| node.this).map(|node| {
        let others = nodes.len() - 1;
        format!("{} at {}: a node of {} in all\n", node.name, node.address, others + 1)
    });
    Ok(crate::print(&own.unwrap_or_default()))
}

/// The token alone, so that a script can take it.
fn token(made: NodeToken, format: OutputFormat) -> Result<Status, Failure> {
    let (table, names) = (format!("{}\n", made.token), vec![made.token.clone()]);
    output::print(&Made { value: made, table, names }, format)
}

/// So that it need not be in the list of processes.
fn read_token(given: String) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given);
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::usage(format!("the token cannot be read from standard input: {error}")))?;
    Ok(text.trim().to_owned())
}

async fn this(session: &Session, node: Option<String>) -> Result<String, Failure> {
    if let Some(node) = node {
        return Ok(node);
    }
    let nodes = session.client.nodes().await.map_err(failure)?;
    let own = nodes.into_iter().find(|node| node.this).map(|node| node.name.to_string());
    own.ok_or_else(|| Failure::usage("this daemon is in no cluster: queztl-hv node init makes one"))
}

fn drained(report: DrainReport, format: OutputFormat) -> Result<Status, Failure> {
    let mut table: String = report.moved.iter().map(|moved| format!("{} is at {} now\n", moved.vm, moved.to)).collect();
    if report.moved.is_empty() {
        table = "there was no machine to move\n".into();
    }
    let names = report.moved.iter().map(|moved| moved.vm.clone()).collect();
    output::print(&Made { value: report, table, names }, format)
}
