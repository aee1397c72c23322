"""``starai models pull ORG/NAME``: brings a model from a hub into the store.

A folder that holds ``config.json`` is complete: that file comes last, and goes first when another
commit replaces the model. Knows nothing of running models nor of showing progress.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import anyio
import msgspec
from anyio import to_thread

from starai.core.errors import ModelNotFound, StarAIError, StoreFailed
from starai.models.hub import listing, transfer
from starai.models.hub.listing import CONFIG, RemoteFile
from starai.models.hub.part import alone_in, bytes_there, holds
from starai.models.hub.session import PATIENT, HubSession, HubTimeouts, open_session

#: The public model hub; ``HF_ENDPOINT`` (read by the command line) names another.
PUBLIC_HUB: Final = "https://huggingface.co"
#: Two at a time fill most lines; more would take the hub's goodwill and gain little.
PARALLEL_FILES: Final = 2
#: Left free on the disk, so that a pull never fills it to the brim.
SPARE_BYTES: Final = 64 << 20
#: Names that are looked at for one near a misspelt one.
SEARCHED_NAMES: Final = 100
#: Beside the files: which commit they are, so that pulling again asks only that.
MARK: Final = ".starai-pull.json"


class PullProgress(msgspec.Struct, frozen=True):
    """How far a pull is; ``done_bytes`` of ``total_bytes`` counts all files of the model.

    ``file`` is the one that just moved. ``done_bytes`` can fall when a transfer starts again.
    """

    file: str
    done_bytes: int
    total_bytes: int
    files_done: int
    files_total: int


class _Mark(msgspec.Struct, frozen=True):
    commit: str
    files: tuple[RemoteFile, ...]


class _Tally:
    """Adds up the progress of files that come at the same time."""

    def __init__(
        self, files: tuple[RemoteFile, ...], on_progress: Callable[[PullProgress], None]
    ) -> None:
        self._sizes = {file.name: file.size for file in files}
        self._total = sum(self._sizes.values())
        self._come = dict.fromkeys(self._sizes, 0)
        self._finished: set[str] = set()
        self._on_progress = on_progress

    def came(self, name: str, num_bytes: int) -> None:
        self._come[name] = num_bytes
        self._tell(name)

    def finished(self, name: str) -> None:
        self._come[name] = self._sizes[name]
        self._finished.add(name)
        self._tell(name)

    def _tell(self, name: str) -> None:
        self._on_progress(
            PullProgress(
                file=name,
                done_bytes=sum(self._come.values()),
                total_bytes=self._total,
                files_done=len(self._finished),
                files_total=len(self._sizes),
            )
        )


def _ignore(progress: PullProgress) -> None:
    """Tell nobody."""


async def pull(
    reference: str,
    store: Path,
    *,
    endpoint: str = PUBLIC_HUB,
    token: str | None = None,
    revision: str = "main",
    on_progress: Callable[[PullProgress], None] = _ignore,
    timeouts: HubTimeouts = PATIENT,
) -> Path:
    """Bring ``ORG/NAME`` into ``store/ORG/NAME``; what is already there is not fetched again.

    Args:
        reference: ``ORG/NAME``.
        store: the folder of pulled models; made if need be.
        endpoint: the hub's address.
        token: for gated and private models; sent to the hub alone.
        revision: a branch, a tag or a commit.
        on_progress: called in the event loop as bytes come; must return at once.
        timeouts: how patient to be.

    Raises:
        InvalidRequest: the reference or the revision has another form.
        ModelNotFound: the hub has no such model; the message lists near names.
        PermissionRefused: gated or private, and the token does not open it.
        ModelFileRefused: the repository holds no safe model, or a checksum does not match.
        StoreFailed: the disk is full or refuses, or another pull fills the same folder.
        RateLimited: the hub wants a long pause.
        Unavailable: the hub cannot be reached; pulling again goes on where this stopped.
    """
    organisation, name = listing.split_reference(reference)
    listing.check_revision(revision)
    folder = store / organisation / name
    mark = _read_mark(folder)
    if mark is not None and mark.commit == revision and _sizes_match(folder, mark.files):
        return folder  # a commit never changes, so the hub need not be asked
    async with open_session(endpoint, token, timeouts) as session:
        found = await _list(session, reference, revision)
        files = await _identified(session, reference, found)
        total = listing.check_sizes(files, reference)
        now = _Mark(found.commit, files)
        if mark == now and _sizes_match(folder, files):
            return folder
        tally = _Tally(files, on_progress)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder):
                _prepare(folder, mark, now, total)
                base = f"/{reference}/resolve/{found.commit}/"
                await _fetch_all(session, base, now, folder, tally)
                (folder / MARK).write_bytes(msgspec.json.encode(now))
        except OSError as error:
            raise StoreFailed(f"cannot store {reference}: {error.strerror or error}") from error
    return folder


async def _list(session: HubSession, reference: str, revision: str) -> listing.Listing:
    """What the hub has; a name it does not know comes with near ones."""
    path = f"/api/models/{reference}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        return listing.parse_listing(await session.read_json(path, "listing the model"))
    except ModelNotFound as error:
        near = await _near_names(session, reference)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ModelNotFound(f"{reference}: {error.message}{hint}") from error


async def _near_names(session: HubSession, reference: str) -> list[str]:
    """Names like the one asked for: of the same organisation, else anywhere on the hub."""
    organisation, name = listing.split_reference(reference)
    for query in (f"author={organisation}", f"search={name}"):
        try:
            path = f"/api/models?{query}&limit={SEARCHED_NAMES}"
            body = await session.read_json(path, "a search", attempts_max=1)
        except StarAIError:
            return []  # the search only adorns an error that is already on its way
        names = listing.parse_names(body)
        if near := difflib.get_close_matches(reference, names, n=3, cutoff=0.5):
            return near
    return []


async def _identified(
    session: HubSession, reference: str, found: listing.Listing
) -> tuple[RemoteFile, ...]:
    """The files to fetch, each with size and checksum."""
    files = []
    for file in listing.choose(found, reference):
        if len(file.digest) in {40, 64} and file.size >= 0:
            files.append(file)
        else:
            path = f"/{reference}/resolve/{found.commit}/{quote(file.name)}"
            files.append(await transfer.identify(session, path, file))
    return tuple(files)


def _prepare(folder: Path, before: _Mark | None, now: _Mark, total: int) -> None:
    """Mark the folder as unfinished, drop files of another commit, see to the room.

    Raises:
        StoreFailed: the disk has too little room.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    kept = {file.name for file in now.files}
    for file in before.files if before else ():
        if file.name not in kept:
            (folder / file.name).unlink(missing_ok=True)
    there = sum(bytes_there(folder / file.name, file) for file in now.files)
    needed = total - there + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreFailed(
            f"the model needs {needed / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB free"
        )


async def _fetch_all(
    session: HubSession, base: str, now: _Mark, folder: Path, tally: _Tally
) -> None:
    """Bring every file that is not there yet, the small ones first and config.json last."""
    places = anyio.Semaphore(PARALLEL_FILES)

    async def bring(file: RemoteFile) -> None:
        async with places:
            target = folder / file.name
            if not await to_thread.run_sync(holds, target, file):
                await transfer.fetch(
                    session,
                    base + quote(file.name),
                    file,
                    target,
                    lambda num_bytes: tally.came(file.name, num_bytes),
                )
            tally.finished(file.name)

    in_order = sorted(now.files, key=lambda file: file.size)
    try:
        async with anyio.create_task_group() as group:
            for file in in_order:
                if file.name != CONFIG:
                    group.start_soon(bring, file)
    except ExceptionGroup as errors:
        known = errors.subgroup(StarAIError)
        if known is None:
            raise
        raise _first(known) from errors
    for file in in_order:
        if file.name == CONFIG:
            await bring(file)


def _first(errors: ExceptionGroup[StarAIError]) -> StarAIError:
    """One of the errors that happened at the same time; the others were its companions."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def _sizes_match(folder: Path, files: tuple[RemoteFile, ...]) -> bool:
    """Whether all files lie there with their sizes."""
    paths = ((folder / file.name, file.size) for file in files)
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _read_mark(folder: Path) -> _Mark | None:
    """What was pulled here before, if anything whole."""
    try:
        return msgspec.json.decode((folder / MARK).read_bytes(), type=_Mark)
    except (OSError, msgspec.MsgspecError):
        return None
