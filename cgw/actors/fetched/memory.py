"""The memory of tokens in this process, in bounded space: actors for seconds, denials for less than a minute.

Keys are hashes of tokens, in hex; no token is kept.
"""

from __future__ import annotations

from collections import OrderedDict

import trio
from attrs import define

from cgw.actors.fetched.fetched_actor import FetchedActor
from cgw.model import Actor

MAX_ACTORS = 10_000
"""Tokens whose actor is remembered, some 3 KB each; of more, the one that was unused for longest is forgotten."""

MAX_DENIALS = 20_000
"""Denied tokens that are remembered, some 200 bytes each."""

DENIED_SECONDS = 30.0
"""How long a denial is repeated without asking: a token that was just made works after that, at the latest."""


@define(eq=False)
class Remembered:
    """A token's actor. Until ``fresh_until`` (Trio's clock) it is used without asking anyone.

    ``checked_at_ms`` is when its source last found the token valid (Unix time).
    """

    actor: Actor
    fetched: FetchedActor
    checked_at_ms: int
    fresh_until: float


class Memory:
    """The tokens that this process has seen lately."""

    def __init__(self) -> None:
        self._actors: OrderedDict[str, Remembered] = OrderedDict()
        self._denials: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def find(self, key: str) -> Remembered | None:
        """Return what is remembered, fresh or not."""
        remembered = self._actors.get(key)
        if remembered is not None:
            self._actors.move_to_end(key)
        return remembered

    def remember(self, key: str, remembered: Remembered) -> None:
        """Remember an actor; forget that its token was denied."""
        self._denials.pop(key, None)
        self._actors[key] = remembered
        self._actors.move_to_end(key)
        if len(self._actors) > MAX_ACTORS:
            self._actors.popitem(last=False)

    def forget(self, key: str) -> None:
        """Forget a token's actor; the token may still be known elsewhere."""
        self._actors.pop(key, None)

    def find_denial(self, key: str) -> str | None:
        """Return the reason why a token was denied lately."""
        denial = self._denials.get(key)
        if denial is None:
            return None
        until, reason = denial
        if trio.current_time() < until:
            return reason
        del self._denials[key]
        return None

    def remember_denial(self, key: str, reason: str) -> None:
        """Remember a definite denial; forget the token's actor."""
        self._actors.pop(key, None)
        self._denials[key] = trio.current_time() + DENIED_SECONDS, reason
        self._denials.move_to_end(key)
        if len(self._denials) > MAX_DENIALS:
            self._denials.popitem(last=False)

    def expire(self) -> None:
        """Have every actor asked for again."""
        for remembered in self._actors.values():
            remembered.fresh_until = 0.0

    def __len__(self) -> int:
        return len(self._actors) + len(self._denials)
