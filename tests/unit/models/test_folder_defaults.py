"""What a model's makers advise for sampling, and what becomes of bad advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starai.models.catalog import EMBEDDED_FOLDER, open_model
from starai.models.folder import read_folder
from starai.models.manifest import SamplingDefaults


def folder_with(tmp_path: Path, **advice: object) -> Path:
    """A copy of the embedded model's folder with other advice."""
    for file in EMBEDDED_FOLDER.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = {"eos_token_id": 1, **advice}
    (tmp_path / "generation_config.json").write_text(json.dumps(plain))
    return tmp_path


def test_advice_is_taken(tmp_path: Path) -> None:
    """Temperature, top_p, top_k and min_p of generation_config.json are the defaults."""
    folder = folder_with(tmp_path, temperature=0.6, top_p=0.9, top_k=20, min_p=0.05)
    assert read_folder(folder, "m").sampling == SamplingDefaults(0.6, 0.9, 20, 0.05)


@pytest.mark.parametrize("advice", [{}, {"temperature": 9, "top_p": "a", "top_k": 500}])
def test_absent_and_impossible_advice_is_none(tmp_path: Path, advice: dict[str, object]) -> None:
    """What cannot be followed is left at OpenAI's defaults."""
    assert read_folder(folder_with(tmp_path, **advice), "m").sampling == SamplingDefaults()


def test_other_advice_is_another_model(tmp_path: Path) -> None:
    """Advice changes answers, so it changes the root that nodes are held to."""
    assert read_folder(folder_with(tmp_path, temperature=0.1), "m").root != (
        open_model("embedded").root
    )
