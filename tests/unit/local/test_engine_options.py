"""Options of the engine travel from a command line to the engine's own check."""

from __future__ import annotations

import pytest

from starai.core.errors import ConfigurationRefused
from starai.local.nodes import NodeOptions, engine_spec


def test_numbers_are_numbers_and_words_are_words(tmp_path):
    """``name=value`` becomes what the engine reads; the later of two wins."""
    pytest.importorskip("torch")
    given = ("bits=8", "swap=disk", "kv_gib=0.5", "bits=4")
    spec = engine_spec(tmp_path, NodeOptions("embedded", engine=given))
    assert spec.options == {"bits": 4.0, "swap": "disk", "kv_gib": 0.5}


@pytest.mark.parametrize("wrong", ["bits", "=8", ""])
def test_what_is_no_option_is_refused_with_an_example(tmp_path, wrong):
    """A word without a name or a value says how to write it."""
    with pytest.raises(ConfigurationRefused, match="NAME=VALUE"):
        engine_spec(tmp_path, NodeOptions("mock", engine=(wrong,)))
