"""What a machine is to be made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(size: int | str) -> int:
    """Bytes, from a number or from text as people write it: 512M, 2GB, 8GiB (all of 1024)."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{size!r} is no size: write a number and a unit, such as 512M or 2GB")
    return int(match[1]) << _UNITS[match[2].upper()]


@dataclass(frozen=True)
class Disk:
    """A disk on an image of the store, a file of the host, or empty."""

    image: str | None = None
    path: str | None = None
    size: int | str | None = None
    read_only: bool = False

    def to_json(self) -> dict[str, Any]:
        size = None if self.size is None else parse_size(self.size)
        return {"image": self.image, "path": self.path, "size_bytes": size, "read_only": self.read_only}


@dataclass(frozen=True)
class Net:
    """A network device: `user`, or `tap` with the interface's name."""

    kind: str = "user"
    tap: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "tap": self.tap}


@dataclass(frozen=True)
class BackupDaemon:
    """A daemon that is to keep a copy: a node's name, `https://host:port`, or `unix:/path` on the daemon's host.

    Over https, `token` is one of that daemon, with scope `admin`; `authority` the certificates to trust, PEM.
    """

    to: str
    token: str | None = None
    authority: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"to": self.to, "token": self.token, "authority": self.authority}


def protect_request(
    *backups: str | BackupDaemon,
    count: int | None = None,
    register: str | None = None,
    acks: int | None = None,
    mode: Literal["pause", "best-effort"] = "pause",
    interval_ms: int | None = None,
    buffer: int | str = "64M",
    stripes: int = 2,
    throttle_threshold: int = 60,
    max_throttle: int = 90,
    curve: str = "linear",
    lease_ms: int = 1000,
    silence_ms: int = 200,
    again: bool = True,
    own: BackupDaemon | None = None,
) -> dict[str, Any]:
    """The body of `POST /v1/vms/{vm}/protection`; percentages for the throttle.

    `again`: whoever goes on protects it again; `own`: how this daemon is reached then.
    """
    daemons = [BackupDaemon(one) if isinstance(one, str) else one for one in backups]
    return {
        "backups": [one.to_json() for one in daemons],
        "backup_count": count,
        "register": register,
        "acks": acks,
        "mode": mode,
        "interval_ms": interval_ms,
        "buffer_bytes": parse_size(buffer),
        "stripes": stripes,
        "throttle_threshold": throttle_threshold,
        "max_throttle": max_throttle,
        "curve": curve,
        "lease_ms": lease_ms,
        "silence_ms": silence_ms,
        "again": again,
        "own": own.to_json() if own else None,
    }


def create_request(
    name: str,
    *,
    vcpus: int = 1,
    ram: int | str = "512M",
    disks: Iterable[Disk] = (),
    nets: Iterable[Net] = (),
    kernel: str | None = None,
    initrd: Iterable[str] = (),
    cmdline: str = "",
    accel: str = "auto",
    labels: Mapping[str, str] | None = None,
    start: bool = True,
) -> dict[str, Any]:
    """The body of `POST /v1/vms`."""
    spec = {
        "vcpus": vcpus,
        "ram_bytes": parse_size(ram),
        "disks": [disk.to_json() for disk in disks],
        "nets": [net.to_json() for net in nets],
        "kernel": kernel,
        "initrd": list(initrd),
        "cmdline": cmdline,
        "accel": accel,
        "labels": dict(labels or {}),
    }
    return {"name": name, "spec": spec, "start": start}
