"""Our HMAC against Python's."""

import hmac

import pytest
from hypothesis import given, strategies as st

from starai.sealing.mac import Mac

keys = st.binary(max_size=64)


@given(keys, st.lists(st.binary(max_size=300), min_size=1, max_size=3))
def test_macs_are_hmacs(key, messages):
    """Every MAC of a key is the HMAC-SHA256 that Python makes."""
    mac = Mac(key)
    assert [mac.tag(m) for m in messages] == [hmac.digest(key, m, "sha256") for m in messages]


def test_a_long_key_is_refused():
    """A key that would have to be hashed first is a mistake of ours."""
    with pytest.raises(AssertionError):
        Mac(bytes(65))
