"""Errors: what the daemon answers (RFC 9457), and what keeps it from answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .models import FieldProblem, Operation


class QueztlError(Exception):
    """Whatever this library raises."""


class Unreachable(QueztlError):
    """No daemon answers there."""


class Problem(QueztlError):
    """The daemon says no. `code` is for programs, the text for people."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document.get("detail") or document.get("title") or "the daemon gives no reason")
        self.document = document
        self.code: str = document.get("code", "internal")
        self.status: int = document.get("status", 500)
        self.fields = tuple(FieldProblem(f["field"], f["message"]) for f in document.get("fields", ()))


class NotFound(Problem):
    """There is no such thing."""


class Conflict(Problem):
    """The name is taken, the thing is in use, or not in a state for this."""


class Invalid(Problem):
    """A value cannot be granted; see `fields`."""


class Denied(Problem):
    """The credentials are missing or do not suffice."""


class Busy(Problem):
    """Too much at once: try again later."""


class TimedOut(Problem):
    """Something did not answer in time."""


class HostLacks(Problem):
    """The host lacks memory, disk space or a feature."""


class OperationFailed(Problem):
    """Work that had begun failed or was cancelled."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation.problem or {"code": operation.state, "detail": f"{operation.kind} was {operation.state}"})
        self.operation = operation


_CLASSES: Mapping[str, type[Problem]] = {
    "not-found": NotFound,
    "exists": Conflict,
    "state": Conflict,
    "in-use": Conflict,
    "malformed": Invalid,
    "invalid": Invalid,
    "key-reused": Invalid,
    "too-large": Invalid,
    "unauthenticated": Denied,
    "forbidden": Denied,
    "busy": Busy,
    "timeout": TimedOut,
    "host": HostLacks,
}


def problem(document: Mapping[str, Any]) -> Problem:
    """The error for a problem document."""
    return _CLASSES.get(document.get("code", ""), Problem)(document)
