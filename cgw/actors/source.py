"""The sources of actors: their protocols and errors, and asking them in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from cgw.durations import format_duration
from cgw.errors import CgwError
from cgw.model import Actor


class NotFromSource(CgwError):
    """The token is not of this source; another source may know it. If none does, the response is 401."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(f"token not from source: {reason}" if reason else "token not from source")


class AccessTokenDenied(CgwError):
    """The token is of this source's kind, and the source denies it: 401, and an ``Unauthorized`` event."""

    def __init__(self, reason: str, source: str) -> None:
        self.reason = reason
        self.source = source
        super().__init__(f"access token denied: {reason}")


class ActorRecentlyUpdated(CgwError):
    """The actor was fetched from its source a moment ago: 429. ``retry_at`` (UTC) is when it may be fetched again.

    The text has the time until then in whole seconds, rounded down as in the reference (its §1.7).
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
        """The name in events, in the keys of limits and in logs; see :mod:`cgw.actors.policies`."""
        ...

    async def get(self, token: str) -> Actor:
        """Return the actor of ``token``, with the source's name and policy; ``""`` if the caller presented no token.

        Raises :exc:`NotFromSource` when another source should be asked, :exc:`AccessTokenDenied` for a definite
        denial; any other error means that the source cannot decide now. No error's text may contain the token.
        """
        ...


@runtime_checkable
class Updater(Protocol):
    """A :class:`Source` that can fetch a single actor again from its source of truth."""

    @property
    def cooldown_seconds(self) -> float:
        """The time after an update, successful or not, in which the same actor is not fetched again."""
        ...

    async def update(self, actor: Actor) -> None:
        """Fetch ``actor`` again, so that the next ``get`` of its token returns its present state.

        Raises :exc:`~cgw.errors.CgwError` when that is not possible; what was known before stays in force. Cancel-safe.
        """
        ...


@runtime_checkable
class HealthReporter(Protocol):
    """A :class:`Source` that may work only in part."""

    def describe(self) -> str | None:
        """Return one sentence for operators while it does, otherwise ``None``; no secrets: it shows in healthz."""
        ...


class Sources:
    """All sources of a gateway, asked in order (the reference's §2.1)."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        # Looked up at every refusal by a quota, so found out once.
        self._updaters = {source.name: source for source in self._sources if isinstance(source, Updater)}

    def describe(self) -> list[str]:
        """Return one sentence for each source that works only in part."""
        reporters = [source for source in self._sources if isinstance(source, HealthReporter)]
        return [sentence for reporter in reporters if (sentence := reporter.describe()) is not None]

    def find_updater(self, actor: Actor) -> Updater | None:
        """Return the source of ``actor`` if it can update, otherwise ``None``."""
        return self._updaters.get(actor.source)

    async def get(self, token: str) -> Actor:
        """Return the actor of ``token`` from the first source that knows it.

        If no source does, raises :exc:`NotFromSource` with the reason ``no token provided`` or ``no source found for
        token``. Any other error of a source ends the search; it gets a note that names the source.
        """
        for source in self._sources:
            try:
                return await source.get(token)
            # Only this error lets another source decide: a source that is down must not turn its tokens into unknown
            # ones (401).
            except NotFromSource:
                continue
            except CgwError as error:
                # A note, not a new error: callers tell a denial from a failure by the type.
                error.add_note(f"from the actor source {source.name!r}")
                raise
        raise NotFromSource("no source found for token" if token else "no token provided")
