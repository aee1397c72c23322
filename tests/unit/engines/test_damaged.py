"""A folder whose config.json makes no model is refused, whatever transformers raises at it."""

from __future__ import annotations

import json
import shutil

import pytest

from starai.core.errors import ModelFileRefused
from starai.engines.text.loading import load_model
from starai.models.catalog import open_model


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "two"},
        {"num_attention_heads": 3},
        {"head_dim": 0},
        {"rms_norm_eps": 0},
        {"dtype": []},
        {"pad_token_id": 10**12},
        {"layer_types": "x"},
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_refused(folder_of, tmp_path, change):
    """Divisions by zero, failed assertions and strict classes are all the model's fault."""
    folder = tmp_path / "odd"
    shutil.copytree(folder_of("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    manifest = open_model(str(folder))
    with pytest.raises(ModelFileRefused, match="transformers cannot load it"):
        load_model(manifest, "eager")
