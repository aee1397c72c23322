"""What an engine's start imports, and that what it left out works when it is wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

_OPEN = """
import sys, starai.engines.registry
from starai.engines.base import EngineSpec
starai.engines.registry.open_engine(EngineSpec("text", "embedded", slots=1, threads=1))
import torch, transformers
heavy = ("torch._dynamo", "torch.distributed.tensor", "sympy")
print([name for name in heavy if name in sys.modules])
print(torch.distributed.is_available(), transformers.models.llama.LlamaConfig.__name__)
"""
_LISTED = """
from pathlib import Path
from transformers.utils.import_utils import define_import_structure as define
from starai.engines.text.lean import _listed_once
place = str(Path(transformers.__file__).parent / "models" / "__init__.py")
print(_listed_once(define)(place) == define(place))
"""
_LATER = """
with transformers.masking_utils.TransformGetItemToIndex():
    print(torch._dynamo.allow_in_graph.__module__)
"""


def test_an_engine_opens_without_torchs_compiler_which_can_be_had_later() -> None:
    """Nor spreading nor algebra is imported, models are listed as ever, it comes when called."""
    done = subprocess.run(
        [sys.executable, "-c", _OPEN + _LISTED + _LATER],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    heavy, state, alike, compiler = done.stdout.splitlines()
    assert heavy == "[]"
    assert state == "True LlamaConfig"
    assert alike == "True"
    assert compiler == "torch._dynamo.decorators"


def test_a_definition_that_mixes_counts_with_weights_is_made_all_the_same() -> None:
    """Counts are numbers in a skeleton; where that fails they are shapes like the rest."""
    import torch  # noqa: PLC0415 - see above

    from starai.engines.text import loading  # noqa: PLC0415 - see above

    def mixed() -> torch.Tensor:
        with torch.device("meta"):
            return torch.arange(3) + torch.nn.Parameter(torch.ones(3))

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.device("meta"):
            return torch.arange(3) + 1, torch.nn.Embedding(3, 2).weight

    assert loading._made(mixed).is_meta
    counts, weight = loading._made(plain)
    assert counts.tolist() == [1, 2, 3]
    assert weight.is_meta
