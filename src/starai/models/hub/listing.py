"""What a hub says it has, and which of it a model needs. Knows no HTTP and no disk."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from starai.core.errors import InvalidRequest, ModelFileRefused, Unavailable

#: Names as hubs allow them; nothing that could lead out of a folder.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HOSTILE_SIGNS: Final = re.compile(r'[\x00-\x1f\\:*?"<>|]')
#: A real model has at most a few hundred shards.
FILES_MAX: Final = 1024
#: The largest open models are below 2 TB; more is a mistake or an attack on the disk.
TOTAL_BYTES_MAX: Final = 4 << 40
#: Everything but weights is small; the largest tokenizers are about 40 MB.
SMALL_FILE_BYTES_MAX: Final = 256 << 20

CONFIG: Final = "config.json"
_SIDE_FILES: Final = (
    "config*.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
    "model.safetensors.index.json",
)
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class RemoteFile(msgspec.Struct, frozen=True):
    r"""A file on the hub: its size in bytes and its checksum in hex.

    The checksum is a SHA-256 (64 digits) of the content or, for small files, Git's SHA-1
    (40 digits) of ``b"blob <size>\0"`` and the content; empty while unknown.
    """

    name: str
    size: int
    digest: str


class Listing(msgspec.Struct, frozen=True):
    """The files of a repository at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


class _Lfs(msgspec.Struct):
    sha256: str = ""
    size: int | None = None


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str = msgspec.field(name="blobId", default="")
    lfs: _Lfs | None = None


class _ModelInfo(msgspec.Struct):
    sha: str
    siblings: tuple[_Sibling, ...] = ()


class _ModelName(msgspec.Struct):
    id: str


def split_reference(reference: str) -> tuple[str, str]:
    """ORG and NAME of ``ORG/NAME``.

    Raises:
        InvalidRequest: it has another form.
    """
    parts = reference.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) and ".." not in part for part in parts):
        raise InvalidRequest(f"{reference!r} is no model of a hub; write it as ORG/NAME")
    return parts[0], parts[1]


def check_revision(revision: str) -> str:
    """The revision, if it can be one.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InvalidRequest(f"{revision!r} is no revision: a branch, a tag or a commit")
    return revision


def parse_listing(body: bytes) -> Listing:
    """The hub's answer to ``/api/models/ORG/NAME/revision/REV?blobs=true``.

    Raises:
        Unavailable: it is not such an answer.
        ModelFileRefused: it names files outside its folder, or too many.
    """
    try:
        info = msgspec.json.decode(body, type=_ModelInfo)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unavailable(f"the hub's listing makes no sense: {error}") from error
    if not _COMMIT.fullmatch(info.sha):
        raise Unavailable("the hub's listing names no commit")
    for sibling in info.siblings:
        _check_name(sibling.rfilename)
    return Listing(info.sha, tuple(_remote(sibling) for sibling in info.siblings))


def parse_names(body: bytes) -> tuple[str, ...]:
    """The names in the hub's answer to a search; none if it makes no sense."""
    try:
        return tuple(found.id for found in msgspec.json.decode(body, type=tuple[_ModelName, ...]))
    except (msgspec.MsgspecError, RecursionError):
        return ()


def choose(listing: Listing, reference: str) -> tuple[RemoteFile, ...]:
    """The files that the model needs: configuration, tokenizer and safetensors weights.

    Raises:
        ModelFileRefused: the repository holds no model that can be read safely.
    """
    # Folders inside a repository hold other formats of the same weights.
    root = {file.name: file for file in listing.files if "/" not in file.name}
    weights = _weights(list(root))
    if not weights:
        raise ModelFileRefused(f"{reference} {_why_no_weights(listing)}")
    if CONFIG not in root:
        raise ModelFileRefused(f"{reference} has no {CONFIG}, so it cannot be run as a model")
    side = [name for name in root if any(fnmatchcase(name, kind) for kind in _SIDE_FILES)]
    chosen = tuple(root[name] for name in sorted({*side, *weights}))
    if len(chosen) > FILES_MAX:
        raise ModelFileRefused(f"{reference} has {len(chosen)} files; {FILES_MAX} are the limit")
    return chosen


def check_sizes(files: tuple[RemoteFile, ...], reference: str) -> int:
    """The bytes of all files together.

    Raises:
        ModelFileRefused: a size is impossible.
    """
    for file in files:
        limit = TOTAL_BYTES_MAX if file.name.endswith(".safetensors") else SMALL_FILE_BYTES_MAX
        if not 0 <= file.size <= limit:
            raise ModelFileRefused(f"{reference}: {file.name} has {file.size} bytes; refused")
    total = sum(file.size for file in files)
    if total > TOTAL_BYTES_MAX:
        raise ModelFileRefused(f"{reference} has {total} bytes; {TOTAL_BYTES_MAX} are the limit")
    return total


def _weights(names: list[str]) -> list[str]:
    """One complete set of weights, where a repository may hold several."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if "model.safetensors.index.json" in names:
        return [name for name in names if fnmatchcase(name, "model-*.safetensors")]
    others = ("adapter_*", "consolidated*")
    return [
        name
        for name in names
        if name.endswith(".safetensors") and not any(fnmatchcase(name, kind) for kind in others)
    ]


def _why_no_weights(listing: Listing) -> str:
    names = [file.name for file in listing.files]
    if any(name.endswith(_PICKLES) for name in names):
        return (
            "has only pickled weights, which can run any code when they are loaded; "
            "choose a repository with .safetensors files"
        )
    if any(name.endswith(".gguf") for name in names):
        return "has only GGUF weights; choose a repository with .safetensors files"
    return "has no .safetensors weights"


def _remote(sibling: _Sibling) -> RemoteFile:
    if sibling.lfs is not None:
        size = sibling.lfs.size if sibling.size is None else sibling.size
        return RemoteFile(sibling.rfilename, -1 if size is None else size, sibling.lfs.sha256)
    size = -1 if sibling.size is None else sibling.size
    return RemoteFile(sibling.rfilename, size, sibling.blob_id)


def _check_name(name: str) -> None:
    """Refuse a name that could lead out of its folder on any system."""
    parts = name.split("/")
    hostile = any(part in {"", ".", ".."} for part in parts) or re.search(
        r'[\x00-\x1f\\:*?"<>|]', name
    )
    if hostile or len(name) > 512:
        raise ModelFileRefused(f"the hub lists a file with the name {name[:80]!r}; refused")
