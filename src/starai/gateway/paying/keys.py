"""API keys as a gateway knows them: by hash, each with its limits; replaced as the registry tells.

A lookup hashes the presented key and finds the hash in a dictionary: what timing could leak is
something about a hash, and 256 random bits stand behind each. Keys are never kept or logged.
"""

from __future__ import annotations

from collections.abc import Iterable

from starai.core.errors import AuthenticationFailed, Unavailable
from starai.gateway.paying.limits import KeyLimits
from starai.gateway.paying.purses import Purse
from starai.protocol.api_keys import KEY_PREFIX, hash_api_key
from starai.protocol.registry import KeyEntry, KeyTable

_SCHEME = b"bearer "


class Account:
    """A key in use: its entry and how much of its limits is used up."""

    __slots__ = ("cache_salt", "entry", "limits", "purse")

    def __init__(self, entry: KeyEntry, limits: KeyLimits | None = None) -> None:
        """An account starts with all of its limits to spend."""
        self.entry = entry
        #: Parts this account's memory of prompts from others'; `starai.gateway.jobs` makes it.
        self.cache_salt = b""
        self.limits = limits or KeyLimits(entry.requests_per_minute, entry.tokens_per_minute)
        #: What it may spend here; `starai.gateway.paying.funding` opens it.
        self.purse: Purse | None = None

    @property
    def customer(self) -> int:
        """Whom the tasks are for: an opaque number, 0 without keys."""
        return self.entry.customer


#: Who calls when there are no keys: anyone on this machine, without limits.
ANYONE = KeyEntry(
    key_hash=b"", key_id="", name="", customer=0, requests_per_minute=0, tokens_per_minute=0
)


class KeyRing:
    """All keys that open this gateway. Updating it keeps what each key has already used."""

    def __init__(self) -> None:
        """Start empty: until the first complete table nobody can be told right from wrong."""
        self._accounts: dict[bytes, Account] = {}
        self.version = -1
        #: Whether a complete table has come.
        self.loaded = False

    def __len__(self) -> int:
        return len(self._accounts)

    def accounts(self) -> Iterable[Account]:
        """All accounts, those of revoked keys too."""
        return self._accounts.values()

    def apply(self, table: KeyTable) -> bool:
        """Take over a table or a change; False: a change was missed, ask for the whole table.

        A complete table always replaces what is known. A change counts when it is newer.
        """
        if table.complete:
            known, self._accounts = self._accounts, {}
            for entry in table.entries:
                self._put(entry, known.get(entry.key_hash))
            self.version = table.version
            self.loaded = True
            return True
        if table.version <= self.version:
            return self.loaded
        in_step = self.loaded and table.version == self.version + 1
        for entry in table.entries:
            self._put(entry, self._accounts.get(entry.key_hash))
        # Only a step from the known state is the known state; else stay behind and be told all.
        if in_step:
            self.version = table.version
        return in_step

    def _put(self, entry: KeyEntry, known: Account | None) -> None:
        if known is None:
            self._accounts[entry.key_hash] = Account(entry)
            return
        before = (known.entry.requests_per_minute, known.entry.tokens_per_minute)
        if before != (entry.requests_per_minute, entry.tokens_per_minute):
            known.limits = KeyLimits(entry.requests_per_minute, entry.tokens_per_minute)
        known.entry = entry
        self._accounts[entry.key_hash] = known

    def authenticate(self, authorization: bytes) -> Account:
        """The account behind an ``Authorization`` header.

        Raises:
            AuthenticationFailed: no key, or none of ours.
            Unavailable: the keys are not known yet.
        """
        if authorization[:7].lower() != _SCHEME:
            raise AuthenticationFailed(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        # Keys are ASCII; whatever else comes decodes to something that is no key.
        presented = authorization[7:].strip().decode("latin-1")
        account = self._accounts.get(hash_api_key(presented))
        if account is not None and not account.entry.revoked:
            return account
        if not self.loaded:
            raise Unavailable(
                "The gateway is still fetching its API keys; try again shortly.", retry_after_s=1.0
            )
        raise AuthenticationFailed(
            f"Incorrect API key provided. Keys begin with '{KEY_PREFIX}'; the operator makes one "
            "with 'starai keys create'."
        )
