"""A daemon of the tests' own, with real machines. Without a program or a guest kernel, what needs it is skipped, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import queztl

ROOT = Path(__file__).resolve().parents[3]
# The daemon's socket is in its home, and a socket's path is short.
HOMES = "/tmp"


def skip(reason: str) -> None:
    print(f"skipped: {reason}", file=sys.__stderr__)
    pytest.skip(reason)


def program() -> Path | None:
    """`QUEZTL_HV`, else the newest that is built here."""
    if named := os.environ.get("QUEZTL_HV"):
        return Path(named)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [path for kind in ("release", "debug") if (path := target / kind / "queztl-hv").exists()]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def store() -> Path:
    """Where guest kernels are kept."""
    if home := os.environ.get("QUEZTL_HOME"):
        return Path(home)
    if os.geteuid() == 0:
        return Path("/var/lib/queztl")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "queztl"


class Daemon:
    """A running daemon, and how it is started again."""

    def __init__(self, program: Path, home: Path) -> None:
        self.program, self.home = program, home
        self.address = f"unix:{home}/daemon.sock"
        self.environment = {**os.environ, "QUEZTL_HOME": str(home)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        with open(self.home / "daemon.err", "ab") as log:
            self.process = subprocess.Popen([self.program, "daemon", *options], env=self.environment, stderr=log)
        for _ in range(600):
            try:
                with queztl.Client(self.address) as client:
                    client.info()
                return
            except queztl.Unreachable:
                assert self.process.poll() is None, (self.home / "daemon.err").read_text()
                time.sleep(0.1)
        raise AssertionError("the daemon does not answer")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def command(self, *arguments: str) -> str:
        """What the command line says."""
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout


def own_daemon() -> Iterator[Daemon]:
    """A daemon in a home of its own, with the guest kernels of this host."""
    found = program()
    if found is None:
        skip("no program is built: run `cargo build -p queztl-hv`, or set QUEZTL_HV")
        return
    kernels = store() / "kernels"
    if not kernels.is_dir() or not any(kernels.iterdir()):
        skip(f"no guest kernel is in {kernels}: run `queztl-hv kernel build`")
    home = Path(tempfile.mkdtemp(prefix="queztl-", dir=HOMES))
    shutil.copytree(kernels, home / "kernels", copy_function=os.symlink)
    daemon = Daemon(found.absolute(), home)
    try:
        daemon.start()
        yield daemon
        if daemon.process is None:
            daemon.start()
        with queztl.Client(daemon.address) as client:
            for vm in client.vms():
                vm.delete(force=True)
    finally:
        daemon.stop()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    yield from own_daemon()


@pytest.fixture(scope="session")
def other() -> Iterator[Daemon]:
    """Another daemon, for copies and for machines that move."""
    yield from own_daemon()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[queztl.Client]:
    with queztl.Client(daemon.address) as client:
        yield client


@pytest.fixture(scope="session")
def base(daemon: Daemon) -> Iterator[queztl.VM]:
    """A machine that runs, for tests that leave it as it was."""
    with queztl.Client(daemon.address) as client, client.create("base", ram="256M", labels={"of": "tests"}) as vm:
        yield vm
