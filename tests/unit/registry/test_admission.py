"""Admission: a token lets in whom it should, as often and as long as it should, and nobody else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from starai.core.errors import (
    ConfigurationRefused,
    Conflict,
    InvalidRequest,
    MalformedFrame,
    NotFound,
    PartyRefused,
    SealBroken,
)
from starai.core.randomness import SeededRandomness
from starai.protocol.credentials import read_credential
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.registry import Admitted, Join, Renew
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket
from starai.registry.admission import Admission, Terms
from starai.registry.parties import Parties
from starai.registry.storage import open_store

_CHANCE = SeededRandomness(4)
ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
FIXED = Identity.create(_CHANCE)
DAY_MS = 86_400_000


class _Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class _House:
    """An admission with its clock, its store's path and whom it cut off."""

    def __init__(self, store) -> None:
        self.clock = _Hand()
        self.cut_off: list[str] = []
        self.parties = Parties(store, {FIXED.party: Role.GATEWAY})
        self.admission = Admission(
            store,
            self.parties,
            ACCOUNT,
            Terms("testnet", 2000, ("nats://127.0.0.1:4222",), DAY_MS),
            self.clock,
            _CHANCE,
            on_revoke=self._cut,
        )

    async def _cut(self, party) -> None:
        self.cut_off.append(party)

    async def ticket(self, role: Role = Role.NODE, uses: int = 1, lifetime_ms: int = DAY_MS):
        joiner = Identity.create(_CHANCE)
        grant = await self.admission.create_token(role, uses, lifetime_ms, "x", joiner=joiner.party)
        return JoinTicket.of(grant, joiner)

    async def join(self, ticket: JoinTicket, newcomer: Identity, **changes) -> Admitted:
        joiner = Identity.from_seed(ticket.seed)
        join = Join.signed(ticket.token_id, newcomer, joiner, "box")
        return await self.admission.join(joiner.party, msgspec.structs.replace(join, **changes))


@pytest.fixture
async def house(database: Path | str):
    async with open_store(database, inline=True) as store:
        yield _House(store)


def _newcomer() -> Identity:
    return Identity.create(_CHANCE)


@pytest.mark.anyio
async def test_a_ticket_carries_all_a_newcomer_needs(house: _House) -> None:
    """The text holds the network and a joiner that may only join and dies with the token."""
    made = await house.ticket(lifetime_ms=3_600_000)
    text = made.text()
    assert text.startswith("sat_")
    assert text.isascii()
    assert len(text) < 2500
    assert not set(text) & set(" +/=&?#%\"'")
    ticket = JoinTicket.parse(f"  {text}\n")
    assert ticket == made
    assert ticket.urls == ("nats://127.0.0.1:4222",)
    assert (ticket.account, ticket.network) == (ACCOUNT.nkey, "testnet")
    credential = read_credential(ticket.credential, ACCOUNT.nkey, house.clock.ms)
    assert credential.role is Role.JOINER
    assert credential.party == Identity.from_seed(ticket.seed).party
    assert credential.expires_ms == house.clock.ms + 3_600_000
    assert ticket.seed not in repr(ticket)


@pytest.mark.anyio
async def test_a_damaged_ticket_is_refused_in_plain_words(house: _House) -> None:
    """A ticket that was not copied whole, or is something else, is refused and never quoted."""
    text = (await house.ticket()).text()
    flipped = text[:50] + ("A" if text[50] != "A" else "B") + text[51:]
    for wrong in (
        "",
        "hello",
        "sat_",
        text[:-1],
        text[4:],
        flipped,
        text + "AAAA",
        "sat_é",
        text * 9,
    ):
        with pytest.raises(ConfigurationRefused) as refused:
            JoinTicket.parse(wrong)
        assert text[40:60] not in str(refused.value)


@pytest.mark.anyio
async def test_a_token_lets_one_in(house: _House) -> None:
    """A newcomer gets a credential of the token's role, and is known from then on."""
    newcomer = _newcomer()
    admitted = await house.join(await house.ticket(), newcomer)
    credential = read_credential(admitted.credential, admitted.account, house.clock.ms)
    assert (credential.party, credential.role) == (newcomer.party, Role.NODE)
    assert admitted.expires_ms == house.clock.ms + DAY_MS
    assert (admitted.network, admitted.block_ms) == ("testnet", 2000)
    assert house.parties.role_of(newcomer.party) is Role.NODE
    row = house.parties.find(newcomer.party)
    assert row is not None
    assert row.label == "box"


@pytest.mark.anyio
async def test_a_used_token_is_refused_but_a_lost_answer_is_sent_again(house: _House) -> None:
    """The same newcomer may ask again; another one, or one with its uses gone, may not."""
    ticket, newcomer = await house.ticket(uses=2), _newcomer()
    for _ in range(3):
        await house.join(ticket, newcomer)
    await house.join(ticket, _newcomer())
    with pytest.raises(PartyRefused, match="used up"):
        await house.join(ticket, _newcomer())
    await house.join(ticket, newcomer)
    (token,) = await house.admission.tokens()
    assert (token.uses, token.used) == (2, 2)


@pytest.mark.anyio
async def test_a_member_may_come_back_with_a_fresh_token_of_its_role(house: _House) -> None:
    """A node whose credential lapsed joins again with a new token, but not as something else."""
    newcomer = _newcomer()
    used = await house.ticket()
    await house.join(used, _newcomer())
    await house.join(await house.ticket(), newcomer)
    with pytest.raises(PartyRefused, match="used up"):
        await house.join(used, newcomer)
    await house.join(await house.ticket(), newcomer)
    with pytest.raises(Conflict, match="as node"):
        await house.join(await house.ticket(Role.GATEWAY), newcomer)


@pytest.mark.anyio
async def test_a_token_dies_with_its_time(house: _House) -> None:
    """After its lifetime, or once ended by the operator, a token lets nobody in."""
    ticket = await house.ticket(lifetime_ms=5000)
    ended = await house.ticket()
    await house.admission.expire_token(ended.token_id)
    with pytest.raises(PartyRefused, match="expired"):
        await house.join(ended, _newcomer())
    house.clock.ms += 4999
    await house.join(ticket, _newcomer())
    house.clock.ms += 1
    with pytest.raises(PartyRefused, match="expired"):
        await house.join(ticket, _newcomer())
    with pytest.raises(NotFound):
        await house.admission.expire_token(b"?" * 16)


@pytest.mark.anyio
async def test_a_forged_join_is_refused(house: _House) -> None:
    """A wrong id, signature, name or joiner lets nobody in and costs the token nothing."""
    ticket, newcomer = await house.ticket(), _newcomer()
    other = await house.ticket()
    own = newcomer.sign(b"starai/v1/join" + ticket.token_id + newcomer.party.encode())
    for changes, error in (
        ({"token_id": b"x" * 16}, SealBroken),
        ({"token_id": b"x"}, PartyRefused),
        ({"token_id": other.token_id}, SealBroken),
        ({"signature": b"x" * 64}, SealBroken),
        ({"joiner_signature": b"x" * 64}, SealBroken),
        ({"joiner_signature": b""}, SealBroken),
        ({"joiner_signature": own}, SealBroken),
        ({"party": _newcomer().party}, SealBroken),
        ({"party": "nobody"}, MalformedFrame),
        ({"label": "x" * 65}, InvalidRequest),
        ({"label": "\x1b[31m"}, InvalidRequest),
    ):
        with pytest.raises(error):
            await house.join(ticket, newcomer, **changes)
    for stranger in (other.seed, _newcomer().seed):  # signed well, but not by this token's joiner
        with pytest.raises(PartyRefused, match="not one of ours"):
            await house.join(msgspec.structs.replace(ticket, seed=stranger), newcomer)
    with pytest.raises(PartyRefused, match="key of its own"):
        await house.join(ticket, Identity.from_seed(ticket.seed))
    assert [token.used for token in await house.admission.tokens()] == [0, 0]
    await house.join(ticket, newcomer)


@pytest.mark.anyio
async def test_renewal(house: _House) -> None:
    """A member gets a fresh credential for itself only; a stranger gets none."""
    newcomer = _newcomer()
    await house.join(await house.ticket(), newcomer)
    house.clock.ms += DAY_MS // 2
    for party, role in ((newcomer.party, Role.NODE), (FIXED.party, Role.GATEWAY)):
        admitted = await house.admission.renew(party, Renew(party))
        credential = read_credential(admitted.credential, ACCOUNT.nkey, house.clock.ms)
        assert (credential.party, credential.role) == (party, role)
        assert credential.expires_ms == house.clock.ms + DAY_MS
    with pytest.raises(PartyRefused, match="own"):
        await house.admission.renew(newcomer.party, Renew(FIXED.party))
    stranger = _newcomer().party
    with pytest.raises(PartyRefused, match="not in the network"):
        await house.admission.renew(stranger, Renew(stranger))


@pytest.mark.anyio
async def test_the_revoked_stay_out(house: _House) -> None:
    """A revoked party is cut off at once, is never renewed, and no token brings it back."""
    newcomer = _newcomer()
    ticket = await house.ticket(uses=5)
    await house.join(ticket, newcomer)
    for out in (newcomer, FIXED):
        await house.admission.revoke(out.party)
        with pytest.raises(PartyRefused, match="revoked"):
            await house.admission.renew(out.party, Renew(out.party))
    for again in (ticket, await house.ticket()):
        with pytest.raises(PartyRefused, match="revoked"):
            await house.join(again, newcomer)
    with pytest.raises(NotFound):
        await house.admission.revoke(_newcomer().party)
    assert house.cut_off == [newcomer.party, FIXED.party]
    await house.parties.load()
    await house.admission.repeat_revocations()
    assert sorted(house.cut_off[2:]) == sorted(house.cut_off[:2])
    house.clock.ms += 2 * DAY_MS
    await house.admission.repeat_revocations()
    assert len(house.cut_off) == 4


@pytest.mark.anyio
async def test_tokens_have_bounds(house: _House) -> None:
    """A token for a strange role, no use, or for ever, is not made."""
    for arguments in (
        (Role.OPERATOR, 1, DAY_MS, ""),
        (Role.REGISTRY, 1, DAY_MS, ""),
        (Role.JOINER, 1, DAY_MS, ""),
        (Role.NODE, 0, DAY_MS, ""),
        (Role.NODE, True, DAY_MS, ""),
        (Role.NODE, 1, 0, ""),
        (Role.NODE, 1, 31 * DAY_MS, ""),
        (Role.NODE, 1, DAY_MS, "two\nlines"),
    ):
        with pytest.raises(InvalidRequest):
            await house.admission.create_token(*arguments, joiner=_newcomer().party)
    assert (await house.ticket(lifetime_ms=30 * DAY_MS)).credential


@pytest.mark.anyio
async def test_a_token_is_for_one_new_joiner(house: _House) -> None:
    """What is no public user nkey, or has a token already, gets none."""
    for wrong in ("", "nobody", ACCOUNT.nkey, _newcomer().seed, _newcomer().party.lower()):
        with pytest.raises(InvalidRequest, match="joiner"):
            await house.admission.create_token(Role.NODE, 1, DAY_MS, joiner=wrong)
    joiner = _newcomer().party
    await house.admission.create_token(Role.NODE, 1, DAY_MS, joiner=joiner)
    with pytest.raises(Conflict, match="new key"):
        await house.admission.create_token(Role.GATEWAY, 5, DAY_MS, joiner=joiner)
    assert [token.role for token in await house.admission.tokens()] == [Role.NODE]


@pytest.mark.anyio
async def test_no_secret_is_stored(tmp_path: Path) -> None:
    """The joiner's seed is nowhere in the files of the store, nor is its credential."""
    async with open_store(tmp_path / "registry.db") as store:
        ticket = await _House(store).ticket()
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert ticket.token_id in stored
        for secret in (ticket.seed, ticket.credential):
            assert secret.encode() not in stored
