"""What a model is: its identity (`root`) and the few numbers that every party needs.

Knows nothing about how a model is run, nor about where files come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import msgspec

from starai.core.errors import ModelFileRefused

Kind = Literal["huggingface", "llama2c", "gguf", "served", "mock"]

#: Read size of the file hash: large enough that the hash, not the call, is the cost.
_HASH_CHUNK_BYTES: Final = 1 << 20


class SamplingDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model's makers would have it sampled when a request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


class ModelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as the network knows it.

    ``root`` (32 bytes) is `merkle_root` over the files that define the model: two folders with
    the same root answer alike. ``path`` is the folder (huggingface, served), the ``.bin``
    (llama2c), the ``.gguf``, or empty (mock). ``eos_token_ids`` end an answer; ``context_length``
    counts prompt and answer. Of a served model the weights are a server's, and not in the root.
    """

    name: str
    root: bytes
    kind: Kind
    path: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    num_parameters: int
    architecture: str
    sampling: SamplingDefaults = SamplingDefaults()


def merkle_root(files: Mapping[str, Path]) -> bytes:
    """The identity of a set of files, by relative name: the tree hash of RFC 9162, section 2.1.1.

    A leaf is ``SHA-256(0x00 | u32 length of the name | name | SHA-256 of the file)``, a node
    ``SHA-256(0x01 | left | right)``; leaves are sorted by the bytes of the name.
    """
    named = sorted((name.encode(), file_sha256(path)) for name, path in files.items())
    return _tree([_leaf(name, digest) for name, digest in named])


def file_sha256(path: Path) -> bytes:
    """The SHA-256 of a file; remembered in memory while its size and time of change stay.

    Raises:
        ModelFileRefused: the file cannot be read.
    """
    try:
        stat = path.stat()
        return _file_sha256(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError as error:
        raise ModelFileRefused(f"cannot read {path.name}: {error.strerror}") from error


@lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int, inode: int) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _leaf(name: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + len(name).to_bytes(4, "big") + name + digest).digest()


def _tree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + _tree(leaves[:split]) + _tree(leaves[split:])).digest()
