"""What is picked from a hub's listing, and which listings are refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest, ModelFileRefused, StarAIError, Unavailable
from starai.models.hub import listing
from starai.models.hub.listing import Listing, RemoteFile

COMMIT = "ab" * 20
DIGEST = "0" * 40


def listed(*names):
    """A listing of files of one byte."""
    return Listing(COMMIT, tuple(RemoteFile(name, 1, DIGEST) for name in names))


def chosen(*names):
    """The names picked from ``names``."""
    return [file.name for file in listing.choose(listed(*names), "acme/tiny")]


def test_one_set_of_weights_is_picked():
    """Shards of the index win over a second copy in another layout."""
    assert chosen(
        "config.json",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_oddly_named_weights_are_found():
    """Without the usual names all safetensors count, but adapters do not."""
    assert chosen("config.json", "weights.safetensors", "adapter_model.safetensors") == [
        "config.json",
        "weights.safetensors",
    ]


def test_too_many_files_are_refused():
    """A repository with thousands of shards is a mistake."""
    with pytest.raises(ModelFileRefused, match="are the limit"):
        chosen("config.json", *(f"w{place}.safetensors" for place in range(2000)))


@pytest.mark.parametrize(
    "file",
    [
        RemoteFile("tokenizer.json", 1 << 40, DIGEST),
        RemoteFile("model.safetensors", 1 << 50, DIGEST),
        RemoteFile("config.json", -1, DIGEST),
    ],
)
def test_impossible_sizes_are_refused(file):
    """A size beyond any real model is refused before a byte is fetched."""
    with pytest.raises(ModelFileRefused, match="refused"):
        listing.check_sizes((file,), "acme/tiny")


@pytest.mark.parametrize("name", ["", "/etc/x", "a//b", "a/../b", "..", "a\\b", "c:x", "a\nb"])
def test_hostile_names_are_refused(name):
    """A name that could lead out of the folder spoils the whole listing."""
    body = msgspec.json.encode({"sha": COMMIT, "siblings": [{"rfilename": name}]})
    with pytest.raises(ModelFileRefused, match="refused"):
        listing.parse_listing(body)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"sha": "main"}', b'{"sha": 1}'])
def test_nonsense_is_no_listing(body):
    """An answer of another form is told as the hub's fault."""
    with pytest.raises(Unavailable, match="the hub's listing"):
        listing.parse_listing(body)


@given(st.binary(max_size=200))
def test_no_answer_crashes_the_reader(body):
    """Any bytes give a listing or an error of ours."""
    with contextlib.suppress(StarAIError):
        listing.parse_listing(body)
    assert isinstance(listing.parse_names(body), tuple)


@given(st.text(max_size=40))
def test_a_reference_never_leaves_the_store(reference):
    """What passes as ORG/NAME is two plain folder names."""
    try:
        parts = listing.split_reference(reference)
    except InvalidRequest:
        return
    assert all(part and not part.startswith(".") and "\\" not in part for part in parts)
