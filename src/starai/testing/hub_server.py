"""A model hub on the loopback that speaks Hugging Face's protocol and fails on request.

It serves what a test puts in, over a real socket, large files by redirect to a second path (the
"storage network") as real hubs do. Knows nothing of the code under test.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

COMMIT: Final = "c0ffee" * 6 + "c0de"
_CHUNK_BYTES: Final = 16 << 10
_STOPPED_WITHIN_S: Final = 10.0


@dataclass
class Faults:
    """What goes wrong, and how often; each count falls by one when it strikes.

    ``cut_after`` maps a file's name to the bytes after which the connection is cut.
    """

    cuts: int = 0
    cut_after: dict[str, int] = field(default_factory=dict)
    corruptions: int = 0
    corrupt: str = ""
    too_many: int = 0
    retry_after: str = "0"
    stalls: int = 0
    stall_s: float = 5.0
    ignore_range: bool = False
    omit_checksums: bool = False
    extra_bytes: bytes = b""
    hide_length: bool = False
    refuse: int = 0
    refuse_code: str = ""


@dataclass(frozen=True)
class Asked:
    """A request as the hub saw it."""

    method: str
    path: str
    range: str
    authorization: str


@dataclass
class HubServer:
    """The hub's content and its log; change both while it runs.

    ``models`` maps ORG/NAME to its files; files named in ``large`` (by ending) count as LFS.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    large: str = ".safetensors"
    faults: Faults = field(default_factory=Faults)
    asked: list[Asked] = field(default_factory=list)
    endpoint: str = ""

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/api/models", self._search),
            Route("/api/models/{org}/{name}/revision/{revision:path}", self._listing),
            Route("/{org}/{name}/resolve/{commit}/{file:path}", self._resolve),
            Route("/storage/{org}/{name}/{file:path}", self._storage),
        ]
        return Starlette(routes=routes)

    def _log(self, request: Request) -> None:
        headers = request.headers
        self.asked.append(
            Asked(
                request.method,
                request.url.path,
                headers.get("Range", ""),
                headers.get("Authorization", ""),
            )
        )

    def _refused(self, request: Request) -> Response | None:
        """The fault that comes before any answer, if one is due."""
        self._log(request)
        faults = self.faults
        if faults.too_many > 0:
            faults.too_many -= 1
            return Response(status_code=429, headers={"Retry-After": faults.retry_after})
        if faults.refuse:
            return Response(status_code=faults.refuse, headers={"X-Error-Code": faults.refuse_code})
        return None

    async def _search(self, request: Request) -> Response:
        self._log(request)
        wanted, author = request.query_params.get("search"), request.query_params.get("author")
        names = [
            name
            for name in self.models
            if (wanted is None or wanted in name) and author in {None, name.split("/")[0]}
        ]
        return _json([{"id": name} for name in names])

    async def _listing(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        files = self.models.get(f"{request.path_params['org']}/{request.path_params['name']}")
        if files is None:
            return Response(status_code=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.path_params["revision"] not in {"main", self.commit}:
            return Response(status_code=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, content) for name, content in files.items()]
        return _json({"sha": self.commit, "siblings": siblings})

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        if self.faults.omit_checksums:
            return {"rfilename": name}
        entry: dict[str, object] = {"rfilename": name, "size": len(content)}
        entry["blobId"] = git_blob_sha1(content)
        if name.endswith(self.large):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return entry

    async def _resolve(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        path = request.path_params
        content = self.models.get(f"{path['org']}/{path['name']}", {}).get(path["file"])
        if content is None:
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        if not path["file"].endswith(self.large):
            return self._body(request, path["file"], content, git_blob_sha1(content))
        headers = {
            "Location": f"/storage/{path['org']}/{path['name']}/{path['file']}",
            "X-Repo-Commit": self.commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        return Response(status_code=302, headers=headers)

    async def _storage(self, request: Request) -> Response:
        self._log(request)
        path = request.path_params
        content = self.models[f"{path['org']}/{path['name']}"][path["file"]]
        return self._body(request, path["file"], content, "storage-has-its-own-etag")

    def _body(self, request: Request, name: str, content: bytes, etag: str) -> Response:
        """The content or the range asked for, with whatever fault is due."""
        faults, start, status = self.faults, 0, 200
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and not faults.ignore_range:
            start, status = int(asked.group(1)), 206
            if start >= len(content):
                return Response(status_code=416)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = content[start:] + faults.extra_bytes
        if name == faults.corrupt and faults.corruptions > 0 and request.method == "GET":
            faults.corruptions -= 1
            sent = bytes([sent[0] ^ 1]) + sent[1:]
        cut = len(sent)
        if name in faults.cut_after and faults.cuts > 0 and request.method == "GET":
            faults.cuts -= 1
            cut = faults.cut_after[name]
        stall_s = 0.0
        if faults.stalls > 0 and request.method == "GET":
            faults.stalls -= 1
            stall_s = faults.stall_s
        headers["Content-Length"] = str(len(sent))
        return _Faulty(sent, cut, stall_s, status, headers, hide_length=faults.hide_length)


class _Faulty(Response):
    """A response that may stall before its body and end before its end."""

    def __init__(
        self,
        sent: bytes,
        cut: int,
        stall_s: float,
        status: int,
        headers: dict[str, str],
        *,
        hide_length: bool,
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        if hide_length:  # then the body is chunked, and its length shows only as it comes
            del self.headers["Content-Length"]
        self._sent, self._cut, self._stall_s = sent, cut, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; returning before the stated length makes the server cut the connection."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await anyio.sleep(self._stall_s)
        sent = b"" if scope["method"] == "HEAD" else self._sent[: self._cut]
        for place in range(0, len(sent), _CHUNK_BYTES):
            chunk = sent[place : place + _CHUNK_BYTES]
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if self._cut == len(self._sent):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def git_blob_sha1(content: bytes) -> str:
    """Git's name of a file's content, in hex."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@contextmanager
def running(hub: HubServer) -> Iterator[HubServer]:
    """Serve ``hub`` on a free port of the loopback in a thread; its ``endpoint`` says where."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            hub.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        hub.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.listen()  # connections wait in the backlog until the server takes them
        thread.start()
        try:
            yield hub
        finally:
            server.should_exit = True
            thread.join(_STOPPED_WITHIN_S)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
