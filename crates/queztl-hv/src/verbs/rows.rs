//! What the daemon's things look like in tables.

use queztl_api::{
    Alert, BenchmarkRun, Disk, Event, EventKind, Image, NetKind, Node, NodeStatus, Operation, Snapshot, Token, Vm,
    VmState,
};
use serde::Serialize;

use crate::output::table::fields;
use crate::output::text::{age, duration_ns, size, time, word};
use crate::output::{Row, Show};

/// One machine, with all that is known of it.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct One<'a>(pub &'a Vm);

impl Row for Vm {
    const NONE: &'static str = "no machines yet: queztl-hv spawn NAME makes one";
    const HEADS: &'static [&'static str] = &["NAME", "STATE", "VCPUS", "RAM", "ACCEL", "UP", "AGE"];
    const MORE: &'static [&'static str] = &["ID", "PID", "RESTARTS", "DISKS", "NETS", "LABELS", "ENDED"];

    fn cells(&self) -> Vec<String> {
        let runtime = self.runtime.as_ref();
        let up = runtime.map(|runtime| age(runtime.started_at)).unwrap_or_default();
        vec![
            self.name.to_string(),
            word(&self.state),
            self.spec.vcpus.to_string(),
            size(self.spec.ram_bytes),
            runtime.map_or(&self.spec.accel, |runtime| &runtime.accelerator).clone(),
            up,
            age(self.created_at),
            self.id.clone(),
            runtime.map(|runtime| runtime.pid.to_string()).unwrap_or_default(),
            runtime.map(|runtime| runtime.restarts.to_string()).unwrap_or_default(),
            self.spec.disks.len().to_string(),
            self.spec.nets.len().to_string(),
            labels(self),
            self.ended.as_ref().map(|ended| word(&ended.reason)).unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

fn labels(vm: &Vm) -> String {
    let labels = vm.spec.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

impl Show for One<'_> {
    fn table(&self, _wide: bool) -> String {
        let Vm { id, name, state, spec, created_at, origin, runtime, ended } = self.0;
        let mut rows = vec![
            ("name", name.to_string()),
            ("id", id.clone()),
            ("state", word(state)),
            ("created", format!("{} ({} ago)", time(*created_at), age(*created_at))),
        ];
        if let Some(runtime) = runtime {
            let (pid, accelerator, restarts) = (runtime.pid, &runtime.accelerator, runtime.restarts);
            rows.push(("process", format!("{pid}, {accelerator}, {restarts} restarts")));
            rows.push(("up", format!("{} (since {})", age(runtime.started_at), time(runtime.started_at))));
        }
        if let Some(ended) = ended.as_ref().filter(|_| *state == VmState::Stopped || *state == VmState::Crashed) {
            rows.push(("ended", format!("{} ({}): {}", time(ended.at), word(&ended.reason), ended.message)));
        }
        if let Some(origin) = origin {
            let from = origin.snapshot.as_ref().map(|name| format!(" at {name}")).unwrap_or_default();
            rows.push(("clone of", format!("{}{from}", origin.vm)));
        }
        rows.push(("vCPUs", format!("{} ({})", spec.vcpus, spec.accel)));
        rows.push(("RAM", ram(self.0)));
        rows.push(("kernel", spec.kernel.as_ref().map_or("our own".to_owned(), |path| path.display().to_string())));
        rows.push(("append", spec.cmdline.clone()));
        let disks: Vec<_> =
            spec.disks.iter().enumerate().map(|(index, disk)| (format!("disk{index}"), describe(disk))).collect();
        rows.extend(disks.iter().map(|(name, text)| (name.as_str(), text.clone())));
        let nets: Vec<_> =
            spec.nets.iter().enumerate().map(|(index, net)| (format!("net{index}"), network(net))).collect();
        rows.extend(nets.iter().map(|(name, text)| (name.as_str(), text.clone())));
        rows.push(("on crash", word(&spec.on_crash)));
        let checkpoints = spec.checkpoints.map(|every| format!("every {} s, {} kept", every.every_seconds, every.keep));
        rows.push(("checkpoints", checkpoints.unwrap_or_default()));
        rows.push(("autostart", if spec.autostart { "yes".to_owned() } else { String::new() }));
        rows.push(("labels", labels(self.0)));
        fields(&rows)
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.name.to_string()]
    }
}

fn ram(vm: &Vm) -> String {
    let spec = &vm.spec;
    let hotplug = match spec.memory_hotplug_bytes {
        0 => String::new(),
        most => format!(", up to {} more", size(most)),
    };
    let pages = if spec.huge_pages == "none" { String::new() } else { format!(", huge pages: {}", spec.huge_pages) };
    format!("{}{hotplug}{pages}", size(spec.ram_bytes))
}

fn describe(disk: &Disk) -> String {
    let what = match (&disk.image, &disk.path) {
        (Some(image), _) => format!("on image {image}"),
        (None, Some(path)) => path.display().to_string(),
        (None, None) => "empty".to_owned(),
    };
    let size = disk.size_bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
    format!("{what}{size}{}", if disk.read_only { ", read-only" } else { "" })
}

fn network(net: &queztl_api::Net) -> String {
    let mac = net.mac.as_ref().map(|mac| format!(", {mac}")).unwrap_or_default();
    match (net.kind, &net.tap) {
        (NetKind::User, _) => format!("user{mac}"),
        (NetKind::Tap, name) => format!("tap {}{mac}", name.as_deref().unwrap_or("?")),
    }
}

impl Row for Snapshot {
    const NONE: &'static str = "no snapshots yet: queztl-hv snapshot VM takes one";
    const HEADS: &'static [&'static str] = &["NAME", "KIND", "SIZE", "PAUSE", "AGE"];
    const MORE: &'static [&'static str] = &["BASE", "SCHEDULED", "DESCRIPTION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            word(&self.kind),
            size(self.size_bytes),
            duration_ns(self.pause_ns),
            age(self.created_at),
            self.base.as_ref().map(ToString::to_string).unwrap_or_default(),
            if self.scheduled { "yes".to_owned() } else { String::new() },
            self.description.clone(),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Image {
    const NONE: &'static str = "no images yet: queztl-hv image import NAME FILE takes one into the store";
    const HEADS: &'static [&'static str] = &["NAME", "FORMAT", "SIZE", "ON HOST", "BACKING", "USERS", "AGE"];
    const MORE: &'static [&'static str] = &["USED BY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            word(&self.format),
            size(self.size_bytes),
            size(self.allocated_bytes),
            self.backing.as_ref().map(ToString::to_string).unwrap_or_default(),
            self.used_by.len().to_string(),
            age(self.created_at),
            self.used_by.join(","),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Operation {
    const NONE: &'static str = "no operations in the last day";
    const HEADS: &'static [&'static str] = &["ID", "KIND", "TARGET", "STATE", "PROGRESS", "AGE"];
    const MORE: &'static [&'static str] = &["CANCELLABLE", "PROBLEM"];

    fn cells(&self) -> Vec<String> {
        let progress = self.progress.as_ref().map(|now| format!("{}/{} {}", now.done, now.total, now.unit));
        vec![
            self.id.clone(),
            word(&self.kind),
            self.target.clone().unwrap_or_default(),
            word(&self.state),
            progress.unwrap_or_default(),
            age(self.created_at),
            if self.cancellable { "yes".to_owned() } else { String::new() },
            self.problem.as_ref().map(|problem| problem.detail.clone()).unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

impl Row for Node {
    const NONE: &'static str =
        "this daemon is in no cluster: queztl-hv node init makes one, queztl-hv node join joins one";
    const HEADS: &'static [&'static str] = &["NAME", "STATE", "ADDRESS", "VMS", "VCPUS", "MEMORY", "FREE", "SEEN"];
    const MORE: &'static [&'static str] = &["VERSION", "VM-MEMORY", "PROTECTIONS", "COPIES", "ROLE", "AGE"];

    fn cells(&self) -> Vec<String> {
        let told = |cell: &dyn Fn(&NodeStatus) -> String| self.status.as_ref().map(cell).unwrap_or_default();
        let role = match (self.this, self.founder) {
            (true, true) => "this,founder",
            (true, false) => "this",
            (false, true) => "founder",
            (false, false) => "",
        };
        vec![
            self.name.to_string(),
            word(&self.state),
            self.address.clone(),
            told(&|status| status.vms.to_string()),
            told(&|status| format!("{}/{}", status.vcpus, status.cpus)),
            told(&|status| size(status.memory_bytes)),
            told(&|status| size(status.memory_available_bytes)),
            self.seen_at.map(age).unwrap_or_default(),
            told(&|status| status.version.clone()),
            told(&|status| size(status.vm_memory_bytes)),
            told(&|status| status.protections.to_string()),
            told(&|status| status.copies.to_string()),
            role.to_owned(),
            age(self.joined_at),
        ]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Token {
    const NONE: &'static str = "no tokens yet: queztl-hv token create NAME makes one";
    const HEADS: &'static [&'static str] = &["NAME", "SCOPE", "AGE", "EXPIRES"];
    const MORE: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        let expires = self.expires_at.map(time).unwrap_or_default();
        vec![self.name.to_string(), word(&self.scope), age(self.created_at), expires]
    }

    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Alert {
    const NONE: &'static str = "all is as it should be";
    const HEADS: &'static [&'static str] = &["STATE", "SEVERITY", "RULE", "MACHINE", "FOR", "WHAT"];
    const MORE: &'static [&'static str] = &["SUBJECT", "VALUE", "THRESHOLD", "STARTED", "RESOLVED", "ID"];

    fn cells(&self) -> Vec<String> {
        vec![
            word(&self.state),
            self.severity.name().to_owned(),
            self.rule.name().to_owned(),
            self.name.clone().unwrap_or_default(),
            age(self.started_at),
            self.message.clone(),
            self.subject.clone(),
            format!("{:.1}", self.value),
            format!("{:.1}", self.threshold),
            time(self.started_at),
            self.resolved_at.map(time).unwrap_or_default(),
            self.id.clone(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

impl Row for BenchmarkRun {
    const NONE: &'static str = "nothing was measured yet: queztl-hv benchmark run";
    const HEADS: &'static [&'static str] = &["ID", "STATE", "FIGURES", "AGE", "NOTE"];
    const MORE: &'static [&'static str] = &["VERSION", "HOST", "CPUS", "KERNEL", "MACHINES", "PROBLEM"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            word(&self.state),
            self.figures.len().to_string(),
            age(self.started_at),
            self.note.clone(),
            self.version.clone(),
            self.host.clone(),
            self.cpus.to_string(),
            self.kernel.clone(),
            self.machines.to_string(),
            self.problem.clone().unwrap_or_default(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

impl Row for Event {
    const NONE: &'static str = "nothing has happened yet";
    const HEADS: &'static [&'static str] = &["TIME", "EVENT", "WHAT"];
    const MORE: &'static [&'static str] = &["NUMBER"];

    fn cells(&self) -> Vec<String> {
        vec![time(self.at), kind(&self.kind), self.message.clone(), self.sequence.to_string()]
    }

    fn name(&self) -> String {
        kind(&self.kind)
    }
}

/// The word that an event's kind has in the API.
fn kind(kind: &EventKind) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    value.get("event").and_then(|word| word.as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use queztl_api::{Ending, EndingReason, RuntimeState, Timestamp, VmSpec};

    use super::*;
    use crate::cli::OutputFormat;
    use crate::output::{List, render};

    fn vm(name: &str, state: VmState) -> Vm {
        let at = Timestamp::from_second(Timestamp::now().as_second() - 300).unwrap();
        let running = matches!(state, VmState::Running | VmState::Paused);
        let runtime = RuntimeState { pid: 42, accelerator: "soft".into(), started_at: at, restarts: 0 };
        let ended = Ending { at, reason: EndingReason::GuestPanic, message: "the guest panicked".into() };
        Vm {
            id: format!("id-{name}"),
            name: name.parse().unwrap(),
            state,
            spec: VmSpec::default(),
            created_at: at,
            origin: None,
            runtime: running.then_some(runtime),
            ended: (!running).then_some(ended),
        }
    }

    #[test]
    fn machines_are_rows() {
        let vms = [vm("web-1", VmState::Running), vm("a-longer-name", VmState::Crashed)];
        let wanted = "\
NAME           STATE    VCPUS      RAM  ACCEL  UP  AGE
web-1          running      1  512 MiB  soft   5m   5m
a-longer-name  crashed      1  512 MiB  auto    -   5m
";
        assert_eq!(render(&List(&vms), OutputFormat::Table).unwrap(), wanted);
        let wide = render(&List(&vms), OutputFormat::Wide).unwrap();
        assert!(wide.lines().nth(2).unwrap().ends_with("guest-panic"), "{wide}");
    }

    #[test]
    fn no_machines_are_a_hint_for_people_and_an_empty_list_for_programs() {
        let vms: [Vm; 0] = [];
        let shown = |format| render(&List(&vms), format).unwrap();
        assert_eq!(shown(OutputFormat::Table), "no machines yet: queztl-hv spawn NAME makes one\n");
        assert_eq!((shown(OutputFormat::Json), shown(OutputFormat::Yaml)), ("[]\n".into(), "[]\n".into()));
        assert_eq!(shown(OutputFormat::Name), "");
    }

    #[test]
    fn names_are_one_a_line_and_json_is_the_apis() {
        let vms = [vm("web-1", VmState::Running), vm("web-2", VmState::Paused)];
        assert_eq!(render(&List(&vms), OutputFormat::Name).unwrap(), "web-1\nweb-2\n");
        let json = render(&List(&vms), OutputFormat::Json).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Vm>>(&json).unwrap(), vms);
    }

    #[test]
    fn one_machine_tells_how_it_ended() {
        let text = render(&One(&vm("web-1", VmState::Crashed)), OutputFormat::Table).unwrap();
        assert!(text.contains("(guest-panic): the guest panicked") && text.contains("RAM"), "{text}");
        assert!(!text.contains("labels"), "{text}");
    }
}
