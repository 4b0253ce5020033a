"""Identities, and the keys that prove them."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of a tenant, and what it may do."""

    tenant: str
    user: str
    roles: tuple[str, ...] = ("user",)


class Keys:
    """The keys that are accepted, held as hashes.

    The hash is keyed with a secret of this process, so the time that a look-up takes tells nothing about a key.
    """

    def __init__(self, keys: Mapping[str, tuple[str, str]]) -> None:
        self._secret = secrets.token_bytes(32)
        self._known = {self._hash(key): Identity(tenant, user) for key, (tenant, user) in keys.items()}

    def whose(self, key: str) -> Identity | None:
        """Return whose key this is, None for one that is not known."""
        return self._known.get(self._hash(key))

    def _hash(self, key: str) -> bytes:
        return blake2b(key.encode(errors="surrogateescape"), key=self._secret).digest()
