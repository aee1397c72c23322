"""A few layers of a model are timed, and what cannot be timed is refused."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.engines.text.slicing import time_slice
from starai.models.catalog import open_model


def test_layers_of_the_embedded_model() -> None:
    """A prompt takes longer than a token, and the table is left to be counted."""
    found = time_slice(open_model("embedded"), SystemClock())
    assert (found.num_layers, found.prompt_tokens) == (7, 256)
    assert found.table_weights == 2048 * 192
    assert 0 < sum(found.token) < sum(found.prompt) + sum(found.token)


def test_a_model_without_a_middle_is_refused(folder_of, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """With a first and a last layer there is nothing between them."""
    folder = tmp_path / "two"
    shutil.copytree(folder_of("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.2." not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(ConfigurationRefused, match="too few layers"):
        time_slice(open_model(str(folder)), SystemClock())
