"""Files of a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _wire

if TYPE_CHECKING:
    from .aio import AsyncVM
    from .client import VM


class Files:
    """Files of a machine's guest, through its agent."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def read(self, path: str) -> bytes:
        return self._vm.client._raw("GET", _wire.path("vms", self._vm.id, "files"), params={"path": path}).content

    def read_text(self, path: str) -> str:
        return self.read(path).decode()

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """The file appears complete or not at all."""
        body = content.encode() if isinstance(content, str) else content
        params = {"path": path, "mode": f"{mode:o}"}
        self._vm.client._raw("PUT", _wire.path("vms", self._vm.id, "files"), params=params, content=body)


class AsyncFiles:
    """As `Files`, for asyncio."""

    def __init__(self, vm: AsyncVM) -> None:
        self._vm = vm

    async def read(self, path: str) -> bytes:
        response = await self._vm.client._raw("GET", _wire.path("vms", self._vm.id, "files"), params={"path": path})
        return response.content

    async def read_text(self, path: str) -> str:
        return (await self.read(path)).decode()

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        body = content.encode() if isinstance(content, str) else content
        params = {"path": path, "mode": f"{mode:o}"}
        await self._vm.client._raw("PUT", _wire.path("vms", self._vm.id, "files"), params=params, content=body)
