//! Many clones at once.

use std::sync::Arc;

use queztl_agent_client::{Agent, Exec, Io, Limits};
use queztl_api::{CloneRequest, Vm, VmSpec};
use queztl_control::{Manager, Service};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clones_of_a_running_guest_each_answer_a_command() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = linux() else { return };
    spawn(&manager, "parent", VmSpec { ram_bytes: 256 << 20, ..spec }).await;
    let parent = manager.vm("parent").await.unwrap();
    host_name(&manager, &parent).await;

    let request = CloneRequest { count: 100, ..CloneRequest::default() };
    let made = done(&manager, manager.clone_vm("parent", request).await).await;

    let clones: Vec<Vm> = serde_json::from_value(made.result.unwrap()).unwrap();
    assert_eq!(clones.len(), 100);
    let manager = Arc::new(manager);
    let mut answers = tokio::task::JoinSet::new();
    for clone in clones {
        let manager = manager.clone();
        answers.spawn(async move { (clone.name.to_string(), host_name(&manager, &clone).await) });
    }
    for (name, host_name) in answers.join_all().await {
        assert_eq!(host_name, name);
    }
    for vm in manager.vms().await.unwrap() {
        manager.delete(&vm.id, true).await.unwrap();
    }
    for operation in manager.operations().await.unwrap() {
        done(&manager, Ok(operation)).await;
    }
    assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 0);
}

/// What the guest believes to be called.
async fn host_name(manager: &Manager, vm: &Vm) -> String {
    let vsock = manager.endpoints(&vm.id).await.unwrap().vsock;
    let run = move || {
        let limits = Limits { connect: PATIENCE, answer: PATIENCE };
        let exec = Exec { argv: vec![b"hostname".to_vec()], ..Exec::default() };
        let mut output = Vec::new();
        Agent::connect(&vsock, &limits)?.exec(&exec, Io::output(&mut output))?;
        Ok::<_, queztl_agent_client::Error>(String::from_utf8_lossy(&output).trim().to_owned())
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap()
}
