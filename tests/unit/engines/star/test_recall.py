"""The recall task asks what its documents answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.recall import task, train
from training.recall.task import Kind


@pytest.mark.parametrize("kind", list(Kind))
def test_answers_follow_from_the_document(kind):
    """Each key stands once; its answer is what stands behind it, read as the opening tells."""
    rng = np.random.default_rng(1)
    for length, pairs in ((64, 8), (512, 64)):
        found = task.document(rng, length, pairs, kind)
        assert len(found.ids) == length
        means = meaning(found.ids, kind)
        for key, value, stands in zip(found.keys, found.values, found.places, strict=True):
            (place,) = np.flatnonzero(found.ids == key)
            assert place == stands >= kind.opening
            written = found.ids[place + 1] - task.VALUE
            assert value == task.VALUE + means[written]
        assert found.hidden.all()
        assert found.ids.max() < kind.vocabulary


def meaning(ids, kind):
    """What each written value means, read from a document's opening alone."""
    if kind is Kind.PLAIN:
        return np.arange(task.VALUES)
    if kind is Kind.CODED:
        return task.TRANSLATION[(ids[1] - task.LEGEND) // task.LEGEND_TOKENS]
    terms, meanings = np.divmod(ids[1 : kind.opening] - task.ENTRY, task.TERMS)
    assert sorted(terms) == sorted(meanings) == list(range(task.TERMS))
    return meanings[np.argsort(terms)]


def test_each_document_has_a_glossary_of_its_own():
    """What a value means differs between documents, so only the opening can tell."""
    rng = np.random.default_rng(4)
    openings = [task.document(rng, 64, 8, Kind.GLOSSARY).ids for _ in range(50)]
    means = np.stack([meaning(ids, Kind.GLOSSARY) for ids in openings])
    assert all(len(set(column)) > task.TERMS // 2 for column in means.T)


def test_rows_end_in_questions_with_their_answers():
    """Every third token behind the document is an answer, and its target stands at the key."""
    rng = np.random.default_rng(2)
    ids, targets, _ = task.row(rng, 64, 8, 16, Kind.CODED)
    assert len(ids) == len(targets) == 64 + 48
    assert (ids[64::3] == task.ASK).all()
    assert (targets[65::3] == ids[66::3]).all()
    assert targets[-1] == task.IGNORED


def test_rows_tell_what_can_be_known_while_reading():
    """Behind each key stands what the answer to it will be, and nowhere else."""
    ids, targets, known = task.row(np.random.default_rng(2), 64, 16, 16, Kind.GLOSSARY)
    answers = dict(zip(ids[65::3], targets[65::3], strict=True))
    places = np.flatnonzero(known != task.IGNORED)
    assert {ids[place - 1]: known[place] for place in places} == answers


def test_translated_pairs_are_spelled_out():
    """About half of a coded training document's answers stand behind their pairs."""
    rng = np.random.default_rng(3)
    found = task.document(rng, 512, 64, Kind.CODED, translated=0.5)
    assert 16 < (~found.hidden).sum() < 48
    for key, value, hidden in zip(found.keys, found.values, found.hidden, strict=True):
        (place,) = np.flatnonzero(found.ids == key)
        if not hidden:
            assert found.ids[place + 2] == value


def test_a_plain_model_becomes_the_beginning_of_a_glossary_model():
    """Known tokens keep their vectors, and a new entry resembles its own term and no other."""
    plain = train.build(train.Recipe(seed=3)).state_dict()
    model = train.build(train.Recipe(kind=Kind.GLOSSARY), plain)
    table = model.model.embed_tokens.weight.detach()
    assert torch.equal(table[: task.ENTRY], plain["model.embed_tokens.weight"])
    terms = torch.nn.functional.normalize(table[task.VALUE : task.VALUE + task.TERMS])
    entries = torch.nn.functional.normalize(table[task.ENTRY :])
    nearest = (entries @ terms.T).argmax(1)
    assert torch.equal(nearest, torch.arange(task.TERMS).repeat_interleave(task.TERMS))


def test_reading_is_taught_to_the_heads_that_look_up_alone():
    """Some steps change those heads and the entries, and nothing else that the model knows."""
    recipe = train.Recipe(kind=Kind.GLOSSARY, reading_steps=4, batch_tokens=256)
    model = train.build(recipe)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train.teach_reading(model, recipe)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    layer = "model.layers.0.self_attn."
    assert {name for name in changed if not name.startswith(layer)} == {"model.embed_tokens.weight"}
    for name, kept in (("q_proj.weight", 64), ("k_proj.weight", 64), ("v_proj.weight", 64)):
        rows = (after[layer + name] != before[layer + name]).any(1)
        assert not rows[:kept].any()
        assert rows[kept:].all()
    same = after["model.embed_tokens.weight"] == before["model.embed_tokens.weight"]
    assert same[: task.ENTRY].all()
