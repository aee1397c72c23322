"""Finds a model by its reference and says what it is; wrong files are refused with the reason.

Knows the places where models lie, not how they came there nor how they run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starai.core.errors import ModelFileRefused, ModelNotFound
from starai.models.folder import read_folder, read_served
from starai.models.gguf.model import read_gguf
from starai.models.llama2c import read_llama2c_header
from starai.models.llama2c_tokens import find_llama2c_tokenizer
from starai.models.manifest import ModelManifest, merkle_root

EMBEDDED_NAME: Final = "starai-tiny"
EMBEDDED_FOLDER: Final = Path(__file__).parent / "embedded"
MOCK_NAME: Final = "mock"
#: A folder without weights: the model's server has them.
SERVED_PREFIX: Final = "served:"
#: The mock's context is large enough for any benchmark of the road.
_MOCK_CONTEXT: Final = 8192
#: The mock's tokens are the 256 bytes and one end token.
_MOCK_EOS: Final = 256
#: llama2.c's convention (run.c): 1 begins a story and, generated, ends it; 2 ends a text.
_LLAMA2C_BOS: Final = 1
_LLAMA2C_EOS: Final = (1, 2)


def open_model(reference: str, store: Path | None = None) -> ModelManifest:
    """What the model at ``reference`` is.

    Args:
        reference: ``embedded`` (or ``starai-tiny``), ``mock``, the path of a Hugging Face folder,
            of a ``.gguf`` or of a llama2.c ``.bin``, ``ORG/NAME`` in ``store``, or
            ``served:FOLDER`` with the tokenizer of a model that only a server has.
        store: the folder of pulled models.

    Raises:
        ModelNotFound: nothing is there.
        ModelFileRefused: it is wrong, truncated or contradicts itself.
    """
    if reference == MOCK_NAME:
        return _mock()
    if reference in ("embedded", EMBEDDED_NAME):
        if not (EMBEDDED_FOLDER / "config.json").is_file():
            raise ModelNotFound("this installation has no embedded model; train or pull one")
        return read_folder(EMBEDDED_FOLDER, EMBEDDED_NAME)
    if reference.startswith(SERVED_PREFIX):
        folder = Path(reference.removeprefix(SERVED_PREFIX)).expanduser().resolve()
        return read_served(folder, folder.name)
    pulled = _in_store(reference, store)
    if pulled is not None:
        return read_folder(pulled, reference)
    path = Path(reference).expanduser()
    if not path.is_dir() and not path.is_file():
        raise ModelNotFound(
            f"there is no model {reference!r}: give 'embedded', a folder, a .gguf or llama2.c .bin "
            "file, or pull ORG/NAME first"
        )
    return _at(path.resolve())


def _at(path: Path) -> ModelManifest:
    if path.is_dir():
        return read_folder(path, path.name)
    if path.suffix == ".gguf":
        return read_gguf(path)
    if path.suffix != ".bin":
        raise ModelFileRefused(
            f"{path.name}: neither a Hugging Face folder nor a .gguf or llama2.c .bin file"
        )
    return _read_llama2c(path)


def _in_store(reference: str, store: Path | None) -> Path | None:
    parts = reference.split("/")
    if store is None or len(parts) != 2 or any(part in ("", ".", "..") for part in parts):
        return None
    folder = store / parts[0] / parts[1]
    return folder.resolve() if folder.is_dir() else None


def _mock() -> ModelManifest:
    return ModelManifest(
        name=MOCK_NAME,
        root=hashlib.sha256(b"starai/v1/mock-model").digest(),
        kind="mock",
        path="",
        context_length=_MOCK_CONTEXT,
        vocab_size=_MOCK_EOS + 1,
        eos_token_ids=(_MOCK_EOS,),
        bos_token_id=None,
        num_parameters=0,
        architecture="Mock",
    )


def _read_llama2c(path: Path) -> ModelManifest:
    header = read_llama2c_header(path)
    tokenizer = find_llama2c_tokenizer(path, header.vocab_size)
    return ModelManifest(
        name=path.stem,
        root=merkle_root({path.name: path, tokenizer.name: tokenizer}),
        kind="llama2c",
        path=str(path),
        context_length=header.context_length,
        vocab_size=header.vocab_size,
        eos_token_ids=_LLAMA2C_EOS,
        bos_token_id=_LLAMA2C_BOS,
        num_parameters=header.num_parameters,
        architecture="LlamaForCausalLM",
    )
