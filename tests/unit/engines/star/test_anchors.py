"""Star Attention's ablations read documents as they say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from training.recall import task, train
from training.recall.anchors import Anchor, Content, Places, Words, read, right, surprise
from training.recall.sinks import OPENING, sinks
from training.recall.task import Kind

import starai.engines.text.attention as packed
from starai.engines.paging.memory import PagedMemory
from starai.engines.star.blockwise import prefill
from starai.engines.star.planning import plan_blocks
from starai.engines.text.attention import Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.pool import KeyValuePool

PAGE = 16
PLAN = plan_blocks(128, blocks=4, page=PAGE)
WORDS = Words(constant=task.DULL, tokens=range(task.DULL, Kind.GLOSSARY.vocabulary))
TRIED = [
    Anchor(),
    Anchor(Content.NONE),
    Anchor(Content.CONSTANT),
    Anchor(Content.RANDOM),
    Anchor(Content.SHUFFLED),
    Anchor(Content.PREVIOUS, Places.PREVIOUS),
    Anchor(places=Places.PREVIOUS),
    Anchor(places=Places.SCATTERED),
]


@pytest.fixture(scope="module")
def model():
    """An untrained recall model; what it answers does not matter."""
    model = train.build(train.Recipe(kind=Kind.GLOSSARY)).eval()
    model.set_attn_implementation(packed.NAME)
    return model


@pytest.fixture(scope="module")
def ids():
    """A document of eight pages."""
    return task.document(np.random.default_rng(1), 128, 16, Kind.GLOSSARY).ids


def states(model, ids, plan, anchor):
    """Keys of all layers behind one another, of the context's tokens."""
    rng = np.random.default_rng(2)
    with torch.inference_mode():
        pool = read(partial(forward, model), ids, plan, anchor, rng, WORDS)
    return keys(pool, range(len(ids) // PAGE), len(ids))


def keys(pool, table, tokens):
    """[layers, heads, tokens, width]."""
    layers = [pool.layer(layer, like(), like())[0] for layer in range(2)]
    return torch.stack([one.read(list(table), 0, tokens, torch.float32)[0] for one in layers])


def like():
    """A tensor shaped as the model's keys."""
    return torch.zeros(1, 2, 1, 64)


def test_stars_own_anchor_is_read_as_the_engine_reads_it(model, ids):
    """The unchanged anchor gives the keys that the engine's own first phase gives."""
    pool, memory = KeyValuePool(16, PAGE), PagedMemory(16, block_tokens=PAGE)
    with torch.inference_mode():
        prefill(partial(forward, model), pool, memory, b"s", ids.tolist(), PLAN)
    engine = keys(pool, memory.table(b"s"), len(ids))
    torch.testing.assert_close(states(model, ids, PLAN, Anchor()), engine, atol=1e-5, rtol=1e-5)


def test_every_other_anchor_changes_what_is_read(model, ids):
    """The first layer's keys are the tokens' own; the second's depend on which anchor it is."""
    found = [states(model, ids, PLAN, anchor) for anchor in TRIED]
    for one in found[1:]:
        torch.testing.assert_close(one[0], found[0][0])
        torch.testing.assert_close(one[:, :, : PLAN.block], found[0][:, :, : PLAN.block])
    behind = [one[1, :, PLAN.block :] for one in found]
    for number, one in enumerate(behind):
        assert all((one - other).abs().max() > 1e-3 for other in behind[:number])


def test_without_an_anchor_a_block_is_read_as_if_it_were_alone(model, ids):
    """No anchor is a pass over the block at its own positions, and nothing else."""
    place = 2 * PLAN.block
    pool = KeyValuePool(2, PAGE)
    with torch.inference_mode():
        run = Pass(pool, [Span([0, 1], 0, PLAN.block, position=place)])
        forward(model, run, ids[place : place + PLAN.block].tolist(), [0])
    alone = keys(pool, [0, 1], PLAN.block)
    found = states(model, ids, PLAN, Anchor(Content.NONE))[:, :, place : place + PLAN.block]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("anchor", TRIED)
def test_anchors_are_what_they_are_called(anchor, ids):
    """Tokens and positions of each kind, before the third block."""
    rng = np.random.default_rng(3)
    tokens = anchor.tokens(rng, ids, PLAN, 2, WORDS)
    positions = anchor.positions(rng, PLAN, 2)
    first, previous = ids[:32], ids[32:64]
    expected = {
        Content.FIRST: tokens.tolist() == first.tolist(),
        Content.NONE: len(tokens) == 0,
        Content.CONSTANT: set(tokens) == {task.DULL},
        Content.RANDOM: len(tokens) == 32 and len(set(tokens) - set(ids)) > 8,
        Content.SHUFFLED: sorted(tokens) == sorted(first) and tokens.tolist() != first.tolist(),
        Content.PREVIOUS: tokens.tolist() == previous.tolist(),
    }
    assert expected[anchor.content]
    assert len(set(positions)) == 32
    assert list(positions) == sorted(positions)
    bounds = {Places.FIRST: (0, 31), Places.PREVIOUS: (32, 63)}.get(anchor.places)
    assert bounds in (None, (positions[0], positions[-1]))
    assert positions[-1] < 64


def test_questions_asked_together_are_answered_as_alone(model):
    """Each question sees the context and itself, not the others beside it."""
    rng = np.random.default_rng(5)
    documents = [task.document(rng, 64, 8, Kind.GLOSSARY) for _ in range(2)]
    plan = plan_blocks(64, blocks=2, page=PAGE)
    run = partial(right, partial(forward, model), documents, plan=plan, anchor=Anchor())
    with torch.inference_mode():
        # Who is right is luck with an untrained model, so answers are made right for the half.
        for document in documents:
            for pair in range(0, 8, 2):
                query = [*document.ids.tolist(), task.ASK, int(document.keys[pair])]
                pool = read(
                    partial(forward, model), document.ids, plan, Anchor(), rng, WORDS, pages=1
                )
                span = Span(list(range(5)), 64, 2)
                logits = forward(model, Pass(pool, [span]), query[-2:], [1])
                document.values[pair] = int(logits[0].argmax())
                document.values[pair + 1] = -1
        found = run([np.arange(8)] * 2, words=WORDS)
    assert found.tolist() == [[True, False] * 4] * 2


def test_surprise_is_that_of_the_whole_text_where_there_is_one_block(model, ids):
    """With one block, what follows is as unexpected as in a dense pass; with four, it is not."""
    texts, whole = np.stack([ids, ids[::-1]]).copy(), plan_blocks(64, blocks=1, page=PAGE)
    run = partial(forward, model)
    with torch.inference_mode():
        found = surprise(run, texts, whole, Anchor(), WORDS)
        for text, nats in zip(texts, found, strict=True):
            dense = Pass(KeyValuePool(8, PAGE), [Span(range(8), 0, 128)])
            logits = forward(model, dense, text.tolist(), list(range(64, 127)))
            expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(text[65:]))
            assert nats == pytest.approx(float(expected), rel=1e-5)
        cut = surprise(run, texts, plan_blocks(64, blocks=4, page=PAGE), Anchor(), WORDS)
    assert (np.abs(cut - found) > 1e-4).all()


def test_sinks_are_shares_of_attention(model, ids):
    """Nothing stands out in an untrained model; a head made to look at the first token does."""
    texts = np.stack([ids, ids])
    first, opening = sinks(model, texts)
    assert first.shape == opening.shape == (2, 2)
    assert (first + opening <= 1).all()
    assert opening[1].max() < 4 * OPENING / 64
    assert first[1].max() < 0.2
    leaning = train.build(train.Recipe(kind=Kind.GLOSSARY)).eval()
    attention = leaning.model.layers[1].self_attn
    with torch.no_grad():
        # Its keys are those of a token whose vector is far longer in one direction than any other.
        leaning.model.embed_tokens.weight[task.BEGIN, 0] = 100.0
        attention.q_proj.bias[:64] = 30.0
        attention.k_proj.weight[:64, 0] = 1.0
    assert sinks(leaning, texts)[0][1, 0] > 0.5
