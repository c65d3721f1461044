"""Where the daemon is, and what a request and its answer look like: shared by the blocking and the asynchronous client."""

from __future__ import annotations

import os
import pathlib
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from . import errors
from .models import Operation

# The daemon answers a wait at the latest after this time; what is longer is asked again.
WAIT_SECONDS = 30
TIMEOUT = httpx.Timeout(60, connect=5)


@dataclass(frozen=True)
class Address:
    """`unix:/path` or `https://host:port`."""

    url: str
    socket: str | None

    @classmethod
    def parse(cls, address: str | None) -> Address:
        address = address or os.environ.get("QUEZTL_ADDRESS") or f"unix:{default_socket()}"
        if address.startswith("unix:"):
            return cls("http://localhost", address.removeprefix("unix:"))
        if address.startswith("https://"):
            return cls(address.rstrip("/"), None)
        raise ValueError(f"{address!r} is no address: write unix:/path or https://host:port")

    @property
    def websocket(self) -> str:
        return "ws" + self.url.removeprefix("http")


def default_socket() -> str:
    """Where the command line's daemon listens, too."""
    if home := os.environ.get("QUEZTL_HOME"):
        return f"{home}/daemon.sock"
    if os.geteuid() == 0:
        return "/run/queztl/daemon.sock"
    data = os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share"
    return f"{data}/queztl/daemon.sock"


def headers(token: str | None) -> dict[str, str]:
    token = token or os.environ.get("QUEZTL_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def tls(certificate: str | None) -> ssl.SSLContext | bool:
    """Trusts this certificate alone, or what the host trusts."""
    return ssl.create_default_context(cafile=certificate) if certificate else True


def key() -> dict[str, str]:
    """A fresh key: a request that is sent twice because an answer was lost is carried out once."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def path(*segments: str) -> str:
    return "/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def decode(response: httpx.Response) -> Any:
    """The answer's value.

    Raises: `Problem`.
    """
    if response.is_success:
        return response.json() if response.content else None
    try:
        document: Mapping[str, Any] = response.json()
    except ValueError:
        document = {"status": response.status_code, "detail": f"the daemon answers {response.status_code} without a reason"}
    raise errors.problem(document)


def ended(operation: Operation) -> Operation:
    """The operation, if it went well.

    Raises: `OperationFailed`.
    """
    if operation.state != "succeeded":
        raise errors.OperationFailed(operation)
    return operation


def unreachable(address: Address, error: Exception) -> errors.Unreachable:
    place = address.socket or address.url
    return errors.Unreachable(f"no daemon answers at {place}: {error}; start one with `queztl-hv daemon`")
