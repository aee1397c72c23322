"""What a grammar lets through, what it costs, and how bad ones are refused."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from starai.core.errors import InvalidRequest
from starai.engines.decoding.constraint import Grammars
from starai.engines.decoding.grammars import check_grammar
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.models.pieces import Pieces
from starai.protocol.generation import Grammar

TINY = open_model("embedded")
CODEC = open_codec(TINY)
GRAMMARS = Grammars(CODEC, TINY.eos_token_ids)
(EOS,) = TINY.eos_token_ids
PET = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
}


def schema(**fields):
    return Grammar("json_schema", json.dumps(fields))


def write(grammar, seed, accepted=(), limit=400):
    """An answer that wants nothing in particular but to keep to the grammar."""
    constraint = GRAMMARS.constraint(grammar, accepted)
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(limit, TINY.vocab_size)).astype(np.float32)
    ids = list(accepted)
    for row in rows[len(ids) :]:
        ids.append(int(constraint.mask(row).argmax()))
        constraint.take(ids[-1])
        if ids[-1] == EOS:
            assert constraint.is_complete
            break
    return ids


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_any_noise_becomes_json_of_the_schema(seed):
    """Whatever the logits say, the answer ends and is valid."""
    pet = json.loads(CODEC.decode(write(schema(**PET), seed)))
    assert pet["kind"] in ("cat", "dog")
    assert 0 <= pet["age"] <= 30
    assert all(isinstance(tag, bool) for tag in pet["tags"])
    assert list(pet) == ["kind", "age", "tags"]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_who_takes_over_goes_on_alike(seed, cut):
    """A second constraint that replays part of an answer lets through the same rest."""
    whole = write(schema(**PET), seed)
    assert write(schema(**PET), seed, whole[: min(cut, len(whole) - 1)]) == whole


@pytest.mark.parametrize(
    ("grammar", "check"),
    [
        (Grammar("regex", r"[0-9]{4}-[a-c]+!"), r"[0-9]{4}-[a-c]+!"),
        (Grammar("choice", '["yes", "n\\u00e9\\n\\"\\\\ \\ud83d\\ude00"]'), 'yes|né\n"\\\\ 😀'),
        (Grammar("lark", 'start: "ab" start | "c"'), "(ab)*c"),
    ],
)
def test_other_kinds_of_grammars(grammar, check):
    """Regular expressions, choices and Lark grammars hold for the whole answer."""
    for seed in range(5):
        ids = write(grammar, seed)
        assert ids[-1] == EOS
        assert re.fullmatch(check, CODEC.decode(ids)), CODEC.decode(ids)


def test_any_object_is_an_object():
    """``json_object`` begins with a brace and may not end before its partner."""
    constraint = GRAMMARS.constraint(Grammar("json_object"))
    assert all(CODEC.token_bytes(i)[:1] == b"{" for i in np.flatnonzero(constraint.allowed()))
    assert not constraint.may_end
    for token_id in ids_of("{}"):
        constraint.take(token_id)
    assert constraint.is_complete
    assert constraint.may_end


def ids_of(text):
    """One token a byte: every spelling is lawful."""
    table = {CODEC.token_bytes(i): i for i in range(TINY.vocab_size)}
    return [table[bytes([value])] for value in text.encode()]


def test_control_tokens_spell_nothing():
    """A control token is never a way to write its name."""
    constraint = GRAMMARS.constraint(Grammar("choice", '["<|user|>", "<|end|>x"]'))
    allowed = {CODEC.token_bytes(i) for i in np.flatnonzero(constraint.allowed())}
    assert b"<" in allowed
    assert not allowed & {b"<|user|>", b"<|end|>"}


def test_white_space_has_an_end():
    """No model can write blanks for ever where JSON would let it."""
    constraint = GRAMMARS.constraint(Grammar("json_object"))
    for token_id in ids_of("{\n" + " " * 32):
        constraint.take(token_id)
    assert not constraint.allowed()[ids_of(" \n")].any()


def test_a_mask_changes_nothing_that_is_allowed():
    """Allowed logits stay as they are, the argument too; rows wider than the vocabulary end."""
    constraint = GRAMMARS.constraint(Grammar("regex", "a+"))
    row = np.arange(TINY.vocab_size + 7, dtype=np.float32)
    kept = row.copy()
    masked = constraint.mask(row)
    allowed = constraint.allowed()
    assert np.array_equal(row, kept)
    assert np.array_equal(masked[: allowed.size][allowed], row[: allowed.size][allowed])
    assert np.isneginf(masked[: allowed.size][~allowed]).all()
    assert np.isneginf(masked[allowed.size :]).all()


def test_a_fork_goes_its_own_way():
    """Two answers that part have their own state."""
    first = GRAMMARS.constraint(Grammar("regex", "ab|ac"))
    first.take(*ids_of("a"))
    second = first.fork()
    first.take(*ids_of("b"))
    assert (first.is_complete, second.is_complete) == (True, False)
    second.take(*ids_of("c"))
    assert second.is_complete


def test_accepted_tokens_that_break_the_grammar_are_refused():
    """A caller cannot resume what never followed the grammar."""
    with pytest.raises(InvalidRequest, match="does not follow"):
        GRAMMARS.constraint(Grammar("regex", "a+"), ids_of("b"))


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (schema(type="frog"), "Invalid type"),
        (
            schema(properties={"pets": {"items": {"anyOf": [{}, {"type": "frog"}]}}}),
            r"at \$\.properties\.pets\.items\.anyOf\[1\]",
        ),
        (schema(properties={"a": {"not": {}}}), r"at \$\.properties\.a: .*not"),
        (schema(items={"$ref": "#/$defs/x"}, **{"$defs": {"x": {"pattern": "("}}}), "regex"),
        (schema(**{"$ref": "#"}), "no text satisfies"),
        (schema(**{"$ref": "http://elsewhere/schema"}), "not present|retriev"),
        (Grammar("json_schema", "[]"), "not a JSON object"),
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", '{"items":' * 100 + "{}" + "}" * 100), "nested deeper"),
        (Grammar("json_schema", "[" * 60_000), "not JSON"),
        (schema(**{"$defs": {str(n): {"$ref": f"#/$defs/{n}"} for n in range(200)}}), "references"),
        (Grammar("json_schema", "CHAINED 100 30"), "levels deep in all"),
        (Grammar("lark", "CHAINED 100 30"), "levels deep in all"),
        (schema(type="number", multipleOf=9999991), "multipleOf together exceed"),
        (schema(allOf=[{"multipleOf": 997}, {"multipleOf": 0.991}]), "multipleOf together exceed"),
        (Grammar("lark", 'start: %json {"multipleOf": 1e-9, "not": {}}'), "not"),
        (Grammar("lark", 'start: %json\n {"multi\\u0070leOf": 999983}'), "multipleOf together"),
        (Grammar("lark", "start: %json //\n {}"), "not JSON"),
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("regex", "(" * 5000 + ")" * 5000), "regex"),
        (Grammar("regex", "x" * 70_000), "characters"),
        (Grammar("choice", "[]"), "1 to 4096"),
        (Grammar("choice", '["a", 1]'), "list of strings"),
        (Grammar("choice", '["a", ""]'), "none of them empty"),
        (Grammar("lark", "start: nowhere"), "nowhere"),
        (Grammar("lark", "\n".join(f"r{n}: r{n + 1}" for n in range(3000))), "lines"),
        (Grammar("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000), "nested"),
    ],
)
def test_bad_grammars_are_refused_with_the_place(bad, place):
    """Wrong, unsupported, hostile: a message that says what, and where in a schema."""
    if bad.text.startswith("CHAINED"):
        bad = chained(bad.kind, *map(int, bad.text.split()[1:]))
    with pytest.raises(InvalidRequest, match=place) as refused:
        GRAMMARS.constraint(bad)
    assert len(refused.value.message) < 500


def chained(kind, references, levels):
    """A schema whose references lead into each other, each some levels of arrays deep."""
    texts = [
        f'"{n}":' + '{"items":' * levels + f'{{"$ref":"#/$defs/{n + 1}"}}' + "}" * levels
        for n in range(references)
    ]
    schemas = ",".join([*texts, f'"{references}":{{"const":[]}}'])
    text = f'{{"$ref":"#/$defs/0","$defs":{{{schemas}}}}}'
    return Grammar(kind, f"start: %json {text}" if kind == "lark" else text)


def test_the_deepest_chain_of_references_fits_a_stack():
    """What is just allowed is compiled without overflowing, here and aside."""
    check_grammar(chained("json_schema", 120, 6))
    assert GRAMMARS.constraint(chained("json_schema", 120, 6)).allowed().any()
    assert GRAMMARS.constraint(chained("lark", 58, 15)).allowed().any()


def test_a_check_needs_no_vocabulary():
    """Who has no model can tell good from bad."""
    check_grammar(schema(**PET))
    with pytest.raises(InvalidRequest, match=r"at \$\.properties\.a"):
        check_grammar(schema(properties={"a": {"type": "frog"}}))


def test_a_grammar_that_costs_too_much_ends_its_answer_only():
    """A blow-up is an error of this request; the next grammar works."""
    bomb = GRAMMARS.constraint(Grammar("regex", "((([a-z]{0,100}){0,100}){0,100}b){0,100}"))
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        walk(bomb, steps=400)
    assert time.process_time() - began < 5
    assert write(Grammar("choice", '["ok"]'), 0)


def test_as_many_choices_as_are_allowed_can_be_followed():
    """The largest choice that is taken leads to one of its strings."""
    strings = [f"{number * 7919:012d}" for number in range(4096)]
    ids = write(Grammar("choice", json.dumps(strings)), 3)
    assert CODEC.decode(ids) in strings


def test_usual_multiples_are_followed():
    """Cents, quarters, hours and years in one schema: each number is one of its multiples."""
    steps = {"a": 0.01, "b": 0.25, "c": 3600, "d": 365, "e": 1_000_000}
    kinds = {name: {"type": "number", "multipleOf": step} for name, step in steps.items()}
    grammar = schema(type="object", properties=kinds, required=list(kinds))
    for text, fits in (
        ('{"a":0.07,"b":1.75,"c":7200,"d":730,"e":3000000}', True),
        ('{"a":0.075', False),
    ):
        try:
            constraint = GRAMMARS.constraint(grammar, ids_of(text))
        except InvalidRequest:
            assert not fits
        else:
            assert constraint.is_complete == fits


def walk(constraint, steps):
    chance = np.random.default_rng(2)
    for _ in range(steps):
        constraint.take(int(chance.choice(np.flatnonzero(constraint.allowed()))))


def test_a_vocabulary_that_cannot_spell_is_refused():
    """Without single characters no grammar can be followed."""
    grammars = Grammars(Poor(), (0,))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        grammars.constraint(Grammar("json_object"))


class Poor(Pieces):
    """A vocabulary of three words."""

    def __init__(self):
        super().__init__([b"<end>", b"yes", b"no"], frozenset({0}), 3)


class Large(Pieces):
    """150,000 tokens: every byte, words, words behind a blank, punctuation, an end."""

    def __init__(self):
        chance = np.random.default_rng(3)
        made = {bytes([value]): None for value in range(256)}
        letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz", np.uint8)
        signs = np.frombuffer(b'{}[]":,._-() \n0123456789', np.uint8)
        words = chance.choice(letters, (170_000, 10))
        for number, (word, length) in enumerate(
            zip(words, chance.integers(2, 11, len(words)), strict=True)
        ):
            if number % 10 == 0:
                made[chance.choice(signs, length).tobytes()] = None
            else:
                made[b" " * (length % 2) + word[:length].tobytes()] = None
        super().__init__([*list(made)[:150_000], b"<end>"], frozenset({150_000}), 150_100)

    def encode(self, text):
        return list(text.encode())


def test_a_step_costs_little_on_a_large_vocabulary():
    """Less than a millisecond of CPU a token at 150,000 tokens; typically a tenth of that."""
    codec = Large()
    constraint = Grammars(codec, (150_000,)).constraint(schema(**PET))
    row = np.zeros(codec.vocab_size, np.float32)
    rest = b'{"kind":"cat","age":12,"tags":[true,false]}'
    spent = []
    while rest:
        began = time.process_time()
        masked = constraint.mask(row)
        spent.append(time.process_time() - began)
        fitting = [i for i in np.flatnonzero(masked == 0) if rest.startswith(codec.token_bytes(i))]
        constraint.take(int(max(fitting, key=lambda i: len(codec.token_bytes(i)))))
        rest = rest[max(len(codec.token_bytes(i)) for i in fitting) :]
    assert constraint.may_end
    assert np.median(spent) < 1e-3
