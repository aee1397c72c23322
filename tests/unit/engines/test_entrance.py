"""Before an engine: what must be made ready first keeps nobody else waiting."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.engines.base import EngineSpec
from starai.engines.entrance import Entrance
from starai.engines.registry import open_engine
from starai.protocol import tokens
from starai.protocol.generation import Generation, Grammar, Sampling


def generation(grammar=None, max_tokens=5, **changes):
    sampling = Sampling(b"k" * 32, temperature=0.0)
    return Generation(
        *(tokens.pack([5, 6]), max_tokens, sampling, (), b"s" * 16), grammar=grammar, **changes
    )


def costly(number):
    """A schema whose compilation takes most of a second."""
    return Grammar("json_schema", json.dumps({"type": "number", "multipleOf": 99_991 - number}))


@pytest.fixture(scope="module")
def engine():
    return open_engine(EngineSpec("text", "embedded", slots=3, threads=1))


def run(engine, entrance):
    """Run until nobody waits or runs: ids and errors by key."""
    ids, errors = {}, {}
    ends_s = time.monotonic() + 30
    while (engine.has_work or len(entrance)) and time.monotonic() < ends_s:
        for news in [*entrance.let_in(), *engine.step()]:
            ids.setdefault(news.key, []).extend(news.ids)
            if news.error:
                errors[news.key] = news.error
    return ids, errors


def test_a_grammar_is_compiled_beside_the_steps(engine):
    """While a costly grammar is compiled the others get their tokens; then its answer begins."""
    entrance = Entrance(engine)
    begun_s = time.process_time()
    engine._grammars.constraint(costly(0))
    cost_s = time.process_time() - begun_s
    assert entrance.admit(b"plain", generation(max_tokens=40)) == []
    assert entrance.admit(b"costly", generation(costly(1))) == []
    assert len(entrance) == 1
    ids, _ = run(engine, entrance)
    assert list(ids) == [b"plain", b"costly"]
    assert (len(ids[b"plain"]), len(ids[b"costly"]) > 0) == (40, True)
    assert cost_s > 0.1  # else this shows nothing


def test_who_waits_can_be_refused_and_cancelled(engine):
    """A bad grammar is told when it is known; places are bounded; a cancelled one never begins."""
    entrance = Entrance(engine)
    for number in range(3):
        assert entrance.admit(b"%d" % number, generation(costly(10 + number))) == []
    assert [one.error for one in entrance.admit(b"0", generation(costly(10)))] == [
        "invalid_request"
    ]
    full = entrance.admit(b"more", generation(costly(20)))
    assert [one.error for one in full] == ["overloaded"]
    for number in range(3):
        entrance.cancel(b"%d" % number)
    assert entrance.admit(b"bad", generation(Grammar("regex", "("))) == []
    ids, errors = run(engine, entrance)
    assert (ids, errors) == ({b"bad": []}, {b"bad": "invalid_request"})


def test_what_nobody_thought_of_fails_alone(engine, monkeypatch):
    """An admission that raises anything ends that request only."""
    entrance = Entrance(engine)

    def fail(name, in_use):
        raise PermissionError(name)

    monkeypatch.setattr(engine._adapters, "find", fail)
    assert [one.error for one in entrance.admit(b"a", generation())] == ["internal_error"]
    assert not engine.has_work
