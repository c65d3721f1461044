//! The routes, one file for each kind of thing.
//!
//! A handler takes what it needs out of the request, asks the service and says what the answer is. Its description is the
//! attribute above it: the first line of its documentation is the summary, and `security` names the scope that is enforced.

mod alerts;
mod benchmarks;
mod console;
mod dashboard;
mod events;
mod exec;
mod files;
mod images;
mod incoming;
mod journal;
mod log;
mod metrics;
mod nodes;
mod operations;
mod protection;
mod snapshots;
mod system;
mod tokens;
mod vms;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;

/// Routes that answer within the time for requests.
pub fn quick() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(system::info))
        .routes(routes!(system::openapi))
        .routes(routes!(vms::list_vms, vms::create_vm))
        .routes(routes!(vms::get_vm, vms::update_vm, vms::delete_vm))
        .routes(routes!(vms::start_vm))
        .routes(routes!(vms::stop_vm))
        .routes(routes!(vms::kill_vm))
        .routes(routes!(vms::pause_vm))
        .routes(routes!(vms::resume_vm))
        .routes(routes!(vms::reboot_vm))
        .routes(routes!(snapshots::list_snapshots, snapshots::take_snapshot))
        .routes(routes!(snapshots::get_snapshot, snapshots::delete_snapshot))
        .routes(routes!(snapshots::restore_snapshot))
        .routes(routes!(snapshots::clone_vm))
        .routes(routes!(incoming::migrate_vm))
        .routes(routes!(incoming::receive_vm))
        .routes(routes!(incoming::forget_incoming))
        .routes(routes!(incoming::incoming_stream))
        .routes(routes!(incoming::promise_copy))
        .routes(routes!(protection::get_protection, protection::protect_vm, protection::unprotect_vm))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::remove_node))
        .routes(routes!(nodes::drain_node, nodes::ready_node))
        .routes(routes!(nodes::node_status, nodes::leave_cluster))
        .routes(routes!(nodes::init_node))
        .routes(routes!(nodes::join_node))
        .routes(routes!(nodes::node_token))
        .routes(routes!(nodes::admission))
        .routes(routes!(nodes::hello))
        .routes(routes!(nodes::agreed))
        .routes(routes!(nodes::agree))
        .routes(routes!(images::list_images, images::create_image))
        .routes(routes!(images::import_image))
        .routes(routes!(images::get_image, images::delete_image))
        .routes(routes!(images::check_image))
        .routes(routes!(images::convert_image))
        .routes(routes!(images::resize_image))
        .routes(routes!(operations::list_operations))
        .routes(routes!(operations::get_operation, operations::cancel_operation))
        .routes(routes!(events::list_events))
        .routes(routes!(events::stream_events))
        .routes(routes!(alerts::list_alerts))
        .routes(routes!(benchmarks::list_benchmarks, benchmarks::run_benchmarks))
        .routes(routes!(benchmarks::get_benchmark, benchmarks::delete_benchmark))
        .routes(routes!(journal::list_log))
        .routes(routes!(journal::list_audit))
        .routes(routes!(console::console))
        .routes(routes!(exec::exec_stream))
        .routes(routes!(log::log))
        .routes(routes!(metrics::list_metrics))
        .routes(routes!(metrics::vm_metrics))
        .routes(routes!(metrics::vm_history))
        .routes(routes!(metrics::open_metrics))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::delete_token))
        .routes(routes!(dashboard::open_dashboard))
}

/// Routes whose client says how long it waits, or that take as long as there is something to copy.
pub fn patient() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(operations::wait_operation))
        .routes(routes!(exec::exec))
        .routes(routes!(files::read_file, files::write_file))
}
