"""`starai models quantize`: load, measure, convert, measure again, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starai.core.errors import ConfigurationRefused
from starai.engines.linear.fusing import Refitted, refit
from starai.engines.linear.quality import SAMPLE, perplexity, windows_of
from starai.engines.linear.saving import save
from starai.engines.text.loading import load_model
from starai.models.codec import open_codec
from starai.models.manifest import ModelManifest

#: Attention while nothing is served; the one that every architecture has.
_ATTENTION: Final = "eager"
#: Called with what is being done, tokens done and tokens in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out.

    Attributes:
        tokens: how many tokens were predicted.
        before: perplexity of the model as it was.
        after: perplexity of the converted model.
        refitted: what was converted.
    """

    tokens: int
    before: float
    after: float
    refitted: Refitted


def quantise_model(
    manifest: ModelManifest,
    kind: str,
    folder: Path,
    *,
    head: str = "",
    text: Path | None = None,
    tokens: int = 4096,
    progress: Progress = lambda _what, _done, _total: None,
) -> Outcome:
    """Write ``manifest``'s model with weights of ``kind`` to ``folder``.

    Args:
        manifest: any model that the catalogue opens, quantised ones not.
        kind: ``int8`` or ``int4``.
        folder: where; must be new or empty.
        head: kind of the output layer; see `refit`.
        text: what perplexity is measured on; a sample of ours by default.
        tokens: how much of it at most.
        progress: is told how far it is.

    Raises:
        ConfigurationRefused: the folder is in use, or the text is too short or not text.
        ModelFileRefused: the model cannot be loaded, or cannot be converted.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationRefused(f"{folder} is not empty: name another folder with --out")
    windows = _windows(manifest, text or SAMPLE, tokens)
    total = sum(len(window) for window in windows)
    model = load_model(manifest, _ATTENTION)

    def measure(what: str) -> float:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(what, done, total)

        progress(what, 0, total)
        return perplexity(model, windows, count)

    before = measure("perplexity before")
    progress(f"to {kind}", 0, total)
    refitted = refit(model, kind, head=head)
    after = measure("perplexity after")
    save(model, manifest, kind, folder)
    return Outcome(total - len(windows), before, after, refitted)


def _windows(manifest: ModelManifest, text: Path, tokens: int) -> list[list[int]]:
    try:
        content = text.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationRefused(f"{text}: cannot be read as UTF-8 text") from error
    # No tokenizer makes more than one token of a byte; the rest need not be encoded.
    ids = open_codec(manifest).encode(content[: tokens * 16])[:tokens]
    begin = manifest.bos_token_id
    head = begin if begin is not None and ids[:1] == [begin] else None
    return windows_of(ids, head, manifest.context_length)
