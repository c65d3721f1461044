//! Nodes of a cluster.
//!
//! The paths below `/v1/cluster` are for nodes, on their own port; see [`crate::api::gate`].

use axum::Extension;
use axum::extract::State;
use http::StatusCode;
use queztl_api::{
    Admission, AdmissionRequest, AgreedChange, AgreedChanged, AgreedQuery, AgreedValue, Code, InitNode, JoinNode, Node,
    NodeHello, NodeStatus, NodeToken, NodeTokenRequest, Operation, Page, PageQuery,
};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::answer::{Accepted, Answer, Created, Failure, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Nothing, Optional, Query, Segments};
use crate::api::gate::Peer;
use crate::api::page::{Order, page};

/// Lists the nodes of this daemon's cluster, by name; none if it is in none.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", security(("token" = ["read"])),
    params(PageQuery), responses((status = 200, description = "A part of the list.", body = Page<Node>)))]
pub async fn list_nodes(State(app): State<App>, Query(query): Query<PageQuery>) -> Answer<Json<Page<Node>>> {
    page(app.service().nodes().await?, &query, Order::Ascending, |node| node.name.to_string()).map(Json)
}

/// Removes a node that is gone for good. Its certificate is worth nothing from then on.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", security(("token" = ["admin"])),
    params(("node" = String, Path, description = "Its name.")),
    responses((status = 204, description = "It is no node any more.")))]
pub async fn remove_node(State(app): State<App>, Segments(node): Segments<Key>) -> Answer<StatusCode> {
    app.service().remove_node(&node).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Empties a node: it takes no new machines, and its own move to the others. Its result is a `DrainReport`.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", security(("token" = ["admin"])),
    params(("node" = String, Path, description = "Its name.")),
    responses((status = 202, description = "Its machines move.", body = Operation)))]
pub async fn drain_node(State(app): State<App>, Segments(node): Segments<Key>, _: Nothing) -> Answer<Accepted> {
    Ok(Accepted(app.service().drain_node(&node).await?))
}

/// Ends a node's draining: it takes machines again.
#[utoipa::path(delete, path = "/v1/nodes/{node}/drain", tag = "nodes", security(("token" = ["admin"])),
    params(("node" = String, Path, description = "Its name.")),
    responses((status = 204, description = "It takes machines again.")))]
pub async fn ready_node(State(app): State<App>, Segments(node): Segments<Key>) -> Answer<StatusCode> {
    app.service().ready_node(&node).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells what this daemon has to say as a node.
#[utoipa::path(get, path = "/v1/node", tag = "nodes", security(("token" = ["read"])),
    responses((status = 200, description = "Its figures.", body = NodeStatus)))]
pub async fn node_status(State(app): State<App>) -> Answer<Json<NodeStatus>> {
    Ok(Json(app.service().node_status().await?))
}

/// How a node leaves.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LeaveQuery {
    /// Also if machines, copies or what the nodes agree on are here.
    #[serde(default)]
    force: bool,
}

/// Ends this daemon's part in its cluster.
#[utoipa::path(delete, path = "/v1/node", tag = "nodes", security(("token" = ["admin"])), params(LeaveQuery),
    responses((status = 204, description = "It is no node any more.")))]
pub async fn leave_cluster(State(app): State<App>, Query(query): Query<LeaveQuery>) -> Answer<StatusCode> {
    app.service().leave_cluster(query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a cluster whose founder is this daemon.
#[utoipa::path(post, path = "/v1/node/init", tag = "nodes", security(("token" = ["admin"])),
    request_body = Option<InitNode>, responses((status = 204, description = "It is a node.")))]
pub async fn init_node(State(app): State<App>, Optional(request): Optional<InitNode>) -> Answer<StatusCode> {
    app.service().init_node(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes this daemon a node of another one's cluster.
#[utoipa::path(post, path = "/v1/node/join", tag = "nodes", security(("token" = ["admin"])),
    request_body = JoinNode, responses((status = 204, description = "It is a node.")))]
pub async fn join_node(State(app): State<App>, Json(request): Json<JoinNode>) -> Answer<StatusCode> {
    app.service().join_node(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a token that admits one new node. It is shown this once.
#[utoipa::path(post, path = "/v1/node/token", tag = "nodes", security(("token" = ["admin"])),
    request_body = Option<NodeTokenRequest>,
    responses((status = 201, description = "The token.", body = NodeToken)))]
pub async fn node_token(
    State(app): State<App>,
    Optional(request): Optional<NodeTokenRequest>,
) -> Answer<Created<NodeToken>> {
    Ok(Created(app.service().node_token(request).await?))
}

/// Gives a daemon with a token its certificate. On the nodes' port, and without a certificate.
#[utoipa::path(post, path = "/v1/cluster/admission", tag = "nodes", security(("token" = ["admin"])),
    request_body = AdmissionRequest,
    responses((status = 200, description = "Its certificate.", body = Admission)))]
pub async fn admission(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<AdmissionRequest>,
) -> Answer<Json<Admission>> {
    match peer {
        Peer::Stranger { .. } | Peer::Node { .. } => Ok(Json(app.service().admission(request).await?)),
        _ => Err(for_nodes()),
    }
}

/// Takes note of where a node is. The first time, it becomes a member. On the nodes' port.
#[utoipa::path(post, path = "/v1/cluster/hello", tag = "nodes", security(("token" = ["admin"])),
    request_body = NodeHello, responses((status = 204, description = "It is a member.")))]
pub async fn hello(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Json(hello): Json<NodeHello>,
) -> Answer<StatusCode> {
    let Peer::Node { certificate, .. } = peer else { return Err(for_nodes()) };
    app.service().hello(certificate, hello).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what the nodes have agreed on. On the nodes' port, at the founder.
#[utoipa::path(post, path = "/v1/cluster/agreed", tag = "nodes", security(("token" = ["admin"])),
    request_body = AgreedQuery,
    responses((status = 200, description = "The values whose keys begin so.", body = Vec<AgreedValue>)))]
pub async fn agreed(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Json(query): Json<AgreedQuery>,
) -> Answer<Json<Vec<AgreedValue>>> {
    match peer {
        Peer::Node { .. } => Ok(Json(app.service().agreed(query).await?)),
        _ => Err(for_nodes()),
    }
}

/// Changes what the nodes have agreed on, by compare-and-swap. On the nodes' port, at the founder.
#[utoipa::path(post, path = "/v1/cluster/agree", tag = "nodes", security(("token" = ["admin"])),
    request_body = AgreedChange,
    responses((status = 200, description = "Whether it has changed.", body = AgreedChanged)))]
pub async fn agree(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    Json(change): Json<AgreedChange>,
) -> Answer<Json<AgreedChanged>> {
    match peer {
        Peer::Node { .. } => Ok(Json(app.service().agree(change).await?)),
        _ => Err(for_nodes()),
    }
}

fn for_nodes() -> Failure {
    Failure::new(Code::State, "this is for nodes of a cluster, which come to their own port with their certificates")
}
