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
from .models import Event, ExecResult, FieldProblem, Metrics, Operation, Snapshot, VmInfo
from .spec import Disk, Net, parse_size

__all__ = [
    "VM",
    "AsyncClient",
    "AsyncFiles",
    "AsyncVM",
    "Busy",
    "Client",
    "Conflict",
    "Denied",
    "Disk",
    "Event",
    "ExecResult",
    "FieldProblem",
    "Files",
    "HostLacks",
    "Invalid",
    "Metrics",
    "Net",
    "NotFound",
    "Operation",
    "OperationFailed",
    "Problem",
    "QueztlError",
    "Snapshot",
    "TimedOut",
    "Unreachable",
    "VmInfo",
    "parse_size",
]
