"""The embedded model's files fit together, and its corpus is a function of the seed."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st
from tokenizers import Tokenizer

from starai.models.catalog import EMBEDDED_FOLDER, open_model
from starai.models.codec import open_codec

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def read(name):
    """A JSON file of the model."""
    return json.loads((EMBEDDED_FOLDER / name).read_text())


@pytest.fixture
def corpus(monkeypatch):
    """The corpus generator of the repository's training folder."""
    if not (ROOT / "training").is_dir():
        pytest.skip("no training folder beside the tests")
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("training.embedded.corpus")


TOKENIZER = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))


def test_the_weights_are_small():
    """The weights stay below the 16 MB that a package may carry."""
    assert (EMBEDDED_FOLDER / "model.safetensors").stat().st_size <= 16_000_000


def test_the_weights_are_those_of_the_recipe():
    """The recipe beside the weights is theirs: size, checksum and a plausible loss."""
    recipe, weights = read("recipe.json"), (EMBEDDED_FOLDER / "model.safetensors").read_bytes()
    assert recipe["weights_bytes"] == len(weights)
    assert recipe["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert 0 < recipe["validation_loss_nats"] < 1
    assert recipe["steps"] > 0
    assert str(recipe["seed"]) in recipe["command"]


def test_the_configuration_is_sane():
    """The shape, the ids of the special tokens and the context agree between the files."""
    config, tokens = read("config.json"), read("tokenizer_config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["vocab_size"] == TOKENIZER.get_vocab_size() == 2048
    assert config["max_position_embeddings"] == tokens["model_max_length"] == 1024
    assert tuple(TOKENIZER.token_to_id(token) for token in SPECIAL) == (0, 1, 2, 3, 4)
    assert config["bos_token_id"] == TOKENIZER.token_to_id(tokens["bos_token"])
    assert config["eos_token_id"] == TOKENIZER.token_to_id(tokens["eos_token"])
    assert read("generation_config.json")["eos_token_id"] == config["eos_token_id"]


def test_the_catalog_opens_it():
    """It is a model like any other, under its public name."""
    manifest = open_model("embedded")
    assert manifest.name == "starai-tiny"
    assert manifest.context_length == 1024
    assert manifest.eos_token_ids == (1,)
    assert manifest.num_parameters == read("recipe.json")["model"]["num_parameters"]


@given(st.text())
@example("naïve café ☕ 日本語 \U0001f98a\r\n\t\x00")
@example("<|end|> is a special token only in a template")
def test_any_text_survives_the_tokenizer(text):
    """Encoding and decoding gives back every character, for every character there is."""
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_the_chat_template_frames_turns():
    """A chat becomes one begin token, a role token before and an end token after each turn."""
    codec = open_codec(open_model("embedded"))
    ids = codec.render_chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "Who are you?"},
        ]
    )
    specials = [token for token in ids if token < len(SPECIAL)]
    assert specials == [0, 2, 1, 3, 1, 4, 1, 3, 1, 4]


def test_a_chat_looks_as_it_was_trained(corpus):
    """The template gives the very ids that training saw."""
    encode = importlib.import_module("training.embedded.tokenizer").encode
    codec = open_codec(open_model("embedded"))
    turns = [corpus.Turn("user", "Tell me a story"), corpus.Turn("assistant", "It was 1 fox.")]
    trained, learnt = encode(TOKENIZER, turns)
    asked = codec.render_chat([{"role": "user", "content": "Tell me a story"}])
    assert trained[: len(asked)] == asked
    assert learnt == [False] * len(asked) + [True] * (len(trained) - len(asked))


def test_the_corpus_is_a_function_of_the_seed(corpus):
    """The same seed gives the same documents."""
    first, second = (list(itertools.islice(corpus.documents(7), 300)) for _ in range(2))
    assert first == second


def test_seeds_give_different_stories(corpus):
    """Two seeds share no story of any length, so held-out text is new text."""

    def stories(seed):
        documents = itertools.islice(corpus.documents(seed), 2000)
        turns = itertools.chain.from_iterable(documents)
        return {turn.content for turn in turns if len(turn.content) > 300}

    first, second = stories(1), stories(2)
    assert len(first) > 400
    assert not first & second


def test_the_corpus_is_clean(corpus):
    """No document has an open slot, a special token, a doubled space or an empty turn."""
    for document in itertools.islice(corpus.documents(3), 2000):
        assert document
        for turn in document:
            assert turn.content == turn.content.strip() != ""
            assert not any(token in turn.content for token in SPECIAL)
            if turn.role != "user":
                assert "  " not in turn.content
                assert "{" not in turn.content


def test_long_stories_are_long(corpus):
    """A wish for a long story is answered with more than a hundred words."""
    stories = importlib.import_module("training.embedded.stories")
    dice = importlib.import_module("training.embedded.dice").Dice(1)
    lengths = [len(stories.tell(dice, "long", "fox").text.split()) for _ in range(50)]
    assert min(lengths) > 110
