"""What the settlement's tests stand on: a chain in this process, and anvil where it is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import starai.settlement.rollup  # noqa: F401 - knows the recursion limit that web3 raises

pytest.importorskip("web3", reason="web3 (starai[chain]) is not installed")
pytest.importorskip("eth_tester", reason="eth-tester (starai[chain]) is not installed")

from tests.unit.settlement.labs import EmbeddedLab, Lab, anvil_lab


@pytest.fixture(scope="session")
def embedded_lab() -> Lab:
    """A vault with funds on py-evm."""
    return EmbeddedLab()


@pytest.fixture
def lab(embedded_lab: Lab) -> Iterator[Lab]:
    """The same, put back to its beginning after the test."""
    with embedded_lab.undone():
        yield embedded_lab


@pytest.fixture(scope="session")
def anvil() -> Iterator[Lab]:
    """A vault with funds on anvil."""
    with anvil_lab() as found:
        yield found
