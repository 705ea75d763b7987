"""The interface of what knows a source's actors: Sourcegraph.com or the Enterprise Portal."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from attrs import field, frozen

from cgw.actors.fetched.fetched_actor import FetchedActor

Report = Callable[[str], None]
"""Takes a problem with one actor, as a sentence that names the actor; it is logged once."""


@frozen
class ListedActor:
    """An actor of a listing, with its tokens. ``actor`` is ``None`` if it could not be read."""

    actor: FetchedActor | None
    tokens: Sequence[str] = field(repr=False)


class Backend(Protocol):
    """Asks for the actors of one source."""

    async def fetch(self, token: str, report: Report) -> FetchedActor:
        """Return the actor of ``token``.

        Raises :exc:`~cgw.actors.source.AccessTokenDenied` for a definite denial, and
        :exc:`~cgw.actors.source.SourceUnavailable` when there is no usable answer. Takes up to 30 s. Cancel-safe.
        """
        ...


class ListingBackend(Backend, Protocol):
    """A backend that can list all actors."""

    def list_all(self, report: Report) -> AsyncGenerator[Sequence[ListedActor], None]:
        """Yield all actors, page by page.

        Raises :exc:`~cgw.actors.source.SourceUnavailable` when the listing is not complete. Must be read to its end or
        closed.
        """
        ...
