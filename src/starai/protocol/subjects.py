"""Every NATS subject, and which role may use which: the map of who can say what to whom.

A party's name is part of every subject that it may publish on, so a permission can hold it to
its own: a node can neither read another's offers nor answer another's tasks.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from starai.protocol.identity import PartyId


class Role(enum.Enum):
    """What a party is in the network."""

    NODE = "node"
    DISTRIBUTOR = "distributor"
    GATEWAY = "gateway"
    REGISTRY = "registry"
    OPERATOR = "operator"
    JOINER = "joiner"


def offer(role: Role, callee: PartyId) -> str:
    """Where a callee hears offers and closes."""
    return f"starai.offer.{role.value}.{callee}"


def answer(callee: PartyId, caller: PartyId) -> str:
    """Where a callee answers one caller."""
    return f"starai.answer.{callee}.{caller}"


def answers_for(caller: PartyId) -> str:
    """Where a caller hears all its answers; the third token is the callee."""
    return f"starai.answer.*.{caller}"


def beat(role: Role, party: PartyId) -> str:
    """Where a party beats."""
    return f"starai.beat.{role.value}.{party}"


def beats(role: Role) -> str:
    """All beats of a role."""
    return f"starai.beat.{role.value}.*"


def control(node: PartyId) -> str:
    """Where a node hears its owner's orders."""
    return f"starai.control.node.{node}"


def place(node: PartyId | Literal["*"]) -> str:
    """Where a node hears from distributors which model is wanted of it."""
    return f"starai.place.node.{node}"


def ping(asker: PartyId) -> str:
    """Where a party asks everybody who answers pings how far they are."""
    return f"starai.ping.{asker}"


#: All pings.
PINGS = "starai.ping.*"


def pong(asker: PartyId | Literal["*"], answerer: PartyId) -> str:
    """Where a ping comes back."""
    return f"starai.pong.{asker}.{answerer}"


def pongs(asker: PartyId) -> str:
    """All of a party's pings as they come back; the last token is who sent it."""
    return f"starai.pong.{asker}.*"


def plea(role: Role, asker: PartyId) -> str:
    """Where a node or the operator asks the distributors how a node stands with them."""
    return f"starai.plea.{role.value}.{asker}"


#: All pleas.
PLEAS = "starai.plea.*.*"


def standing(asker: PartyId | Literal["*"], distributor: PartyId | Literal["*"]) -> str:
    """Where a distributor answers a plea."""
    return f"starai.standing.{asker}.{distributor}"


def registry(verb: str, party: PartyId) -> str:
    """Where ``party`` asks the registry.

    Verbs are confirm, join, renew, query, keys, prices, allotments and witness.
    """
    return f"starai.registry.{verb}.{party}"


def registry_all(verb: str) -> str:
    """All requests of one verb."""
    return f"starai.registry.{verb}.*"


#: Where the registry tells gateways about changed API keys.
KEYS_CHANGED = "starai.keys.changed"
#: Where it tells them, and nodes, about changed prices.
PRICES_CHANGED = "starai.prices.changed"
#: And about customers whose money changed or runs short.
FUNDS_CHANGED = "starai.funds.changed"


def inbox(party: PartyId) -> str:
    """The prefix of a party's reply subjects."""
    return f"_INBOX.{party}"


class Permissions(msgspec.Struct, frozen=True):
    """What a party may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def permissions(role: Role, party: PartyId) -> Permissions:
    """The subjects that a role opens to a party, and no others."""
    own_inbox = f"{inbox(party)}.>"
    match role:
        case Role.NODE:
            return _node(party, own_inbox)
        case Role.DISTRIBUTOR:
            return _distributor(party, own_inbox)
        case Role.GATEWAY:
            return _gateway(party, own_inbox)
        case Role.REGISTRY:
            return Permissions(
                publish=(
                    "_INBOX.>",
                    KEYS_CHANGED,
                    PRICES_CHANGED,
                    FUNDS_CHANGED,
                    beat(role, party),
                ),
                subscribe=("starai.registry.>", own_inbox),
            )
        case Role.OPERATOR:
            return Permissions(
                publish=(
                    "starai.control.node.*",
                    plea(role, party),
                    registry("renew", party),
                    registry("query", party),
                ),
                subscribe=("starai.beat.>", standing(party, "*"), own_inbox),
            )
        case Role.JOINER:
            return Permissions(publish=(registry("join", party),), subscribe=(own_inbox,))


def _node(party: PartyId, own_inbox: str) -> Permissions:
    return Permissions(
        publish=(
            f"starai.answer.{party}.*",
            beat(Role.NODE, party),
            control(party),
            ping(party),
            plea(Role.NODE, party),
            registry("confirm", party),
            registry("prices", party),  # the least that it works for
            registry("query", party),  # its own earnings
            registry("renew", party),
            registry("witness", party),
        ),
        subscribe=(
            offer(Role.NODE, party),
            control(party),
            place(party),
            pongs(party),
            beats(Role.DISTRIBUTOR),
            standing(party, "*"),
            PRICES_CHANGED,
            own_inbox,
        ),
    )


def _distributor(party: PartyId, own_inbox: str) -> Permissions:
    return Permissions(
        publish=(
            "starai.offer.node.*",
            f"starai.answer.{party}.*",
            beat(Role.DISTRIBUTOR, party),
            place("*"),
            pong("*", party),
            standing("*", party),
            registry("confirm", party),
            registry("renew", party),
        ),
        subscribe=(
            offer(Role.DISTRIBUTOR, party),
            answers_for(party),
            PINGS,
            PLEAS,
            beats(Role.NODE),
            beats(Role.DISTRIBUTOR),
            beats(Role.GATEWAY),
            own_inbox,
        ),
    )


def _gateway(party: PartyId, own_inbox: str) -> Permissions:
    return Permissions(
        publish=(
            "starai.offer.distributor.*",
            beat(Role.GATEWAY, party),
            registry("keys", party),
            registry("prices", party),
            registry("allotments", party),
            registry("renew", party),
            registry("query", party),
            registry("witness", party),
            ping(party),
            pong("*", party),
        ),
        subscribe=(
            answers_for(party),
            PINGS,
            pongs(party),
            beats(Role.DISTRIBUTOR),
            beats(Role.NODE),
            KEYS_CHANGED,
            PRICES_CHANGED,
            FUNDS_CHANGED,
            own_inbox,
        ),
    )
