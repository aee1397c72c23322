"""`starai models quantize` and `export` write models that open again, and say what they did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.cli.main import cli
from starai.models.catalog import open_model


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["models", *map(str, arguments)])


def test_a_model_is_quantised_and_found_again(tmp_path: Path) -> None:
    """Perplexity and memory before and after are printed, and the name that serves the result."""
    text = tmp_path / "text.txt"
    text.write_text("Hello! Tell me a story about a cat and a ball, please. " * 4)
    arguments = ("embedded", "--to", "int8", "--text", text, "--tokens", "64", "--home", tmp_path)
    done = run("quantize", *arguments)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"perplexity on \d+ tokens of text\.txt:\n  [\d.]+ before, [\d.]+ after", done.output
    )
    before, after = re.findall(r"([\d.]+) MB", done.output)
    assert float(after) < 0.3 * float(before)
    name = re.search(r"--model (local/\S+)", done.output)
    assert name is not None
    found = open_model(name[1], tmp_path / "models")
    assert found.num_parameters == open_model("embedded").num_parameters
    again = run("quantize", *arguments)
    assert again.exit_code == 1
    assert "not empty" in again.output
    assert "Traceback" not in again.output


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and a text of one word, are told in a line."""
    for content, said in ((b"\xff\xfe\x00", "UTF-8"), (b"", "too short")):
        (tmp_path / "text").write_bytes(content)
        done = run(
            "quantize", "embedded", "--to", "int4", "--text", tmp_path / "text", "--home", tmp_path
        )
        assert done.exit_code == 1
        assert said in done.output


def test_a_model_is_exported_once(tmp_path: Path) -> None:
    """The file opens as the same model; a second time it is not overwritten."""
    path = tmp_path / "tiny.gguf"
    done = run("export", "embedded", path, "--to", "q4_0", "--home", tmp_path)
    assert done.exit_code == 0, done.output
    assert "3,148,608 parameters" in done.output
    assert open_model(str(path)).vocab_size == open_model("embedded").vocab_size
    assert "exists" in run("export", "embedded", path, "--home", tmp_path).output
