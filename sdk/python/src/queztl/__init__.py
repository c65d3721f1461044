"""Virtual machines of a Queztl daemon.

    from queztl import VM

    with VM.create("base", ram="256MB") as vm:
        print(vm.exec("uname", "-r").stdout)
        for clone in vm.clone(count=10):
            clone.exec("hostname")

`Client` and `VM` block; `AsyncClient` and `AsyncVM` are the same for asyncio. Errors are `Problem`s with a code, a sentence and the
fields that were wrong.
"""

from ._files import AsyncFiles, Files
from .aio import AsyncClient, AsyncVM
from .client import VM, Client
from .errors import (
    Busy,
    Conflict,
    Denied,
    HostLacks,
    Invalid,
    NotFound,
    OperationFailed,
    Problem,
    QueztlError,
    TimedOut,
    Unreachable,
)
from .models import (
    Alert,
    Backup,
    BenchmarkRun,
    Event,
    ExecResult,
    FieldProblem,
    Figure,
    Metrics,
    Migration,
    Node,
    Operation,
    Protection,
    Snapshot,
    VmInfo,
)
from .spec import BackupDaemon, Disk, Net, parse_size

__all__ = [
    "VM",
    "Alert",
    "AsyncClient",
    "AsyncFiles",
    "AsyncVM",
    "Backup",
    "BackupDaemon",
    "BenchmarkRun",
    "Busy",
    "Client",
    "Conflict",
    "Denied",
    "Disk",
    "Event",
    "ExecResult",
    "FieldProblem",
    "Figure",
    "Files",
    "HostLacks",
    "Invalid",
    "Metrics",
    "Migration",
    "Net",
    "Node",
    "NotFound",
    "Operation",
    "OperationFailed",
    "Problem",
    "Protection",
    "QueztlError",
    "Snapshot",
    "TimedOut",
    "Unreachable",
    "VmInfo",
    "parse_size",
]
