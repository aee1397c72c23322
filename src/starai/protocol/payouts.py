"""Where a node wants to be paid: an address on the chain, bound by the node's own signature.

The newest binding counts for days that are closed after it. No I/O.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from starai.core.errors import InvalidRequest
from starai.protocol.identity import Identity, PartyId, raw_public, verify

#: The length of an address of an EVM chain.
ADDRESS_BYTES: Final = 20
_TEXT: Final = re.compile(r"0x([0-9a-fA-F]{40})")


def parse_address(text: str) -> bytes:
    """The 20 bytes of an address like ``0x52908400098527886E0F7030069857D2E4169EE7``.

    Raises:
        InvalidRequest: it is none, or the zero address, from which nothing comes back.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest("an address is 0x and 40 hexadecimal digits", param="address")
    address = bytes.fromhex(found[1])
    if not any(address):
        raise InvalidRequest("nobody can spend what is paid to the zero address", param="address")
    return address


def parse_vault(text: str) -> tuple[int, bytes]:
    """The chain's number and the contract's address of ``CHAIN_ID:0xADDRESS``.

    Raises:
        InvalidRequest: it is not of that form.
    """
    chain_id, _, address = text.partition(":")
    if not chain_id.isdecimal():
        raise InvalidRequest(
            "a vault is CHAIN_ID:0xADDRESS, for example 8453:0x5290…", param="vault"
        )
    return int(chain_id), parse_address(address)


def payout_bytes(network: str, node: PartyId, address: bytes, bound_ms: int) -> bytes:
    """The bytes under a binding's signature: of one network, one node, one moment (Unix ms)."""
    name = network.encode()
    return b"starai/v1/payout" + struct.pack(
        f"<H{len(name)}s32s{ADDRESS_BYTES}sQ", len(name), name, raw_public(node), address, bound_ms
    )


def sign_payout(network: str, node: Identity, address: bytes, bound_ms: int) -> bytes:
    """A node's signature under its binding."""
    return node.sign(payout_bytes(network, node.party, address, bound_ms))


def check_payout(
    network: str, node: PartyId, address: bytes, bound_ms: int, signature: bytes
) -> None:
    """Believe a binding only if the node signed it.

    Raises:
        InvalidRequest: the address has another length.
        SealBroken: it did not.
    """
    if len(address) != ADDRESS_BYTES:
        raise InvalidRequest(f"an address has {ADDRESS_BYTES} bytes", param="address")
    verify(node, payout_bytes(network, node, address, bound_ms), signature)
