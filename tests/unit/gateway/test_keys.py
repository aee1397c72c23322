"""The key ring: tables, changes, and what becomes of used limits."""

import pytest

from starai.core.errors import AuthenticationFailed, Unavailable
from starai.gateway.errors import LimitReached
from starai.gateway.paying.keys import KeyRing
from starai.protocol.registry import KeyTable

BEARER = b"Bearer sk-starai-one"


def table(version, *entries, complete=False):
    return KeyTable(version=version, entries=entries, complete=complete)


def test_a_key_opens(new_entry, new_ring):
    """A key in the table is admitted, whatever the case of the scheme; others are not."""
    keys = new_ring(new_entry("sk-starai-one"))
    assert keys.authenticate(BEARER).customer == 7
    assert keys.authenticate(b"bearer sk-starai-one").customer == 7
    for wrong in (b"", b"Bearer ", b"Basic abc", b"Bearer sk-starai-two", b"sk-starai-one"):
        with pytest.raises(AuthenticationFailed):
            keys.authenticate(wrong)


def test_before_the_first_table(new_entry):
    """Until the keys are known nobody is called wrong: try again."""
    keys = KeyRing()
    with pytest.raises(Unavailable):
        keys.authenticate(BEARER)
    assert not keys.apply(table(5, new_entry("sk-starai-one")))
    assert keys.authenticate(BEARER)


def test_changes_in_step(new_entry, new_ring):
    """A change on top of the known table counts; revoked keys are refused at once."""
    keys = new_ring(new_entry("sk-starai-one"))
    assert keys.apply(table(2, new_entry("sk-starai-two")))
    assert keys.authenticate(b"Bearer sk-starai-two")
    assert keys.apply(table(3, new_entry("sk-starai-one", revoked=True)))
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(BEARER)
    assert len(keys) == 2


def test_a_missed_change_is_noticed(new_entry, new_ring):
    """A gap in the versions asks for the whole table, until that comes."""
    keys = new_ring(new_entry("sk-starai-one"))
    assert not keys.apply(table(4, new_entry("sk-starai-two")))
    assert not keys.apply(table(5))
    assert keys.apply(table(5, new_entry("sk-starai-two"), complete=True))
    assert keys.apply(table(6))
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(BEARER)


def test_old_changes_change_nothing(new_entry, new_ring):
    """A change that arrives late does not bring a revoked key back."""
    keys = new_ring(new_entry("sk-starai-one", revoked=True))
    keys.apply(table(1, new_entry("sk-starai-one")))
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(BEARER)


def test_used_limits_survive_an_update(new_entry, new_ring):
    """A new table does not refill a key's minute, unless its limits changed."""
    keys = new_ring(new_entry("sk-starai-one", rpm=1))
    keys.authenticate(BEARER).limits.take_request(0.0)
    keys.apply(table(2, new_entry("sk-starai-one", rpm=1), complete=True))
    with pytest.raises(LimitReached):
        keys.authenticate(BEARER).limits.take_request(0.0)
    keys.apply(table(3, new_entry("sk-starai-one", rpm=2)))
    keys.authenticate(BEARER).limits.take_request(0.0)
