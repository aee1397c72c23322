"""The page: whole, drawn, and in need of nothing from anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from starai.cli.simulate import simulate
from starai.simulation import plots
from starai.simulation.page import embed


def test_the_command_runs_a_scenario_and_writes_a_page(tmp_path: Path) -> None:
    """Six plots, all numbers, no script, and no address of anything outside."""
    page = tmp_path / "page.html"
    options = ["small", "--hours", "0.01", "--out", str(page), "--data", str(tmp_path)]
    done = CliRunner().invoke(simulate, options, catch_exceptions=False)
    assert done.exit_code == 0
    assert "fingerprint" in done.stdout
    assert "MADE UP" in done.stdout
    text = page.read_text("utf-8")
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 6
    for one in drawn:
        assert len(ET.fromstring(one)) > 5
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}


def test_policies_are_shown_side_by_side(tmp_path: Path) -> None:
    """One table with a row for each, and their latencies in one plot."""
    page = tmp_path / "page.html"
    options = ["small", "--hours", "0.005", "--compare", "--out", str(page), "--data", "none"]
    done = CliRunner().invoke(simulate, options, catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text("utf-8")
    for name in ("ours", "random", "round-robin", "least-outstanding"):
        assert text.count(f"<td>{name}</td>") == 2
    assert "Policies side by side" in text


def test_the_scenarios_are_listed() -> None:
    """By name, with their size."""
    done = CliRunner().invoke(simulate, ["--list"], catch_exceptions=False)
    assert "internet" in done.stdout
    assert "100,000" in done.stdout


def test_a_cumulative_distribution_rises_to_one() -> None:
    """From the least value to the greatest."""
    points = plots.cdf([3.0, 1.0, 2.0])
    assert points[0] == (1.0, pytest.approx(1 / 3))
    assert points[-1] == (3.0, 1.0)
    assert plots.cdf([]) == []


def test_axes_have_round_ticks_inside_their_range() -> None:
    """Powers of ten on a logarithmic one, ones, twos and fives on the other."""
    assert plots.log_axis("s", [0.02, 7.0]).ticks() == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert plots.Axis("n", 0.0, 10.0).ticks() == pytest.approx([0, 2, 4, 6, 8, 10])
    assert plots.Axis("n", 0.0, 100.0, is_log=False).at(25.0) == 0.25


def test_a_plane_s_distances_come_back_from_the_embedding() -> None:
    """Where the distances are those of a plane, it is found exactly."""
    places = np.random.default_rng(1).uniform(size=(20, 2))
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    found = np.array(embed(apart))
    again = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert np.allclose(apart, again, atol=1e-9)
