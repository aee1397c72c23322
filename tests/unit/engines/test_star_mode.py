"""``attention="star"``: what the engine computes is transformers with Star Attention's mask."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from starai.core.errors import ConfigurationRefused  # noqa: E402
from starai.engines.base import EngineSpec  # noqa: E402
from starai.engines.registry import open_engine  # noqa: E402
from starai.protocol import tokens  # noqa: E402
from starai.protocol.generation import Generation, Sampling  # noqa: E402

CONTEXT, BLOCK = 2060, 528  # a quarter of the context, in whole pages of 16
PROMPT = [(17 * n * n + 5 * n + n // 97) % 290 + 3 for n in range(CONTEXT + 9)]
LENGTH = 5


def generation(prompt=PROMPT, context=CONTEXT, length=LENGTH):
    return Generation(
        prompt=tokens.pack(prompt),
        max_tokens=length,
        sampling=Sampling(b"k" * 32, temperature=0.0),
        stop_token_ids=(),
        salt=b"s" * 16,
        context_tokens=context,
    )


def open_long(folder, **options):
    options = {"context": 4096, **options}
    return open_engine(EngineSpec("text", str(folder), slots=4, threads=1, options=options))


def run(engine, asked):
    ids = {key: [] for key in asked}
    for key, wanted in asked.items():
        engine.admit(key, wanted)
    while engine.has_work:
        for news in engine.step():
            assert not news.error
            ids[news.key] += news.ids
    engine.check_integrity()
    return ids


def star_mask(size):
    """Rows of a block see it and the first one; the query sees everything before it."""
    place = torch.arange(size)
    block = place // BLOCK
    seen = (block[:, None] == block[None, :]) | (block[None, :] == 0)
    seen |= (place >= CONTEXT)[:, None]
    seen &= place[None, :] <= place[:, None]
    return torch.zeros(1, 1, size, size).masked_fill(~seen, torch.finfo(torch.float32).min)


@torch.inference_mode()
def masked_answer(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = list(PROMPT)
    for _ in range(LENGTH):
        mask = star_mask(len(ids))
        logits = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("native", [0, 1])
def test_blocks_are_computed_as_the_mask_says(folder_of, steady, native):
    """In pieces that cross blocks, alone and beside others: the mask's own tokens."""
    folder = folder_of("long_llama")
    engine = open_long(folder, attention="star", native=native)
    expected = masked_answer(folder)
    engine._pace = steady(700)  # pieces that do not end where blocks end
    short = generation([5, 6, 7], 0, 12)
    found = run(engine, {b"star": generation(), b"twin": generation(), b"short": short})
    assert found[b"star"] == found[b"twin"] == expected
    assert found[b"short"] == run(open_long(folder), {b"short": short})[b"short"]


def test_blocks_are_not_what_dense_attention_gives(folder_of):
    """The mode is an approximation: its memory is never taken for that of dense attention."""
    folder = folder_of("long_llama")
    engine = open_long(folder, attention="star")
    run(engine, {b"star": generation()})
    before = engine.memory_report().reused_tokens
    other = generation([*PROMPT[:-1], 4], CONTEXT - 100)  # another split: other blocks
    run(engine, {b"other": other})
    assert engine.memory_report().reused_tokens == before
    run(engine, {b"same": generation([*PROMPT[:-1], 4])})
    assert engine.memory_report().reused_tokens == before + len(PROMPT) // 16 * 16


def test_short_prompts_are_computed_densely(folder_of):
    """Below the threshold the mode changes nothing."""
    folder, prompt = folder_of("long_llama"), PROMPT[:600]
    asked = {b"a": generation(prompt, 0)}
    assert run(open_long(folder, attention="star"), asked) == run(open_long(folder), asked)


def test_models_that_cannot_be_cut_are_refused_or_left_dense(folder_of):
    """A model with sliding windows is refused for star, and computed densely for auto."""
    with pytest.raises(ConfigurationRefused, match="sliding windows"):
        open_long(folder_of("gemma3"), attention="star")
    assert run(open_long(folder_of("gemma3"), attention="auto"), {b"a": generation([5, 6], 0)})
