"""Writes src/queztl/aio.py from src/queztl/client.py, so that the two clients cannot drift apart. A test holds one against the other.

Usage: python tools/make_async.py
"""

import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src/queztl"
PLAIN = {"__init__", "__repr__", "id", "name"}
WORDS = [
    ("The blocking client.", "The client for asyncio. Made from client.py by tools/make_async.py."),
    ("import json\nimport time\nfrom collections.abc import Iterator", "import asyncio\nimport json\nimport time\nfrom collections.abc import AsyncIterator"),
    ("websockets.sync", "websockets.asyncio"),
    ("import Files", "import AsyncFiles"),
    (" Files(", " AsyncFiles("),
    ("httpx.HTTPTransport", "httpx.AsyncHTTPTransport"),
    ("httpx.Client(", "httpx.AsyncClient("),
    (" Iterator[", " AsyncIterator["),
    ("__enter__", "__aenter__"),
    ("__exit__", "__aexit__"),
    ("self._http.close()", "await self._http.aclose()"),
    ("self._http.request(", "await self._http.request("),
    ("self.client.vm(self.id).info", "(await self.client.vm(self.id)).info"),
    ("return (client or Client()).create", "return await (client or Client()).create"),
    ("for message in self._stream", "async for message in self._stream"),
    ("= websocket.", "= await websocket."),
    ("        with connection:", "        async with connection:"),
    ("                yield from connection", "                async for message in connection:\n                    yield message"),
    ("yield self.metrics()", "yield await self.metrics()"),
    ("time.sleep(", "await asyncio.sleep("),
    (
        "        return (event for event in self.client.events() if event.vm == self.id)",
        "        async for event in self.client.events():\n            if event.vm == self.id:\n                yield event",
    ),
]
WAITED = r"(?<![\w.])self\.((?:client\.)?(?:operate|wait|_raw|_json|_list))\(|(?<![\w.])self\.(close|delete|refresh|_act|vm)\("


def convert(source: str) -> str:
    for old, new in WORDS:
        source = source.replace(old, new)
    source = re.sub(r"( +)def (\w+)\(", lambda m: m[0] if m[2] in PLAIN else f"{m[1]}async def {m[2]}(", source)
    source = re.sub(WAITED, lambda m: f"await self.{m[1] or m[2]}(", source)
    return re.sub(r"(?<![\w.])(Client|VM)\b(?! is| on)", r"Async\1", source)


if __name__ == "__main__":
    (PACKAGE / "aio.py").write_text(convert((PACKAGE / "client.py").read_text()))
