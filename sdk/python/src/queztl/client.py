"""The blocking client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync import client as websocket

from . import _wire, errors
from ._files import Files
from .models import Alert, BenchmarkRun, Event, ExecResult, Metrics, Migration, Node, Operation, Protection, Snapshot, VmInfo
from .spec import BackupDaemon, create_request, protect_request


class Client:
    """A connection to a daemon.

    `address` is `unix:/path` or `https://host:port`; without it `QUEZTL_ADDRESS`, else the daemon of this user. Over TCP a
    `token` is needed (or `QUEZTL_TOKEN`), and `certificate` if the daemon's is its own.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None, certificate: str | None = None) -> None:
        self._address = _wire.Address.parse(address)
        self._headers = _wire.headers(token)
        self._tls = _wire.tls(certificate)
        transport = httpx.HTTPTransport(uds=self._address.socket, verify=self._tls)
        self._http = httpx.Client(
            base_url=self._address.url, transport=transport, headers=self._headers, timeout=_wire.TIMEOUT
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def create(self, name: str, **spec: Any) -> VM:
        """Makes a machine and starts it, unless `start=False`; see `create_request` for what `spec` may be."""
        operation = self.operate("POST", _wire.path("vms"), create_request(name, **spec))
        return self.vm(operation.target or name)

    def vm(self, name: str) -> VM:
        """A machine by its name or identifier."""
        return VM(self, VmInfo.from_json(self._json("GET", _wire.path("vms", name))))

    def vms(self) -> list[VM]:
        return [VM(self, VmInfo.from_json(raw)) for raw in self._list("vms")]

    def info(self) -> dict[str, Any]:
        """The daemon's version and host."""
        answer: dict[str, Any] = self._json("GET", _wire.path("info"))
        return answer

    def operation(self, identifier: str) -> Operation:
        return Operation.from_json(self._json("GET", _wire.path("operations", identifier)))

    def wait(self, operation: Operation, timeout: float | None = None) -> Operation:
        """The operation once it is over.

        Raises: `OperationFailed`; `TimeoutError` when it goes on for longer than `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not operation.is_over:
            left = _wire.WAIT_SECONDS if deadline is None else min(_wire.WAIT_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"operation {operation.id} goes on")
            params = {"timeout_seconds": max(1, int(left))}
            raw = self._json("GET", _wire.path("operations", operation.id, "wait"), params=params)
            operation = Operation.from_json(raw)
        return _wire.ended(operation)

    def operate(self, method: str, path: str, body: Any = None, **arguments: Any) -> Operation:
        """Starts long work and waits for its end."""
        raw = self._json(method, path, json=body, headers=_wire.key(), **arguments)
        return self.wait(Operation.from_json(raw))

    def events(self, after: int | None = None) -> Iterator[Event]:
        """Events as they come, from number `after` on if it is given. Ends with the daemon."""
        url = f"{self._address.websocket}{_wire.path('events', 'stream')}"
        url += "" if after is None else f"?after={after}"
        for message in self._stream(url):
            yield Event.from_json(json.loads(message))

    def nodes(self) -> list[Node]:
        """The nodes of the daemon's cluster, by name; none if it is in none."""
        return [Node.from_json(raw) for raw in self._list("nodes")]

    def alerts(self) -> list[Alert]:
        """What is not as it should be, and what was, newest first."""
        return [Alert.from_json(raw) for raw in self._list("alerts")]

    def benchmarks(self) -> list[BenchmarkRun]:
        """All runs of benchmarks, newest first."""
        return [BenchmarkRun.from_json(raw) for raw in self._list("benchmarks")]

    def run_benchmarks(self, *suites: str, rounds: int = 3, note: str = "") -> BenchmarkRun:
        """Measures the daemon and its host: of `boot`, `clone`, `snapshot` and `disk` those that are named, or all."""
        body = {"suites": list(suites), "rounds": rounds, "note": note}
        operation = self.operate("POST", _wire.path("benchmarks"), body)
        return BenchmarkRun.from_json(self._json("GET", _wire.path("benchmarks", operation.target or "")))

    def delete_benchmark(self, identifier: str) -> None:
        self._raw("DELETE", _wire.path("benchmarks", identifier))

    def _stream(self, url: str) -> Iterator[str | bytes]:
        try:
            if self._address.socket:
                connection = websocket.unix_connect(self._address.socket, url, additional_headers=self._headers)
            else:
                tls = None if isinstance(self._tls, bool) else self._tls
                connection = websocket.connect(url, additional_headers=self._headers, ssl=tls)
        except OSError as error:
            raise _wire.unreachable(self._address, error) from error
        with connection:
            try:
                yield from connection
            except ConnectionClosed:
                return

    def _raw(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise errors.TimedOut({"code": "timeout", "detail": f"no answer from the daemon: {error}"}) from error
        except httpx.TransportError as error:
            raise _wire.unreachable(self._address, error) from error
        if not response.is_success:
            _wire.decode(response)
        return response

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        return _wire.decode(self._raw(method, path, **arguments))

    def _list(self, *segments: str) -> list[Any]:
        items: list[Any] = []
        after: str | None = None
        while True:
            params = {"limit": "1000"} | ({"after": after} if after else {})
            page = self._json("GET", _wire.path(*segments), params=params)
            items += page["items"]
            after = page.get("next")
            if not after:
                return items


class VM:
    """A machine. As a context manager, it is deleted at the end."""

    def __init__(self, client: Client, info: VmInfo) -> None:
        self.client = client
        self.info = info
        self.files = Files(self)

    @classmethod
    def create(cls, name: str, *, client: Client | None = None, **spec: Any) -> VM:
        """Makes a machine on a daemon, or on this user's."""
        return (client or Client()).create(name, **spec)

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"VM({self.name!r}, {self.info.state})"

    def __enter__(self) -> VM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.delete(force=True)
        except errors.NotFound:
            pass

    def refresh(self) -> VmInfo:
        """Asks how it is now."""
        self.info = self.client.vm(self.id).info
        return self.info

    def start(self) -> None:
        self._act("start")

    def stop(self, grace_seconds: int | None = None) -> None:
        """Asks the guest to switch itself off, and switches it off after the grace (30 s if not given)."""
        self._act("stop", {"grace_seconds": grace_seconds})

    def kill(self) -> None:
        self._act("kill")

    def pause(self) -> None:
        self._act("pause")

    def resume(self) -> None:
        self._act("resume")

    def reboot(self) -> None:
        self._act("reboot")

    def delete(self, *, force: bool = False) -> None:
        params = {"force": "true"} if force else {}
        self.client.operate("DELETE", _wire.path("vms", self.id), params=params)

    def migrate(
        self,
        to: str,
        *,
        token: str | None = None,
        authority: str | None = None,
        stripes: int = 2,
        max_rounds: int = 8,
        shared_disks: bool = False,
        mode: str = "pre-copy",
        source_loss_accepted: bool = False,
        patience: int = 60,
    ) -> Migration:
        """Brings the running machine to the daemon at `to`: `https://host:port`, or `unix:/path` on the daemon's host.

        `token` is one of that daemon, with scope `admin`; `authority` the certificates to trust, PEM. With `shared_disks`, disks
        that were given by a path are the same files there, and are not copied. The machine is not here afterwards: ask that
        daemon for it.

        With `mode` `post-copy` or `auto`, memory may follow the machine; until all of it has come, the machine is lost if either
        host is, and `source_loss_accepted` says that this is understood. `patience` is how many seconds the target waits for
        a source that cannot be reached.
        """
        body = {
            "to": to,
            "token": token,
            "authority": authority,
            "stripes": stripes,
            "max_rounds": max_rounds,
            "shared_disks": shared_disks,
            "mode": mode,
            "source_loss_accepted": source_loss_accepted,
            "patience_s": patience,
        }
        operation = self.client.operate("POST", _wire.path("vms", self.id, "migrate"), body)
        return Migration.from_json(operation.result)

    def protect(
        self, *backups: str | BackupDaemon, count: int | None = None, register: str | None = None, **settings: Any
    ) -> Protection:
        """Has other daemons keep copies of the running machine, one of which goes on when this daemon's host is gone.

        They are those that are named, or `count` nodes that the daemon chooses. `register` is where all of them agree on whose
        machine it is: `file:/directory`, or `etcd://host:port,host:port`; the cluster's where it is left out. See
        `protect_request` for what `settings` may be. Answers when the first copies are whole.
        """
        body = protect_request(*backups, count=count, register=register, **settings)
        operation = self.client.operate("POST", _wire.path("vms", self.id, "protection"), body)
        return Protection.from_json(operation.result)

    def protection(self) -> Protection:
        """How the protection goes now.

        Raises: `Conflict` if the machine is not protected.
        """
        return Protection.from_json(self.client._json("GET", _wire.path("vms", self.id, "protection")))

    def unprotect(self) -> None:
        """Ends the protection; the machine goes on."""
        self.client.operate("DELETE", _wire.path("vms", self.id, "protection"))

    def exec(
        self,
        *command: str,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | None = None,
        timeout_seconds: int | None = None,
    ) -> ExecResult:
        """Runs a command in the guest; a status other than 0 is an answer, not an error."""
        body: dict[str, Any] = {"command": list(command), "env": env or {}, "cwd": cwd, "timeout_seconds": timeout_seconds}
        if stdin is not None:
            body["stdin"] = {"data": stdin}
        # The daemon ends the command in time; the connection lasts a little longer.
        limit = (timeout_seconds or 60) + 30
        return ExecResult.from_json(self.client._json("POST", _wire.path("vms", self.id, "exec"), json=body, timeout=limit))

    def snapshot(self, name: str | None = None, *, incremental: bool = False) -> Snapshot:
        body = {"name": name, "incremental": incremental}
        operation = self.client.operate("POST", _wire.path("vms", self.id, "snapshots"), body)
        return Snapshot.from_json(operation.result)

    def snapshots(self) -> list[Snapshot]:
        return [Snapshot.from_json(raw) for raw in self.client._list("vms", self.id, "snapshots")]

    def restore(self, snapshot: str | Snapshot) -> None:
        """Puts the machine back to where it was; it runs afterwards."""
        name = snapshot if isinstance(snapshot, str) else snapshot.name
        self.client.operate("POST", _wire.path("vms", self.id, "snapshots", name, "restore"))

    def delete_snapshot(self, name: str) -> None:
        self.client.operate("DELETE", _wire.path("vms", self.id, "snapshots", name))

    def clone(self, count: int = 1, *, snapshot: str | None = None, name: str | None = None) -> list[VM]:
        """Running copies, of a snapshot or of the machine as it is now, each with its own identity."""
        body = {"count": count, "snapshot": snapshot, "name": name}
        operation = self.client.operate("POST", _wire.path("vms", self.id, "clones"), body)
        return [VM(self.client, VmInfo.from_json(raw)) for raw in operation.result]

    def metrics(self) -> Metrics:
        return Metrics.from_json(self.client._json("GET", _wire.path("vms", self.id, "metrics")))

    def watch_metrics(self, interval_seconds: float = 1.0) -> Iterator[Metrics]:
        """Metrics, again and again, as long as the machine runs."""
        while True:
            try:
                yield self.metrics()
            except (errors.NotFound, errors.Conflict):
                return
            time.sleep(interval_seconds)

    def events(self) -> Iterator[Event]:
        """What happens to this machine from now on."""
        return (event for event in self.client.events() if event.vm == self.id)

    def log(self, tail: int | None = None) -> str:
        """What its console has printed."""
        params = {} if tail is None else {"tail": str(tail)}
        response = self.client._raw("GET", _wire.path("vms", self.id, "log"), params=params)
        return response.content.decode(errors="replace")

    def _act(self, verb: str, body: Any = None) -> None:
        self.client.operate("POST", _wire.path("vms", self.id, verb), body)
        self.refresh()
