"""`starai engine bench`: a table for people, JSON for programs, one line for what cannot be."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.cli.main import cli
from starai.engines.native import limits


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Limits of a smaller memory and smaller matrices are found sooner."""
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 24)
    monkeypatch.setattr(limits, "_SIZE", 128)


def run(*arguments, home):
    return CliRunner().invoke(cli, ["engine", "bench", *arguments, "--home", str(home)])


def test_it_measures_the_embedded_model(tmp_path, monkeypatch):
    """A table with limits and shares; on a busy machine it says that the figures are too low."""
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    done = run("--quick", "--bits", "8", "--threads", "1", home=tmp_path)
    assert done.exit_code == 0, done.output
    shown = done.stdout
    assert "GB/s" in shown
    assert "starai-tiny: 3,148,608 weights of 8 bits" in shown
    for row in ("prefill 256", "decode B=32", "the same, 512 of them known"):
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(row)]
        assert line.rstrip().endswith("%")
    assert "Measure again when it is quiet" in done.stderr


def test_it_tells_programs_in_json(tmp_path, monkeypatch):
    """Standard output is one JSON document with every sample; a quiet machine gets no warning."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    done = run("embedded", "--quick", "--json", "--threads", "1", home=tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["model"] == "starai-tiny"
    assert told["limits"]["threads"] == 1
    figures = {row["name"]: row for row in told["figures"]}
    assert figures["decode"]["samples"]
    assert figures["decode"]["unit"] == "tok/s"
    assert "quiet" not in done.stderr


@pytest.mark.parametrize("model", ["mock", "no/such"])
def test_what_is_no_model_is_said_in_one_line(tmp_path, model):
    """No traceback, exit status 1."""
    done = run(model, home=tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
