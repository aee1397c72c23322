"""Credentials say who a party is, and nobody but the account can say it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import PartyRefused, SealBroken
from starai.core.randomness import SeededRandomness
from starai.protocol.credentials import (
    Credential,
    issue_credential,
    read_credential,
    sign_claims,
)
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.log import WITNESS_ROLES
from starai.protocol.subjects import (
    FUNDS_CHANGED,
    PRICES_CHANGED,
    Role,
    permissions,
    registry,
)

CHANCE = SeededRandomness(1)
ACCOUNT = Identity.create(CHANCE, KeyKind.ACCOUNT)
PARTY = Identity.create(CHANCE).party
NOW = 1_800_000_000_123


@pytest.mark.parametrize("role", list(Role))
def test_round_trip(role: Role) -> None:
    """A credential says the party, the role and the time for which it was issued."""
    jwt = issue_credential(ACCOUNT, PARTY, role, 60_000, NOW)
    assert len(jwt) < 4096
    assert read_credential(jwt, ACCOUNT.nkey, NOW) == Credential(
        PARTY, role, 1_800_000_000_000, 1_800_000_061_000
    )


def test_expires() -> None:
    """A credential lives at least its lifetime and at most a second longer."""
    jwt = issue_credential(ACCOUNT, PARTY, Role.NODE, 60_000, NOW)
    read_credential(jwt, ACCOUNT.nkey, NOW + 60_000)
    with pytest.raises(PartyRefused, match="expired"):
        read_credential(jwt, ACCOUNT.nkey, NOW + 61_000)


def test_another_account_cannot_issue() -> None:
    """A credential that another account signed is not believed, whatever issuer it names."""
    other = Identity.create(CHANCE, KeyKind.ACCOUNT)
    with pytest.raises(SealBroken):
        read_credential(issue_credential(other, PARTY, Role.NODE, 60_000, NOW), ACCOUNT.nkey, NOW)


@pytest.mark.parametrize("tags", [[], ["role:king"], ["role:node", "role:registry"]])
def test_a_role_is_exactly_one(tags: list[str]) -> None:
    """A credential without exactly one role of ours is refused."""
    grant = {"pub": {"allow": ["a"]}, "sub": {"allow": ["a"]}, "tags": tags}
    claims = {"sub": PARTY, "name": "x", "iat": 0, "exp": 2**40, "nats": {**grant, "type": "user"}}
    with pytest.raises(PartyRefused):
        read_credential(sign_claims(ACCOUNT, claims), ACCOUNT.nkey, NOW)


def test_a_subject_is_a_party() -> None:
    """A credential for something that is no user nkey is refused."""
    grant = {"pub": {"allow": ["a"]}, "sub": {"allow": ["a"]}, "tags": ["role:node"]}
    claims = {"sub": ACCOUNT.nkey, "name": "x", "iat": 0, "exp": 2**40, "nats": grant}
    with pytest.raises(PartyRefused):
        read_credential(sign_claims(ACCOUNT, claims), ACCOUNT.nkey, NOW)


JWT = issue_credential(ACCOUNT, PARTY, Role.NODE, 60_000, NOW)


@given(st.integers(0, len(JWT) - 1), st.characters(codec="utf-8"))
def test_every_character_counts(at: int, other: str) -> None:
    """Changing any one character of a credential breaks it."""
    changed = JWT[:at] + other + JWT[at + 1 :]
    if changed.strip() != JWT:
        with pytest.raises(SealBroken):
            read_credential(changed, ACCOUNT.nkey, NOW)


@given(st.text())
def test_any_text_is_refused_calmly(text: str) -> None:
    """Any other text is refused with an error of ours."""
    with pytest.raises(SealBroken):
        read_credential(text, ACCOUNT.nkey, NOW)


def test_who_may_witness_the_log() -> None:
    """Nodes and gateways may say so to the registry, under their own name only; nobody else may."""
    subject = registry("witness", PARTY)
    may = {role for role in Role if subject in permissions(role, PARTY).publish}
    assert may == set(WITNESS_ROLES) == {Role.NODE, Role.GATEWAY}
    for role in set(Role) - {Role.REGISTRY}:
        opened = permissions(role, PARTY)
        assert not any("witness" in one for one in opened.subscribe)
        assert {one for one in opened.publish if one.startswith("starai.registry.witness")} <= {
            subject
        }
        assert not {"starai.>", "starai.registry.>", "starai.registry.*.*"} & set(opened.publish)


def test_who_may_ask_for_money_to_be_set_aside() -> None:
    """Gateways alone ask for allotments and hear of funds; nodes hear prices, too."""
    opened = {role: permissions(role, PARTY) for role in Role}
    for verb in ("prices", "allotments", "keys"):
        may = {role for role, one in opened.items() if registry(verb, PARTY) in one.publish}
        assert may == ({Role.GATEWAY, Role.NODE} if verb == "prices" else {Role.GATEWAY})
    for told in (PRICES_CHANGED, FUNDS_CHANGED):
        assert {r for r, one in opened.items() if told in one.publish} == {Role.REGISTRY}
        may = {role for role, one in opened.items() if told in one.subscribe}
        assert may == ({Role.GATEWAY, Role.NODE} if told == PRICES_CHANGED else {Role.GATEWAY})
