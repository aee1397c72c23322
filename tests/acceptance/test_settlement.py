"""A whole day on this machine, as `starai settle --demo` tells it, from tasks to a payout."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from starai.cli.main import cli


# Found, not imported: web3 raises Python's recursion limit, and the product puts it back.
@pytest.mark.skipif(find_spec("web3") is None, reason="web3 (starai[chain]) is not installed")
def test_a_day_from_tasks_to_a_claimed_payout() -> None:
    """What the node earned in the books is what arrives at its address, and the books balance."""
    done = CliRunner().invoke(cli, ["settle", "--demo"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    story = done.output
    (earned,) = re.findall(r"the node earned (\S+) USD", story)
    (good,) = re.findall(r"earned for good: (\S+) USD", story)
    (arrived,) = re.findall(r"at the node's address: (\S+) play dollars", story)
    assert float(earned) == float(good) == float(arrived) > 0
    assert "0.00 USD are left to pay" in story
    assert "the sum is zero" in story
