"""`starai node fit`, `node profile` and `models library`: tables for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from starai.cli.main import cli


def run(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--home", str(home)])


def test_another_device_than_this_one(tmp_path: Path) -> None:
    """A data sheet is enough for a plan; its reasoning is printed, and nothing is written."""
    done = run(tmp_path, "node", "fit", "--device", "a100-80gb", "--dry-run")
    assert done.exit_code == 0
    assert "llama-3.3-70b" in done.output
    assert "- A100: 73.6 GiB for models" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_programs(tmp_path: Path) -> None:
    """The same as JSON, under other wishes."""
    options = ("--device", "rtx3060-12gb", "--models", "1", "--sequences", "1", "--context", "8192")
    told = json.loads(run(tmp_path, "node", "fit", "--json", *options).output)
    (choice,) = told["choices"]
    assert choice["sequences"] == 1
    assert choice["weight_bytes"] + choice["kv_bytes"] < choice["memory_bytes"]
    assert told["reasons"]


def test_a_device_that_nobody_knows(tmp_path: Path) -> None:
    """A wrong name is told with those that are known."""
    done = run(tmp_path, "node", "fit", "--device", "rtx9999")
    assert done.exit_code == 1
    assert "rtx3060-12gb" in done.output


def test_this_device_is_measured_once(tmp_path: Path) -> None:
    """What was measured is kept in the home, used again, and measured anew when asked."""
    assert run(tmp_path, "node", "fit", "--dry-run").exit_code == 0
    assert not (tmp_path / "device.json").exists()
    first = json.loads(run(tmp_path, "node", "profile", "--json").output)
    again = json.loads(run(tmp_path, "node", "profile", "--json").output)
    assert first["cpu"] == again["cpu"]
    assert first["cpu"]["measured"]
    (tmp_path / "device.json").write_text("{")
    assert run(tmp_path, "node", "profile").exit_code == 0
    assert "GB/s" in run(tmp_path, "node", "profile", "--again").output


def test_a_model_is_tried_by_a_few_of_its_layers(tmp_path: Path) -> None:
    """Layers that are timed and a roofline that is computed say something of the same order."""
    pytest.importorskip("torch")
    told = json.loads(run(tmp_path, "node", "try", "embedded", "--json").output)
    timed, reckoned = told["by_layers"], told["by_memory_and_arithmetic"]
    assert told["slice"]["num_layers"] == 7
    assert timed["decode_tps"] > 1
    assert timed["prefill_tps"] > 1
    assert reckoned["decode_tps"] > timed["decode_tps"] / 50
    assert run(tmp_path, "node", "try", "mock").exit_code == 1


def test_the_library_is_listed(tmp_path: Path) -> None:
    """Every model with what it needs; one kind of them, on request."""
    table = CliRunner().invoke(cli, ["models", "library"])
    assert "qwen3-0.6b" in table.output
    done = CliRunner().invoke(cli, ["models", "library", "--json", "--modality", "embedding"])
    listed = json.loads(done.output)
    assert {model["modality"] for model in listed} == {"embedding"}
    assert all(model["weight_bytes"]["Q8_0"] < model["weight_bytes"]["BF16"] for model in listed)
