"""Do small language models lean on the first token, and lose without it? A part of `star.py`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from star_accuracy import ANCHORS, PAGE, ROOT, STAR, sink_lines
from torch.nn import functional
from training.recall.anchors import Anchor, Words, surprise
from transformers import DynamicCache

import starai.engines.text.attention as packed
from starai.engines.star.planning import plan_blocks
from starai.engines.text.attention import Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.loading import load_model
from starai.engines.text.pool import KeyValuePool
from starai.models.catalog import open_model
from starai.models.codec import open_codec

DATA = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared/data"))
MODELS = {
    "stories260K": str(DATA / "models/stories260K/stories260K.bin"),
    "the embedded model": "embedded",
}
TEXTS, CONTEXT, REST = 24, 256, 192


def language_section() -> Iterator[str]:
    """Perplexity behind a context read with each anchor, of texts that the models wrote."""
    yield "## Language models: perplexity behind the context, and sinks"
    yield ""
    yield (
        "The paper explains its anchor by attention sinks: heads that have nothing to find lean on "
        "the first token, and a block without one makes a false one of its own. That needs a model "
        f"with sinks. Here are two that were trained on text, on {TEXTS} texts each that it wrote "
        f"itself at temperature 1: {CONTEXT} tokens of context, read in blocks of a quarter, and "
        f"the perplexity of the {REST - 1} tokens that follow, which see all of it. A difference "
        "counts beyond two standard errors."
    )
    yield ""
    for name, reference in MODELS.items():
        if reference != "embedded" and not Path(reference).exists():
            yield f"{name} was not there (`STARAI_SHARED_DATA`)."
            yield ""
            continue
        yield from one_model(name, reference)


def one_model(name: str, reference: str) -> Iterator[str]:
    """The table of one model."""
    manifest = open_model(reference)
    model, codec = load_model(manifest, packed.NAME).float(), open_codec(manifest)
    # The paper's constant token is a full stop or a blank.
    words = Words(codec.encode("a.")[-1], range(manifest.vocab_size))
    texts = written(model, manifest.bos_token_id)
    measure = partial(surprise, partial(forward, model), texts, words=words)
    dense = measure(plan=plan_blocks(CONTEXT, blocks=1, page=PAGE), anchor=Anchor())
    found = {
        anchor: measure(plan=plan_blocks(CONTEXT, blocks=4, page=PAGE), anchor=how)
        for anchor, (how, _) in ANCHORS.items()
    }
    yield f"**{name}**, {model.config.num_hidden_layers} layers:"
    yield ""
    yield "| Anchor | perplexity | nats above dense | worse than the first block |"
    yield "|---|---|---|---|"
    yield f"| dense, no blocks | {math.exp(dense.mean()):.3f} | | |"
    without = np.array([alone(partial(forward, model), text[CONTEXT:]) for text in texts])
    above = f"{(without - dense).mean():+.4f}"
    yield f"| no context at all | {math.exp(without.mean()):.3f} | {above} | |"
    for anchor, nats in found.items():
        above = f"{(nats - dense).mean():+.4f}"
        verdict = "" if anchor == STAR else worse(nats, found[STAR])
        print(f"{name}: {anchor} {math.exp(nats.mean()):.3f} {above} {verdict}", flush=True)
        yield f"| {anchor} | {math.exp(nats.mean()):.3f} | {above} | {verdict} |"
    yield ""
    yield from sink_lines(model, texts[:8])


def written(model: Any, begin: int) -> Any:
    """Texts of a model, drawn from its own distribution, int64 [texts, tokens]."""
    torch.manual_seed(2026)
    model.set_attn_implementation("sdpa")
    ids, cache = torch.full((TEXTS, 1), begin), DynamicCache()
    for _ in range(CONTEXT + REST - 1):
        logits = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits
        ids = torch.cat([ids, torch.multinomial(torch.softmax(logits[:, -1], -1), 1)], dim=1)
    model.set_attn_implementation(packed.NAME)
    return ids.numpy()


def alone(run: Any, rest: Any) -> float:
    """The mean nats of what follows a context, without the context: what there is to lose."""
    pages = -(-len(rest) // PAGE)
    span = Span(range(pages), 0, len(rest), position=CONTEXT)
    logits = run(Pass(KeyValuePool(pages, PAGE), [span]), rest.tolist(), list(range(len(rest) - 1)))
    return float(functional.cross_entropy(logits, torch.from_numpy(rest[1:])))


def worse(nats: Any, star: Any) -> str:
    """Whether texts are less expected than behind the first block [texts], in nats a token."""
    apart = nats - star
    error = apart.std(ddof=1) / math.sqrt(len(apart))
    said = "yes" if apart.mean() > 0 else "**no**, better"
    if abs(apart.mean()) <= 2 * error:
        said = "no difference seen"
    return f"{said}, {apart.mean():+.4f} ± {error:.4f}"
