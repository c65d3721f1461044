"""Against a real daemon with real machines."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, Daemon

import queztl
from queztl import VM, Client


def test_a_machine_is_what_was_asked_for(client: Client, base: VM) -> None:
    info = client.vm("base").info
    assert (info.id, info.state, info.vcpus, info.ram_bytes, info.labels) == (base.id, "running", 1, 256 << 20, {"of": "tests"})
    assert info.pid is not None and Path(f"/proc/{info.pid}").exists()
    assert [vm.name for vm in client.vms() if vm.id == base.id] == ["base"]
    assert "version" in client.info()


def test_commands_have_input_output_and_a_status(base: VM) -> None:
    done = base.exec("sh", "-c", "cat; pwd; echo $A; echo wrong >&2; exit 3", stdin="in\n", cwd="/usr", env={"A": "b"})
    assert (done.status, done.stdout, done.stderr, done.ok) == (3, "in\n/usr\nb\n", "wrong\n", False)
    assert base.exec("printf", "\\377").stdout_bytes == b"\xff"
    late = base.exec("sleep", "1000", timeout_seconds=1)
    assert (late.timed_out, late.ok) == (True, False)


def test_files_go_in_and_come_out(base: VM) -> None:
    content = bytes(range(256)) * 4096
    base.files.write("/root/data", content, mode=0o640)
    assert base.files.read("/root/data") == content
    assert base.exec("stat", "-c", "%a %s", "/root/data").stdout == f"640 {len(content)}\n"
    with pytest.raises(queztl.Problem, match="Not a directory"):
        base.files.write("/root/data/x", "")
    assert base.exec("rm", "/root/data").ok


def test_what_a_machine_becomes_is_undone_by_a_restore(client: Client) -> None:
    with client.create("past", ram="256M") as vm:
        vm.files.write("/root/state", "before")
        snapshot = vm.snapshot("clean")
        assert (snapshot.name, snapshot.vm, snapshot.kind) == ("clean", vm.id, "full")
        assert 0 < snapshot.pause_seconds < 60 and snapshot.size_bytes > 0
        vm.files.write("/root/state", "after")
        vm.restore(snapshot)
        assert vm.files.read_text("/root/state") == "before"
        vm.snapshot("more", incremental=True)
        assert {kept.name: kept.base for kept in vm.snapshots()} == {"clean": None, "more": "clean"}
        vm.delete_snapshot("more")
        assert [kept.name for kept in vm.snapshots()] == ["clean"]


def test_ten_copies_of_a_running_machine_go_their_own_ways(base: VM) -> None:
    base.files.write("/root/task", "hello")
    clones = base.clone(count=10)
    try:
        assert len({clone.id for clone in clones}) == 10
        for clone in clones:
            clone.files.write("/root/task", clone.name)
        assert [clone.files.read_text("/root/task") for clone in clones] == [clone.name for clone in clones]
        assert len({clone.exec("hostname").stdout for clone in clones}) == 10
        assert base.files.read_text("/root/task") == "hello"
    finally:
        for clone in clones:
            clone.delete(force=True)


def test_a_copy_of_a_snapshot_has_what_was_there_then(client: Client) -> None:
    with client.create("origin", ram="256M") as vm:
        vm.files.write("/root/state", "then")
        vm.snapshot("then")
        vm.files.write("/root/state", "now")
        (clone,) = vm.clone(snapshot="then", name="copy")
        with clone:
            assert clone.name == "copy"
            assert clone.files.read_text("/root/state") == "then"


def test_states_follow_what_is_done(client: Client) -> None:
    with client.create("states", ram="256M", start=False) as vm:
        assert vm.info.state == "created"
        for act, state in [(vm.start, "running"), (vm.pause, "paused"), (vm.resume, "running")]:
            act()
            assert vm.info.state == state
        # A command tells that the guest is there to be asked.
        assert vm.exec("true").ok
        vm.reboot()
        assert vm.exec("true").ok
        vm.stop(grace_seconds=30)
        assert vm.info.state == "stopped"
        vm.start()
        vm.kill()
        assert vm.refresh().state == "stopped"
        assert "Linux version" in vm.log() or vm.log(tail=5)
    with pytest.raises(queztl.NotFound):
        client.vm("states")


def test_events_come_as_they_happen_and_again_after_a_number(client: Client, daemon: Daemon) -> None:
    seen: list[queztl.Event] = []

    def watch() -> None:
        with Client(daemon.address) as watcher:
            for event in watcher.events(after=0):
                seen.append(event)
                if event.kind == "vm-deleted" and event.raw["name"] == "watched":
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    with client.create("watched", start=False):
        pass
    thread.join(60)
    assert not thread.is_alive()
    ours = [event for event in seen if event.raw.get("name") == "watched"]
    assert [event.kind for event in ours] == ["vm-created", "vm-deleted"]
    assert next(iter(client.events(after=ours[0].sequence))).sequence > ours[0].sequence


def test_metrics_grow(base: VM) -> None:
    watching = base.watch_metrics(interval_seconds=0.1)
    first = next(watching)
    assert base.exec("sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done").ok
    # What is measured is up to a second old.
    later = next(metrics for metrics in watching if metrics.cpu_seconds > first.cpu_seconds)
    assert len(later.vcpu_seconds) == 1 and later.pss_bytes > 0 and later.resident_bytes > 0


def test_refusals_are_errors_with_the_problem(client: Client, base: VM) -> None:
    with pytest.raises(queztl.NotFound) as missing:
        client.vm("nobody")
    assert missing.value.status == 404
    with pytest.raises(queztl.Conflict, match="base"):
        client.create("base")
    with pytest.raises(queztl.Invalid) as wrong:
        client.create("wrong", vcpus=0)
    assert [field.field.split(".")[0] for field in wrong.value.fields] == ["spec"]
    with pytest.raises(queztl.Conflict):
        base.start()
    with pytest.raises(queztl.NotFound):
        base.restore("never")
    with pytest.raises(queztl.Invalid) as nowhere:
        base.migrate("elsewhere")
    assert [field.field for field in nowhere.value.fields] == ["to"]
    with pytest.raises(queztl.QueztlError, match="other daemon"):
        base.migrate("unix:/nonexistent/daemon.sock")
    assert base.exec("echo", "here").stdout == "here\n"


def test_the_example_of_the_readme_does_what_it_says(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "sdk/python/README.md").read_text()
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    example = found[1]
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.setenv("QUEZTL_ADDRESS", daemon.address)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [f"example-{number} hello" for number in range(1, 11)]


def test_the_nodes_of_a_cluster_are_known_and_chosen_from(client: Client, other: Daemon) -> None:
    assert client.nodes() == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other.command("node", "init", "--name", "alone", "--listen", f"127.0.0.1:{port}", "--advertise", f"127.0.0.1:{port}")
    with Client(other.address) as there:
        (node,) = there.nodes()
        assert (node.name, node.state, node.this, node.founder) == ("alone", "ready", True, True)
        assert node.address == f"127.0.0.1:{port}" and node.raw["status"]["cpus"] > 0
        with there.create("chosen", ram="128M", accel="soft") as vm:
            # Nobody else is there to keep a copy.
            with pytest.raises(queztl.Problem):
                vm.protect(count=1)
    other.command("node", "leave", "--force")


def test_a_machine_is_protected_by_another_daemon_until_it_is_not(client: Client, other: Daemon, tmp_path: Path) -> None:
    register = f"file:{tmp_path}/register"
    with client.create("guarded", ram="128M", accel="soft") as vm:
        with pytest.raises(queztl.Conflict, match="not protected"):
            vm.protection()
        first = vm.protect(other.address, register=register, mode="best-effort", buffer="1M", lease_ms=60000, silence_ms=60000)
        assert (first.state, first.mode, first.acks, first.buffer_bytes) == ("protected", "best-effort", 1, 1 << 20)
        while (now := vm.protection()).epoch <= first.epoch:
            pass
        assert [backup.to for backup in now.backups] == [other.address] and now.wire_bytes > 0
        with pytest.raises(queztl.Conflict, match="already"):
            vm.protect(other.address, register=register)
        with pytest.raises(queztl.Invalid):
            vm.protect(other.address, register=register, acks=2)
        vm.unprotect()
        with pytest.raises(queztl.Conflict):
            vm.protection()
        assert vm.exec("true").ok


def test_a_machine_moves_to_another_daemon(client: Client, other: Daemon) -> None:
    vm = client.create("mover", ram="128M", accel="soft")
    vm.files.write("/root/state", "with it")
    report = vm.migrate(other.address, stripes=1)
    assert report.to == other.address and report.data_bytes > 0 and report.total_seconds >= report.blackout_seconds
    with pytest.raises(queztl.NotFound):
        client.vm("mover")
    with Client(other.address) as there, there.vm("mover") as moved:
        assert moved.files.read_text("/root/state") == "with it"


def test_a_machine_runs_elsewhere_before_its_memory_has_come(client: Client, other: Daemon) -> None:
    vm = client.create("leaper", ram="128M", accel="soft")
    vm.files.write("/root/state", "with it")
    with pytest.raises(queztl.Invalid, match="source_loss_accepted"):
        vm.migrate(other.address, mode="post-copy")
    report = vm.migrate(other.address, mode="post-copy", source_loss_accepted=True)
    assert report.late_bytes > 0 and report.faults > 0 and report.whole_seconds > 0
    with Client(other.address) as there, there.vm("leaper") as moved:
        assert moved.files.read_text("/root/state") == "with it"


def test_a_machine_that_crashes_is_an_alert_until_it_is_started(client: Client) -> None:
    with client.create("crasher", ram="128M") as vm:
        assert vm.info.pid is not None
        os.kill(vm.info.pid, signal.SIGKILL)
        while not (ours := [alert for alert in client.alerts() if alert.vm == vm.id]):
            time.sleep(0.1)
        assert (ours[0].rule, ours[0].severity, ours[0].name, ours[0].is_firing) == ("vm-crash", "critical", "crasher", True)
        vm.start()
        while any(alert.is_firing for alert in client.alerts() if alert.vm == vm.id):
            time.sleep(0.1)


def test_benchmarks_are_run_and_kept(client: Client) -> None:
    run = client.run_benchmarks("disk", rounds=1, note="from the tests")
    assert (run.state, run.note, {figure.suite for figure in run.figures}) == ("succeeded", "from the tests", {"disk"})
    assert all(figure.median > 0 and len(figure.values) == 1 for figure in run.figures)
    assert [kept.id for kept in client.benchmarks()] == [run.id]
    client.delete_benchmark(run.id)
    assert client.benchmarks() == []
    with pytest.raises(queztl.Problem):
        client.run_benchmarks("no such suite")


async def asynchronous(address: str, other: str, register: str) -> None:
    async with queztl.AsyncClient(address) as client:
        async with await client.create("async", ram="256M") as vm:
            done = await vm.exec("echo", "hello")
            assert (done.ok, done.stdout) == (True, "hello\n")
            await vm.files.write("/root/state", "before")
            snapshot = await vm.snapshot("clean")
            await vm.files.write("/root/state", "after")
            clones = await vm.clone(count=2)
            assert [await clone.files.read_text("/root/state") for clone in clones] == ["after", "after"]
            for clone in clones:
                await clone.delete(force=True)
            await vm.restore(snapshot)
            assert await vm.files.read_text("/root/state") == "before"
            async for event in client.events(after=0):
                if event.vm == vm.id:
                    assert event.kind == "vm-created"
                    break
            async for metrics in vm.watch_metrics():
                assert metrics.resident_bytes > 0
                break
        assert isinstance(await client.alerts(), list) and isinstance(await client.benchmarks(), list)
        async with await client.create("guarded", ram="128M", accel="soft") as vm:
            protection = await vm.protect(queztl.BackupDaemon(other), register=register, silence_ms=60000)
            assert (protection.state, (await vm.protection()).mode) == ("protected", "pause")
            await vm.unprotect()
        with pytest.raises(queztl.NotFound):
            await client.vm("async")


def test_the_asynchronous_client_does_the_same(daemon: Daemon, other: Daemon, tmp_path: Path) -> None:
    asyncio.run(asynchronous(daemon.address, other.address, f"file:{tmp_path}/register"))


def test_over_tls_a_token_opens_what_its_scope_covers(daemon: Daemon, base: VM) -> None:
    port = 20000 + random.randrange(20000)
    daemon.stop()
    daemon.start("--listen", f"127.0.0.1:{port}")
    secrets = {
        scope: json.loads(daemon.command("token", "create", scope, "--scope", scope, "-o", "json"))["secret"]
        for scope in ("read", "operate")
    }
    address, certificate = f"https://127.0.0.1:{port}", str(daemon.home / "tls/certificate.pem")

    with Client(address, token=secrets["operate"], certificate=certificate) as client:
        # The machine is the same: it ran on while there was no daemon.
        assert client.vm(base.id).exec("true").ok
        assert next(iter(client.events(after=0))).sequence == 1
    with Client(address, token=secrets["read"], certificate=certificate) as client:
        assert client.vm("base").info.state == "running"
        with pytest.raises(queztl.Denied, match="scope"):
            client.vm("base").exec("true")
    with Client(address, certificate=certificate) as client, pytest.raises(queztl.Denied):
        client.vms()
    with Client(address, token=secrets["read"]) as client, pytest.raises(queztl.Unreachable):
        client.vms()
    daemon.command("token", "delete", "read")
    with Client(address, token=secrets["read"], certificate=certificate) as client, pytest.raises(queztl.Denied):
        client.vms()
