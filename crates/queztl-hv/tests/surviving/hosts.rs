//! Hosts: daemons in network namespaces that one switch connects.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use queztl_api::{
    CreateVm, Disk, ExecRequest, Net, NetKind, OperationState, ProtectRequest, Protection, VmSpec, VmState,
};
use queztl_client::{Address, Client, Options};
use queztl_vmm::process::Folder;

use super::LONG;
use super::common::vm::wait_until;

/// The guest's address, and that of whoever counts along.
pub const GUEST: &str = "10.77.0.2";
const OUTSIDE: &str = "10.77.0.1";
pub const PORT: u16 = 7;
const TAP: &str = "qtap0";
const DISK_BYTES: u64 = 32 << 20;

/// A switch in a namespace of its own, and a namespace for each host. They go when this does.
pub struct Network {
    name: String,
    hosts: usize,
}

impl Network {
    /// For so many hosts. `None` where it cannot be made; says why.
    pub fn new(hosts: usize) -> Option<Network> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: network namespaces and TAP interfaces need root and /dev/net/tun");
            return None;
        }
        let name = format!("qt{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let network = Network { name, hosts };
        let switch = network.switch();
        if !ip(&["netns", "add", &switch]) {
            eprintln!("skipped: no network namespaces can be made here");
            return None;
        }
        let inside = |arguments: &[&str]| assert!(ip(&[&["-n", &switch], arguments].concat()), "{arguments:?}");
        inside(&["link", "add", "br0", "type", "bridge"]);
        inside(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "br0"]);
        inside(&["link", "set", "br0", "up"]);
        (0..hosts).for_each(|number| network.add_host(number));
        Some(network)
    }

    /// The namespace of the switch and of whoever is outside.
    pub fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn host(&self, number: usize) -> String {
        format!("{}h{number}", self.name)
    }

    fn add_host(&self, number: usize) {
        let (host, switch, port) = (self.host(number), self.switch(), format!("port{number}"));
        assert!(ip(&["netns", "add", &host]));
        assert!(ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "up0", "netns", &host]));
        assert!(ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]));
        let inside = |arguments: &[&str]| assert!(ip(&[&["-n", &host], arguments].concat()), "{arguments:?}");
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "add", "br0", "type", "bridge"]);
        inside(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]);
        for port in [TAP, "up0"] {
            inside(&["link", "set", port, "master", "br0", "up"]);
        }
        inside(&["link", "set", "br0", "up"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.hosts).map(|number| self.host(number)).chain([self.switch()]) {
            ip(&["netns", "del", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
}

/// A daemon in a home and a namespace of its own.
pub struct Host {
    home: tempfile::TempDir,
    namespace: String,
    child: Option<Child>,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Host {
    pub fn start(network: &Network, number: usize) -> Host {
        let home = tempfile::tempdir().unwrap();
        if let Ok(store) = queztl_guest_image::Store::open() {
            let _ = std::os::unix::fs::symlink(store.root().join("kernels"), home.path().join("kernels"));
        }
        let client = Client::new(Address::Unix(home.path().join("daemon.sock")), Options::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut host = Host { home, namespace: network.host(number), child: None, client, runtime };
        host.restart_daemon();
        host
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("daemon.sock")
    }

    pub fn restart_daemon(&mut self) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(env!("CARGO_BIN_EXE_queztl-hv")).arg("daemon");
        let log = std::fs::File::options().append(true).create(true).open(self.home.path().join("daemon.log")).unwrap();
        command.env("QUEZTL_HOME", self.home.path()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let socket = self.socket();
        wait_until("the daemon", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    pub fn kill_daemon(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends the daemon as somebody does who replaces it; its machines go on.
    pub fn end_daemon(&mut self) {
        if let Some(mut child) = self.child.take() {
            super::common::send(&child, libc::SIGTERM);
            child.wait().unwrap();
        }
    }

    pub fn freeze_daemon(&self) {
        super::common::send(self.child.as_ref().unwrap(), libc::SIGSTOP);
    }

    pub fn thaw_daemon(&self) {
        super::common::send(self.child.as_ref().unwrap(), libc::SIGCONT);
    }

    fn folder(&self) -> Option<Folder> {
        let vms = std::fs::read_dir(self.home.path().join("vms")).ok()?;
        vms.flatten().next().map(|entry| Folder::new(entry.path()))
    }

    /// Nothing of it is left, but for its disks.
    pub fn kill(&mut self) {
        self.kill_daemon();
        self.kill_machine();
    }

    /// Kills the process that runs the machine.
    pub fn kill_machine(&self) {
        let runner = self.folder().and_then(|folder| folder.runner().ok().flatten()).expect("a process");
        let pid = rustix::process::Pid::from_raw(runner.pid as i32).expect("its number");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// What its machine's network device has sent, as its process says; `None` once that has ended.
    pub fn frames_sent(&self) -> Option<u64> {
        let folder = self.folder().expect("a machine");
        let metrics = queztl_vmm::control::Client::connect(&folder.control()).and_then(|mut client| client.metrics());
        metrics.ok().map(|metrics| metrics.nets[0].sent_frames)
    }

    pub fn state(&self) -> Option<VmState> {
        self.runtime.block_on(self.client.vm("one")).ok().map(|vm| vm.state)
    }

    pub fn protect(&self, request: &ProtectRequest) -> Result<(), String> {
        self.runtime.block_on(self.client.protect("one", request)).map(drop).map_err(|error| error.to_string())
    }

    pub fn protection(&self) -> Result<Protection, String> {
        self.runtime.block_on(self.client.protection("one")).map_err(|error| error.to_string())
    }

    pub fn unprotect(&self) {
        let begun = self.runtime.block_on(self.client.unprotect("one")).unwrap();
        let ended = self.runtime.block_on(self.client.wait_operation(&begun.id, LONG)).unwrap();
        assert_eq!(ended.state, OperationState::Succeeded, "{:?}", ended.problem);
    }

    /// A machine that answers each line with how many there were, on one connection.
    pub fn spawn_counter(&self) {
        self.spawn(Vec::new(), "");
    }

    /// The same; it writes each number to its disk, a sector for each, and flushes it, before it answers.
    pub fn spawn_journal(&self) {
        let disk = Disk { size_bytes: Some(DISK_BYTES), ..Disk::default() };
        self.spawn(vec![disk], "echo $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2>/dev/null; ");
    }

    /// The numbers on the guest's disk up to one, as the disk has them and not the guest's memory.
    pub fn journal(&self, last: u64) -> Vec<u64> {
        let command = format!(
            "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=512 skip=1 count={last} 2>/dev/null | tr -d '\\000'"
        );
        let request =
            ExecRequest { command: ["sh", "-c", &command].map(str::to_owned).to_vec(), ..ExecRequest::default() };
        let ran = self.runtime.block_on(self.client.run("one", &request)).unwrap();
        let text = ran.stdout.data;
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn spawn(&self, disks: Vec<Disk>, each: &str) {
        let net = Net { kind: NetKind::Tap, tap: Some(TAP.into()), mac: None };
        let (accel, cmdline) = ("soft".into(), "queztl.net=off".into());
        let spec = VmSpec { ram_bytes: 96 << 20, accel, cmdline, nets: vec![net], disks, ..VmSpec::default() };
        let request = CreateVm { name: "one".parse().unwrap(), spec, start: true };
        let ended = self.runtime.block_on(async {
            let begun = self.client.create(&request).await.unwrap();
            self.client.wait_operation(&begun.id, LONG).await.unwrap()
        });
        assert_eq!(ended.state, OperationState::Succeeded, "{:?}", ended.problem);
        let script = format!("#!/bin/sh\\nn=0\\nwhile read -r x; do n=$((n+1)); {each}echo $n; done\\n");
        let command = format!(
            "ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; printf '{script}' >/tmp/count; chmod +x /tmp/count; \
             nc -ll -p {PORT} -e /tmp/count </dev/null >/dev/null 2>&1 &"
        );
        let command = ["sh", "-c", &command].map(str::to_owned).to_vec();
        let request = ExecRequest { command, timeout_seconds: Some(60), ..ExecRequest::default() };
        let started = Instant::now();
        while let Err(error) = self.runtime.block_on(self.client.run("one", &request)) {
            assert!(started.elapsed() < LONG, "{error}");
        }
    }

    /// What daemon and machine had to say.
    pub fn logs(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let machine = self.folder().map(|folder| read(folder.log())).unwrap_or_default();
        format!("--- {}\n{}{machine}", self.namespace, read(self.home.path().join("daemon.log")))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.thaw_daemon();
        }
        self.kill_daemon();
        for entry in std::fs::read_dir(self.home.path().join("vms")).into_iter().flatten().flatten() {
            if let Ok(Some(runner)) = Folder::new(entry.path()).runner()
                && let Some(pid) = rustix::process::Pid::from_raw(runner.pid as i32)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}
