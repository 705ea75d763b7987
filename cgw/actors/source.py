"""The sources of actors: their protocols and errors, and asking them in order."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from attrs import frozen

from cgw.actors.tokens import hash_token
from cgw.durations import format_duration
from cgw.errors import CgwError
from cgw.model import Actor

logger = logging.getLogger("cgw.actors")


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


class SourceUnavailable(CgwError):
    """A source cannot decide about a token now: 503 with ``retry-after``. The text names the source, never a token.

    ``is_down`` tells a source that could not be asked (no connection, no answer in time, 5xx) from an answer that
    could not be used.
    """

    def __init__(self, text: str, *, retry_after_seconds: float = 1.0, is_down: bool = True) -> None:
        self.retry_after_seconds = retry_after_seconds
        self.is_down = is_down
        super().__init__(text)


class TooManyUnknownTokens(CgwError):
    """One client address has presented too many tokens that no source knows: 429 with ``retry-after``."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__("too many unknown tokens from this address")


class FenceLost(CgwError):
    """A newer holder of the sync lock has begun: what this one would have written was not written."""


@frozen
class SyncResult:
    """The result of one sync: ``seen`` tokens are listed at the source, ``removed`` ones no longer were."""

    seen: int
    removed: int


class Source(Protocol):
    """Turns tokens into actors. A source may also be an :class:`Updater`, a :class:`Syncer`, a :class:`Runner`.

    The rules by which limits and alerts treat its actors are a :class:`~cgw.model.SourcePolicy` that each of its
    actors carries.
    """

    @property
    def name(self) -> str:
        """The name in events, in the keys of limits and in logs; see :mod:`cgw.actors.policies`."""
        ...

    async def get(self, token: str, client: str = "") -> Actor:
        """Return the actor of ``token``, with the source's name and policy; ``""`` if the caller presented no token.

        ``client`` is the caller's address, which bounds how many unknown tokens it may present. Raises
        :exc:`NotFromSource` when another source should be asked, :exc:`AccessTokenDenied` for a definite denial,
        :exc:`TooManyUnknownTokens`, and :exc:`SourceUnavailable` when the source cannot decide now. No error's text
        may contain the token.
        """
        ...


@runtime_checkable
class Updater(Protocol):
    """A :class:`Source` that can fetch a single actor again from its source of truth."""

    @property
    def cooldown_seconds(self) -> float:
        """The time after an update, successful or not, in which the same actor is not fetched again."""
        ...

    async def update(self, actor: Actor, token: str) -> None:
        """Fetch ``actor``, who presented ``token``, again, so that the next ``get`` returns its present state.

        Raises :exc:`~cgw.errors.CgwError` when that is not possible; what was known before stays in force. Cancel-safe.
        """
        ...


@runtime_checkable
class HealthReporter(Protocol):
    """A :class:`Source` that may work only in part."""

    def describe(self) -> str | None:
        """Return one sentence for operators while it does, otherwise ``None``; no secrets: it shows in healthz."""
        ...


@runtime_checkable
class Syncer(Protocol):
    """A :class:`Source` that can list all its tokens, so that those which were revoked are forgotten."""

    @property
    def name(self) -> str:
        """The source's name."""
        ...

    async def sync(self, fence: int) -> SyncResult:
        """List all tokens at the source, keep what was found in Redis, and remove what is no longer listed.

        ``fence`` is the fencing token of the caller's lock: greater than that of every earlier holder, below 2^53.
        Redis refuses every write with a smaller one than it has seen of this source: that raises :exc:`FenceLost`.
        Raises :exc:`SourceUnavailable` when the listing is not complete (nothing is removed then) and
        :exc:`~cgw.errors.StoreUnavailable`. Cancel-safe: what was written before stays, and nothing is removed.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """A :class:`Source` that needs a background task while the service runs."""

    async def run(self) -> None:
        """Work until cancelled."""
        ...


@frozen
class ActorList:
    """Actors that a source knows now; ``is_complete`` is false if there are more than could be listed."""

    actors: Sequence[Actor]
    is_complete: bool = True


@runtime_checkable
class Lister(Protocol):
    """A :class:`Source` that can list the actors that it knows without asking elsewhere, for operators."""

    @property
    def name(self) -> str:
        """The source's name."""
        ...

    async def list_actors(self, *, max_actors: int, seconds: float) -> ActorList:
        """Return at most ``max_actors`` actors, found within ``seconds``, in no particular order.

        Raises :exc:`~cgw.errors.StoreUnavailable`. Cancel-safe; changes nothing.
        """
        ...


@runtime_checkable
class Recaller(Protocol):
    """A :class:`Source` that knows some tokens without asking anyone."""

    def recall(self, token_hash: str) -> Actor | None:
        """Return the actor of the token with this SHA-256 (lower-case hex) if it is known and fresh. Never raises."""
        ...


class Sources:
    """All sources of a gateway, asked in order (the reference's §2.1)."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        # Looked up at every refusal by a quota, so found out once.
        self._updaters = {source.name: source for source in self._sources if isinstance(source, Updater)}
        self.syncers: Sequence[Syncer] = [source for source in self._sources if isinstance(source, Syncer)]
        """The sources that can be synced, in order."""
        self.runners: Sequence[Runner] = [source for source in self._sources if isinstance(source, Runner)]
        """The sources that need a background task, in order."""
        self.listers: Sequence[Lister] = [source for source in self._sources if isinstance(source, Lister)]
        """The sources whose actors can be listed, in order."""
        self._recalls = tuple(source.recall for source in self._sources if isinstance(source, Recaller))

    @property
    def all(self) -> Sequence[Source]:
        """The sources, in order."""
        return self._sources

    def describe(self) -> list[str]:
        """Return one sentence for each source that works only in part."""
        reporters = [source for source in self._sources if isinstance(source, HealthReporter)]
        return [sentence for reporter in reporters if (sentence := reporter.describe()) is not None]

    def find_updater(self, actor: Actor) -> Updater | None:
        """Return the source of ``actor`` if it can update, otherwise ``None``."""
        return self._updaters.get(actor.source)

    async def get(self, token: str, client: str = "") -> Actor:
        """Return the actor of ``token`` from the first source that knows it; ``client`` is the caller's address.

        Raises as :meth:`look_up` does.
        """
        # The usual case first, for all sources: asking one after the other costs three times as much, most of it for
        # the exceptions.
        return self.recall(token) or await self.look_up(token, client)

    def recall(self, token: str) -> Actor | None:
        """Return the actor of ``token`` if a source knows it without asking anyone: one hash, and a look-up in each."""
        if token:
            token_hash = hash_token(token)
            for recall in self._recalls:
                actor = recall(token_hash)
                if actor is not None:
                    if logger.isEnabledFor(logging.DEBUG):
                        logger.debug("the token is actor %s's of source %s, known here", actor.id, actor.source)
                    return actor
        return None

    async def look_up(self, token: str, client: str) -> Actor:
        """Return what :meth:`get` does for a token that :meth:`recall` does not know.

        If no source knows it, raises :exc:`NotFromSource` with the reason ``no token provided`` or ``no source found
        for token``. Any other error of a source ends the search; it gets a note that names the source.
        """
        for source in self._sources:
            try:
                actor = await source.get(token, client)
                logger.debug("the token is actor %s's of source %s, looked up", actor.id, actor.source)
                return actor
            # Only this error lets another source decide: a source that is down must not turn its tokens into unknown
            # ones (401).
            except NotFromSource:
                continue
            except CgwError as error:
                # A note, not a new error: callers tell a denial from a failure by the type.
                note = f"from the actor source {source.name!r}"
                if note not in getattr(error, "__notes__", ()):  # callers of one look-up get the same error
                    error.add_note(note)
                raise
        raise NotFromSource("no source found for token" if token else "no token provided")
