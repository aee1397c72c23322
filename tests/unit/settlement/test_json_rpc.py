"""The same vault over JSON-RPC, on anvil; and nodes that do not answer."""

from __future__ import annotations

import json
import socket

import pytest
from tests.unit.settlement.labs import GUARDIAN, NODE, POSTER, Lab
from tests.unit.settlement.test_settler import DEPTH, Desk

from starai.core.errors import ConfigurationRefused, Unavailable
from starai.settlement.rollup.ground import DELAY_S, address_of
from starai.settlement.rollup.json_rpc import connect
from starai.settlement.settler import Stage

NODE_AT = address_of(NODE)
USD = 10**6


@pytest.fixture
def desk(anvil: Lab) -> Desk:
    with anvil.undone():
        made = Desk(anvil)
        made.days.close(1, {NODE_AT: 5 * USD})
        yield made


def test_a_day_is_settled_on_anvil(desk: Desk) -> None:
    """Posted, mined, final; by HTTP."""
    desk.finish()


def test_a_fee_bump_is_taken_by_a_real_pool(desk: Desk) -> None:
    """Anvil's pool replaces the cheaper offer by the dearer one, and mines one."""
    desk.lab.hold_back(True)
    for _ in range(3):
        assert desk.settler.step() == (Stage.SENT, 1, "")
        desk.clock.now_s += 60
    desk.lab.mine()
    desk.lab.hold_back(False)
    desk.finish()


def test_sending_what_the_pool_has_does_no_harm(desk: Desk) -> None:
    """A real node says that it knows the transaction already; the settler goes on."""
    desk.lab.hold_back(True)
    first, again = desk.settler.step(), desk.settler.step()
    assert (first.why, again.stage) == ("", Stage.SENT)
    assert "already" in again.why
    desk.lab.mine()
    desk.lab.hold_back(False)
    desk.finish()


def test_a_reorganisation_on_anvil(desk: Desk) -> None:
    """The post vanishes with its block, and comes back."""
    before = desk.lab.snapshot()
    desk.settler.step()
    desk.lab.mine(DEPTH - 1)
    desk.settler.step()
    desk.lab.go_back(before)
    assert desk.lab.events("Posted") == []
    desk.finish()


def test_a_refusal_is_told_in_the_contracts_words(desk: Desk) -> None:
    """Why the contract would refuse comes through, whatever node is asked."""
    desk.lab.send(GUARDIAN, desk.lab.staged.vault.functions.pause(1))
    assert "post: paused" in desk.settler.step().why


def test_a_node_that_is_not_there_is_unavailable() -> None:
    """Nobody listens: that is said in time, as our own error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chain = connect(f"http://127.0.0.1:{port}", b"\1" * 20, POSTER, answer_s=2)
    with pytest.raises(Unavailable, match="does not answer"):
        chain.tip()
    assert chain.broadcast(b"\1") != ""


def test_a_node_that_never_answers_is_unavailable() -> None:
    """A node that takes the question and keeps silent is left after the deadline."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        chain = connect(url, b"\1" * 20, POSTER, answer_s=0.3)
        with pytest.raises(Unavailable, match="does not answer"):
            chain.standing(1)
        assert chain.broadcast(b"\1") != ""


@pytest.mark.parametrize(("key", "contract"), [(b"\1", b"\1" * 20), (POSTER, b"\1" * 19)])
def test_a_wrong_key_or_address_is_refused(key: bytes, contract: bytes) -> None:
    """A mistyped setting is told at once."""
    with pytest.raises(ConfigurationRefused):
        connect("http://127.0.0.1:1", contract, key)
    assert DELAY_S


def test_deep_json_is_an_error_also_beside_a_chain(embedded_lab: Lab) -> None:
    """The libraries' recursion limit would let anybody's brackets overflow the stack."""
    embedded_lab.mine()
    with pytest.raises(RecursionError):
        json.loads("[" * 200_000)
