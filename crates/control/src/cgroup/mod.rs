//! Control groups: what a machine's process gets of the host's processors.
//!
//! Each machine has a group of its own, in version 2 or, where the host has only that, version 1. A host that does not let
//! the daemon make groups runs machines without them: an event says so, once, and limits that need a group are refused.
//!
//! ```text
//! v2   /queztl/MACHINE       cpu.weight, cpu.max
//!      OWN/queztl/MACHINE    the same for a daemon that may only divide its own group,
//!      OWN/queztl-daemon     and moves here for it: a group with children has no processes
//! v1   cpu: OWN/queztl/MACHINE   cpu.shares, cpu.cfs_quota_us
//! ```
//! Machines outlive the daemon, so their groups had better not be part of its: systemd starts no service in a group that
//! has been divided.
//!
//! Pins are no matter of groups: they are for single vCPUs, and set on their threads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use queztl_api::{Code, CpuLimits, EventKind, Problem};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::manager::Core;
use crate::vms::{Machine, VmRecord};

/// The interval that quotas are for, in microseconds: the kernel's usual one.
const PERIOD_US: u64 = 100_000;
/// The weight of version 2 that stands for the usual one, and the shares of version 1 for the same.
const USUAL_WEIGHT: u64 = 100;
const USUAL_SHARES: u64 = 1024;

/// Where groups for machines can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    V2(PathBuf),
    V1(PathBuf),
}

/// The groups of a manager: looked for when the first machine starts.
#[derive(Debug, Default)]
pub(crate) struct Groups(OnceLock<Result<Root, String>>);

impl Root {
    /// Finds out where, and makes it.
    fn find() -> Result<Root, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let mounts = Path::new("/sys/fs/cgroup");
        if mounts.join("cgroup.controllers").exists() {
            let path = own_group(&own, None).ok_or("the process is in no group")?;
            let own = mounts.join(path.trim_start_matches('/'));
            let root = apart(mounts).or_else(|why| if is_alone(&own) { below(&own) } else { Err(why) });
            return root.map(Root::V2);
        }
        let path = own_group(&own, Some("cpu")).ok_or("the host has no control groups for processors")?;
        let root = mounts.join("cpu").join(path.trim_start_matches('/')).join("queztl");
        fs::create_dir_all(&root).map_err(|error| format!("{root:?}: {error}"))?;
        Ok(Root::V1(root))
    }

    fn of(&self, vm: &str) -> PathBuf {
        match self {
            Root::V2(root) | Root::V1(root) => root.join(vm),
        }
    }

    fn limit(&self, vm: &str, limits: &CpuLimits) -> io::Result<()> {
        let group = self.of(vm);
        let weight = limits.weight.map_or(USUAL_WEIGHT, u64::from);
        let quota = limits.quota_percent.map(|percent| u64::from(percent) * PERIOD_US / 100);
        match self {
            Root::V2(_) => {
                fs::write(group.join("cpu.weight"), weight.to_string())?;
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))
            }
            Root::V1(_) => {
                let shares = (weight * USUAL_SHARES / USUAL_WEIGHT).max(2);
                fs::write(group.join("cpu.shares"), shares.to_string())?;
                fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                fs::write(group.join("cpu.cfs_quota_us"), quota)
            }
        }
    }
}

/// The group that `/proc/self/cgroup` names, of a controller of version 1, or of version 2.
fn own_group<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(wanted) => controllers.split(',').any(|name| name == wanted),
        };
        found.then_some(path)
    })
}

/// Whether the daemon is the only process of its group, so that the group is its to divide.
fn is_alone(own: &Path) -> bool {
    let own_id = std::process::id().to_string();
    fs::read_to_string(own.join("cgroup.procs")).is_ok_and(|processes| processes.lines().all(|id| id == own_id))
}

/// Makes room below the daemon's own group: a group that hands out controllers has no processes of its own.
fn below(own: &Path) -> Result<PathBuf, String> {
    // A daemon that starts again may be in its group already.
    let own = if own.ends_with("queztl-daemon") { own.parent().unwrap_or(own) } else { own };
    let (leaf, root) = (own.join("queztl-daemon"), own.join("queztl"));
    for path in [&leaf, &root] {
        fs::create_dir_all(path).map_err(failed(path))?;
    }
    fs::write(leaf.join("cgroup.procs"), std::process::id().to_string()).map_err(failed(&leaf))?;
    hand_out(&[own, &root]).map(|()| root)
}

/// Makes room at the top, where the kernel lets groups have processes beside children.
fn apart(top: &Path) -> Result<PathBuf, String> {
    let root = top.join("queztl");
    fs::create_dir_all(&root).map_err(failed(&root))?;
    hand_out(&[top, &root]).map(|()| root)
}

/// Gives the children of the groups shares and quotas.
fn hand_out(groups: &[&Path]) -> Result<(), String> {
    groups.iter().try_for_each(|path| fs::write(path.join("cgroup.subtree_control"), "+cpu").map_err(failed(path)))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> String + use<> {
    let path = path.to_path_buf();
    move |error| format!("{path:?}: {error}")
}

impl Core {
    /// Finds a place for groups, before the first machine starts: with its process in it, the daemon's own group could not
    /// be divided.
    pub(crate) fn prepare_groups(&self) {
        self.group_root();
    }

    /// Puts a process that has just begun into the machine's group.
    pub(crate) fn confine(&self, machine: &Machine, record: &VmRecord, pid: u32) {
        let Some(root) = self.group_root() else { return };
        let group = root.of(&machine.id);
        let made = fs::create_dir_all(&group)
            .and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()))
            .and_then(|()| root.limit(&machine.id, &record.spec.limits.cpu));
        // A process that has ended already is no reason to complain.
        if let Err(error) = made
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            self.warn(format!(
                "virtual machine {} runs without limits of its processors: {group:?}: {error}",
                record.name
            ));
        }
    }

    /// Puts new limits of a running machine in force.
    pub(crate) fn limit_cpu(&self, machine: &Machine, limits: &CpuLimits) -> Result<(), Problem> {
        let needs_group = limits.weight.is_some() || limits.quota_percent.is_some();
        match self.group_root() {
            Some(root) if root.of(&machine.id).exists() => {
                let failed = |error| Problem::new(Code::Host, format!("the processors' limits cannot be set: {error}"));
                root.limit(&machine.id, limits).map_err(failed)?;
            }
            _ if needs_group => {
                let text = "this host does not let the daemon make control groups, which weight and quota need: run it \
                            as root, or as a service with Delegate=yes";
                return Err(Problem::new(Code::Host, text));
            }
            _ => {}
        }
        let pid = machine.lock().live.as_ref().map(|live| live.process.pid);
        pid.map_or(Ok(()), |pid| pin(pid, limits))
    }

    /// Removes the group of a machine whose process has ended.
    pub(crate) fn remove_cgroup(&self, machine: &Machine) {
        let Some(Ok(root)) = self.groups.0.get() else { return };
        let group = root.of(&machine.id);
        // The kernel may still be busy with the last of its processes.
        for _ in 0..50 {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                _ => return,
            }
        }
        tracing::warn!(vm = machine.id, ?group, "a control group cannot be removed");
    }

    fn group_root(&self) -> Option<&Root> {
        let found = self.groups.0.get_or_init(|| {
            let found = Root::find();
            if let Err(why) = &found {
                self.warn(format!(
                    "machines run without control groups, so that weights and quotas have no effect: {why}"
                ));
            }
            found
        });
        found.as_ref().ok()
    }

    /// Tells of something that is not as it should be, and that nothing fails for.
    pub(crate) fn warn(&self, message: String) {
        tracing::warn!("{message}");
        if let Err(problem) = self.store.write(|change| Ok(change.event(EventKind::Warning, message)?)) {
            tracing::error!(%problem, "an event cannot be noted");
        }
    }
}

/// Keeps the threads of vCPUs on their processors; those without a pin may run anywhere the process may.
fn pin(pid: u32, limits: &CpuLimits) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::new(Code::Host, format!("vCPUs cannot be pinned: {error}"));
    let anywhere = rustix::thread::sched_getaffinity(None).map_err(|error| failed(error.into()))?;
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        // It has just ended.
        Err(_) => return Ok(()),
    };
    for task in tasks.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let vcpu = name.trim().strip_prefix("vcpu-").and_then(|number| number.parse::<u32>().ok());
        let tid = task.file_name().to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        let (Some(vcpu), Some(tid)) = (vcpu, tid) else { continue };
        let wished = limits.pins.iter().find(|pin| pin.vcpu == vcpu).map(|pin| cpu_set(&pin.cpus));
        match sched_setaffinity(Some(tid), wished.as_ref().unwrap_or(&anywhere)) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}

fn cpu_set(cpus: &[u32]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU as u32).for_each(|cpu| set.set(*cpu as usize));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_either_version() {
        let text = "5:cpuset:/\n1:cpu,cpuacct:/user/x\n0::/system.slice/queztl.service\n";
        assert_eq!(own_group(text, Some("cpu")), Some("/user/x"));
        assert_eq!(own_group(text, None), Some("/system.slice/queztl.service"));
        assert_eq!(own_group("1:memory:/\n", Some("cpu")), None);
    }

    #[test]
    fn a_group_is_the_daemons_to_divide_if_nobody_else_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::process::id();
        for (processes, alone) in [(format!("{own}\n"), true), (format!("1\n{own}\n"), false)] {
            fs::write(folder.path().join("cgroup.procs"), processes).unwrap();
            assert_eq!(is_alone(folder.path()), alone);
        }
    }

    #[test]
    fn limits_are_written_in_the_units_of_each_version() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("vm");
        fs::create_dir(&group).unwrap();
        let limits = CpuLimits { weight: Some(200), quota_percent: Some(150), pins: Vec::new() };
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();

        Root::V2(folder.path().into()).limit("vm", &limits).unwrap();
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("200".to_owned(), "150000 100000".to_owned()));
        Root::V1(folder.path().into()).limit("vm", &limits).unwrap();
        assert_eq!((read("cpu.shares"), read("cpu.cfs_quota_us")), ("2048".to_owned(), "150000".to_owned()));
        Root::V1(folder.path().into()).limit("vm", &CpuLimits::default()).unwrap();
        assert_eq!((read("cpu.shares"), read("cpu.cfs_quota_us")), ("1024".to_owned(), "-1".to_owned()));
    }
}
