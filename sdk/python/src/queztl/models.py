"""What the daemon answers, as values. Fields that this version does not know stay in `raw`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]


def time(text: str | None) -> datetime | None:
    """An RFC 3339 time; Python reads microseconds, the daemon may send nanoseconds."""
    if text is None:
        return None
    head, dot, tail = text.partition(".")
    if dot:
        digits = "".join(c for c in tail if c.isdigit())
        text = f"{head}.{digits[:6].ljust(6, '0')}+00:00"
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass(frozen=True)
class FieldProblem:
    field: str
    message: str


@dataclass(frozen=True)
class VmInfo:
    """A machine as it was when it was asked for."""

    id: str
    name: str
    state: str
    vcpus: int
    ram_bytes: int
    labels: Mapping[str, str]
    created_at: datetime | None
    pid: int | None
    accelerator: str | None
    ended: str | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> VmInfo:
        spec, runtime, ended = raw["spec"], raw.get("runtime") or {}, raw.get("ended") or {}
        return cls(
            id=raw["id"],
            name=raw["name"],
            state=raw["state"],
            vcpus=spec["vcpus"],
            ram_bytes=spec["ram_bytes"],
            labels=spec.get("labels", {}),
            created_at=time(raw.get("created_at")),
            pid=runtime.get("pid"),
            accelerator=runtime.get("accelerator"),
            ended=ended.get("message"),
            raw=raw,
        )


@dataclass(frozen=True)
class Snapshot:
    name: str
    vm: str
    kind: str
    base: str | None
    created_at: datetime | None
    size_bytes: int
    pause_seconds: float
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Snapshot:
        return cls(
            name=raw["name"],
            vm=raw["vm"],
            kind=raw["kind"],
            base=raw.get("base"),
            created_at=time(raw.get("created_at")),
            size_bytes=raw["size_bytes"],
            pause_seconds=raw["pause_ns"] / 1e9,
            raw=raw,
        )


@dataclass(frozen=True)
class Operation:
    id: str
    kind: str
    state: str
    target: str | None
    result: Any
    problem: Json | None
    done: int | None
    total: int | None
    raw: Json = field(repr=False)

    @property
    def is_over(self) -> bool:
        return self.state != "running"

    @classmethod
    def from_json(cls, raw: Json) -> Operation:
        progress = raw.get("progress") or {}
        return cls(
            id=raw["id"],
            kind=raw["kind"],
            state=raw["state"],
            target=raw.get("target"),
            result=raw.get("result"),
            problem=raw.get("problem"),
            done=progress.get("done"),
            total=progress.get("total"),
            raw=raw,
        )


@dataclass(frozen=True)
class Event:
    sequence: int
    at: datetime | None
    kind: str
    message: str
    vm: str | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Event:
        return cls(
            sequence=raw["sequence"],
            at=time(raw.get("at")),
            kind=raw["event"],
            message=raw["message"],
            vm=raw.get("vm"),
            raw=raw,
        )


@dataclass(frozen=True)
class Metrics:
    """Counters of a machine since its process started; times in seconds."""

    at: datetime | None
    cpu_seconds: float
    vcpu_seconds: tuple[float, ...]
    resident_bytes: int
    pss_bytes: int
    balloon_bytes: int
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Metrics:
        memory = raw["memory"]
        return cls(
            at=time(raw.get("at")),
            cpu_seconds=raw["cpu_ns"] / 1e9,
            vcpu_seconds=tuple(vcpu["cpu_ns"] / 1e9 for vcpu in raw["vcpus"]),
            resident_bytes=memory["resident_bytes"],
            pss_bytes=memory["pss_bytes"],
            balloon_bytes=memory["balloon_bytes"],
            raw=raw,
        )


@dataclass(frozen=True)
class Backup:
    """A daemon that keeps a copy: the newest that it has whole, and for how long there has been something that it lacks."""

    to: str
    epoch: int | None
    behind_seconds: float
    round_trip_seconds: float
    failed: str | None

    @classmethod
    def from_json(cls, raw: Json) -> Backup:
        return cls(
            to=raw["to"],
            epoch=raw.get("epoch"),
            behind_seconds=raw["behind_ns"] / 1e9,
            round_trip_seconds=raw["round_trip_ns"] / 1e9,
            failed=raw.get("failed"),
        )


@dataclass(frozen=True)
class Protection:
    """How a machine is copied to other daemons. `state` is `seeking`, `copying`, `protected`, `degraded` or `fenced`.

    `wanted` daemons are to keep copies; `seeking` says why fewer do.
    """

    state: str
    mode: str
    acks: int
    term: int
    epoch: int
    lag_seconds: float
    interval_seconds: float
    pause_seconds: float
    waiting_bytes: int
    buffer_bytes: int
    wire_bytes: int
    throttle_percent: int
    stalled: bool
    wanted: int
    seeking: str | None
    backups: tuple[Backup, ...]
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Protection:
        return cls(
            state=raw["state"],
            mode=raw["mode"],
            acks=raw["acks"],
            term=raw["term"],
            epoch=raw["epoch"],
            lag_seconds=raw["lag_ns"] / 1e9,
            interval_seconds=raw["interval_ns"] / 1e9,
            pause_seconds=raw["pause_ns"] / 1e9,
            waiting_bytes=raw["waiting_bytes"],
            buffer_bytes=raw["buffer_bytes"],
            wire_bytes=raw["wire_bytes"],
            throttle_percent=raw["throttle_percent"],
            stalled=raw["stalled"],
            wanted=raw["wanted"],
            seeking=raw.get("seeking"),
            backups=tuple(Backup.from_json(one) for one in raw["backups"]),
            raw=raw,
        )


@dataclass(frozen=True)
class Migration:
    """What it took to bring a machine to another daemon; times in seconds."""

    to: str
    rounds: int
    data_bytes: int
    wire_bytes: int
    disk_bytes: int
    total_seconds: float
    blackout_seconds: float
    blackout_parts: Mapping[str, float]
    """What the blackout was made of: `stop`, `cut`, `disks`, `memory`, `network`, `start`."""
    late_bytes: int
    """Memory that went after the machine."""
    whole_seconds: float
    """How long that took."""
    faults: int
    """Pages that the guest waited for meanwhile."""
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Migration:
        late = raw.get("late") or {}
        return cls(
            to=raw["to"],
            rounds=raw["rounds"],
            data_bytes=raw["data_bytes"],
            wire_bytes=raw["wire_bytes"],
            disk_bytes=raw["disk_bytes"],
            total_seconds=raw["total_ns"] / 1e9,
            blackout_seconds=raw["blackout_ns"] / 1e9,
            blackout_parts={part.removesuffix("_ns"): ns / 1e9 for part, ns in raw["blackout"].items()},
            late_bytes=late.get("missing_bytes", 0),
            whole_seconds=late.get("whole_ns", 0) / 1e9,
            faults=late.get("faults", 0),
            raw=raw,
        )


@dataclass(frozen=True)
class Node:
    """A daemon of the cluster: `ready`, `draining`, `unreachable` or `left`. What it said last of itself is in `raw["status"]`."""

    name: str
    address: str
    state: str
    this: bool
    founder: bool
    joined_at: datetime | None
    seen_at: datetime | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> Node:
        return cls(
            name=raw["name"],
            address=raw["address"],
            state=raw["state"],
            this=raw["this"],
            founder=raw["founder"],
            joined_at=time(raw["joined_at"]),
            seen_at=time(raw.get("seen_at")),
            raw=raw,
        )


@dataclass(frozen=True)
class Alert:
    """Something that is not as it should be (`firing`), or was not (`resolved`)."""

    id: str
    rule: str
    severity: str
    state: str
    vm: str | None
    name: str | None
    subject: str
    message: str
    value: float
    threshold: float
    started_at: datetime | None
    resolved_at: datetime | None
    raw: Json = field(repr=False)

    @property
    def is_firing(self) -> bool:
        return self.state == "firing"

    @classmethod
    def from_json(cls, raw: Json) -> Alert:
        return cls(
            id=raw["id"],
            rule=raw["rule"],
            severity=raw["severity"],
            state=raw["state"],
            vm=raw.get("vm"),
            name=raw.get("name"),
            subject=raw["subject"],
            message=raw["message"],
            value=raw["value"],
            threshold=raw["threshold"],
            started_at=time(raw.get("started_at")),
            resolved_at=time(raw.get("resolved_at")),
            raw=raw,
        )


@dataclass(frozen=True)
class Figure:
    """One figure of a run of benchmarks, with the median of its rounds."""

    suite: str
    name: str
    unit: str
    more_is_better: bool
    values: tuple[float, ...]
    median: float

    @classmethod
    def from_json(cls, raw: Json) -> Figure:
        return cls(
            suite=raw["suite"],
            name=raw["name"],
            unit=raw["unit"],
            more_is_better=raw["more_is_better"],
            values=tuple(raw["values"]),
            median=raw["median"],
        )


@dataclass(frozen=True)
class BenchmarkRun:
    """Measurements that the daemon has made together."""

    id: str
    state: str
    note: str
    started_at: datetime | None
    ended_at: datetime | None
    figures: tuple[Figure, ...]
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, raw: Json) -> BenchmarkRun:
        return cls(
            id=raw["id"],
            state=raw["state"],
            note=raw["note"],
            started_at=time(raw.get("started_at")),
            ended_at=time(raw.get("ended_at")),
            figures=tuple(Figure.from_json(one) for one in raw["figures"]),
            raw=raw,
        )


@dataclass(frozen=True)
class ExecResult:
    """How a command ended: its status, or the signal that ended it."""

    status: int | None
    signal: int | None
    stdout_bytes: bytes
    stderr_bytes: bytes
    truncated: bool
    timed_out: bool

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    @classmethod
    def from_json(cls, raw: Json) -> ExecResult:
        return cls(
            status=raw.get("status"),
            signal=raw.get("signal"),
            stdout_bytes=_content(raw["stdout"]),
            stderr_bytes=_content(raw["stderr"]),
            truncated=raw["truncated"],
            timed_out=raw["timed_out"],
        )


def _content(raw: Json) -> bytes:
    data: str = raw["data"]
    return base64.b64decode(data) if raw.get("encoding") == "base64" else data.encode()
