"""Brings one file from a hub: resumed after a cut, checked against its checksum, put in place.

Knows nothing of models, nor how parts lie on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import httpx
from anyio import to_thread

from starai.core.errors import ModelFileRefused, StoreFailed
from starai.models.hub.listing import RemoteFile
from starai.models.hub.part import Part
from starai.models.hub.session import NO_SUCH_RANGE, HubSession, Interrupted, Patience

#: Told how many bytes of the file have come, from its beginning.
OnBytes = Callable[[int], None]
#: A transfer that brought at least this much since the last failure counts as progress.
PROGRESS_BYTES: Final = 1 << 20
#: A wrong checksum may be a fault of the line once; twice, the source is broken.
WRONG_MAX: Final = 2
_DIGEST: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIZE: Final = re.compile(r"[0-9]{1,18}")
_PARTIAL: Final = 206


async def identify(session: HubSession, path: str, file: RemoteFile) -> RemoteFile:
    """The file with the size and checksum that the hub's headers give, where it listed none.

    Raises:
        ModelFileRefused: the headers give none either, so the file could not be checked.
        StarAIError: the hub refuses or cannot be reached.
    """
    patience = Patience(session.timeouts)
    while True:
        try:
            async with session.stream(path, {}, method="HEAD") as response:
                digest = _stated_digest(response)
                size = _header(response, "X-Linked-Size") or _header(response, "Content-Length")
        except Interrupted as interruption:
            await patience.failed(interruption, f"looking at {file.name}")
            continue
        if not digest or not _SIZE.fullmatch(size):
            raise ModelFileRefused(f"the hub gives no checksum and size for {file.name}; refused")
        return RemoteFile(file.name, int(size), digest)


async def fetch(
    session: HubSession, path: str, file: RemoteFile, target: Path, on_bytes: OnBytes
) -> None:
    """Bring ``file`` from ``path`` on the hub to ``target``, whole or not at all.

    Raises:
        ModelFileRefused: the content is not what the hub listed, however often it is asked.
        StoreFailed: the disk refuses.
        StarAIError: the hub refuses or cannot be reached.
    """
    try:
        part = await to_thread.run_sync(Part, target, file)
        try:
            await _fill(session, path, part, on_bytes)
            await to_thread.run_sync(part.put_in_place)
        finally:
            part.close()
    except OSError as error:
        raise StoreFailed(f"cannot store {file.name}: {error.strerror or error}") from error


async def _fill(session: HubSession, path: str, part: Part, on_bytes: OnBytes) -> None:
    """Bring what the part lacks, until its checksum is right."""
    file = part.file
    patience = Patience(session.timeouts)
    for wrong in range(1, WRONG_MAX + 1):
        while part.have < file.size:
            before = part.have
            try:
                await _receive(session, path, part, on_bytes)
            except Interrupted as interruption:
                if part.have - before >= PROGRESS_BYTES:
                    patience.progressed()
                await patience.failed(interruption, f"fetching {file.name}")
        if part.checksum() == file.digest:
            return
        part.clear()
        if wrong == WRONG_MAX:
            raise ModelFileRefused(
                f"{file.name} does not match its checksum {file.digest[:12]}…; "
                "the hub or the connection is broken"
            )


async def _receive(session: HubSession, path: str, part: Part, on_bytes: OnBytes) -> None:
    """Append the rest of the file to the part.

    Raises:
        Interrupted: it broke off; what came is kept.
    """
    headers = {"Range": f"bytes={part.have}-"} if part.have else {}
    async with session.stream(path, headers) as response:
        if response.status_code == NO_SUCH_RANGE or _is_other_content(response, part.file):
            part.clear()
            raise Interrupted("the file changed on the hub")
        if part.have and not _continues(response, part.have):
            part.clear()  # the hub ignored Range and sends it all again
        await _pour(response, part, on_bytes)
    if part.have < part.file.size:
        raise Interrupted("the connection was cut")


async def _pour(response: httpx.Response, part: Part, on_bytes: OnBytes) -> None:
    """Append the body to the part, but never more than the file's size.

    A cancellation strikes only inside the body's iterator: httpx cannot close one from outside
    without a warning under trio. That is why writes are shielded for their microseconds, and why
    a body that is too long ends by a cancellation of our own.
    """
    surplus = False
    with anyio.CancelScope() as reading:
        async for chunk in response.aiter_bytes():
            if surplus or part.have + len(chunk) > part.file.size:
                surplus = True
                reading.cancel()
                continue
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(part.append, chunk)
            on_bytes(part.have)
    if surplus:
        part.clear()
        raise Interrupted("the hub sent more than it listed")


def _continues(response: httpx.Response, have: int) -> bool:
    """Whether the body goes on at byte ``have`` (RFC 9110, section 14.4)."""
    stated = _header(response, "Content-Range")
    return response.status_code == _PARTIAL and stated.startswith(f"bytes {have}-")


def _is_other_content(response: httpx.Response, file: RemoteFile) -> bool:
    """Whether the hub says that this is not the content that it listed."""
    stated = _stated_digest(response)
    return len(stated) == len(file.digest) and stated != file.digest


def _stated_digest(response: httpx.Response) -> str:
    """The checksum in the ETag of the hub (not of its storage network), or empty."""
    for name in ("X-Linked-Etag", "ETag"):
        value = _header(response, name).removeprefix("W/").strip('"')
        if _DIGEST.fullmatch(value):
            return value
    return ""


def _header(response: httpx.Response, name: str) -> str:
    """The header as the first of a row of redirects gave it, or empty."""
    for hop in (*response.history, response):
        if name in hop.headers:
            return str(hop.headers[name])
    return ""
