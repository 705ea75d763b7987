"""Where actors come from, and the order in which the sources are asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from cgw.durations import format_duration
from cgw.errors import CgwError
from cgw.model import Actor


class NotFromSource(CgwError):
    """The token is none of this source's; another one may know it. When none does: 401."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(f"token not from source: {reason}" if reason else "token not from source")


class AccessTokenDenied(CgwError):
    """The token is of this source's kind, and the source says no: 401, and an ``Unauthorized`` event."""

    def __init__(self, reason: str, source: str) -> None:
        self.reason = reason
        self.source = source
        super().__init__(f"access token denied: {reason}")


class ActorRecentlyUpdated(CgwError):
    """The actor came anew from its source a moment ago: 429. ``retry_at`` (UTC) is when it may be asked for again.

    The text says how long that is, in whole seconds, rounded downward as in the reference (its §1.7).
    """

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        self.retry_at = datetime.now(UTC) + timedelta(seconds=retry_after_seconds)
        wait = format_duration(math.floor(retry_after_seconds))
        super().__init__(f"actor was recently updated - try again in {wait}")


class Source(Protocol):
    """Turns tokens into actors."""

    @property
    def name(self) -> str:
        """The name that events, limits' keys and logs carry."""
        ...

    async def get(self, token: str) -> Actor:
        """The actor that ``token`` stands for; ``token`` is ``""`` where the caller presented none.

        Raises :exc:`NotFromSource` when another source should be asked, :exc:`AccessTokenDenied` for a definite no;
        any other error means that the source cannot tell now. No error's text may hold the token.
        """
        ...


@runtime_checkable
class Updater(Protocol):
    """What a source is besides, when it can fetch one actor anew from where actors are kept."""

    @property
    def cooldown_seconds(self) -> float:
        """How long after an update, successful or not, the same actor is not fetched again."""
        ...

    async def update(self, actor: Actor) -> None:
        """Fetch ``actor`` anew, so that the next ``get`` of its token gives what its source of truth says now.

        Raises :exc:`~cgw.errors.CgwError` when that is not possible; what was known before stays. Cancel-safe.
        """
        ...


class Sources:
    """All sources of a gateway, asked in order (the reference's §2.1)."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._updaters = {source.name: source for source in self._sources if isinstance(source, Updater)}

    def find_updater(self, actor: Actor) -> Updater | None:
        """The source that ``actor`` is from, when it can update."""
        return self._updaters.get(actor.source)

    async def get(self, token: str) -> Actor:
        """The actor from the first source that does not say :exc:`NotFromSource`.

        Whatever else a source raises ends the search, with a note that names the source. When all pass on, raises
        :exc:`NotFromSource` with the reason ``no token provided`` or ``no source found for token``.
        """
        for source in self._sources:
            try:
                return await source.get(token)
            except NotFromSource:
                continue
            except CgwError as error:
                error.add_note(f"from the actor source {source.name!r}")
                raise
        raise NotFromSource("no source found for token" if token else "no token provided")
