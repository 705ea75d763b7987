"""A cached source whose tokens can be listed, so that those which were revoked are forgotten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing

from cgw.actors.fetched.backend import ListedActor, ListingBackend
from cgw.actors.fetched.cached_source import CachedSource, SourceParts
from cgw.actors.fetched.redis_records import KeptActor
from cgw.actors.source import SourceUnavailable, SyncResult
from cgw.actors.tokens import hash_token

ACTORS_PER_CALL = 50
"""Actors that one call writes, so that Redis serves others in between."""

TOKENS_PER_ENTRY = 100
"""Tokens of one actor that are written together; it has one for each of its licences."""

logger = logging.getLogger("cgw.actors")


class SyncedSource(CachedSource):
    """A :class:`CachedSource` that is a :class:`~cgw.actors.source.Syncer` too."""

    def __init__(self, backend: ListingBackend, parts: SourceParts) -> None:
        super().__init__(backend, parts)
        self._listing = backend

    async def sync(self, fence: int) -> SyncResult:
        """See :class:`~cgw.actors.source.Syncer`."""
        began_us = await self._records.begin_sync(fence)
        seen = 0
        try:
            # Closed here, and not by the garbage collector, when writing fails half-way.
            async with aclosing(self._listing.list_all(self._health.log_problem)) as pages:
                async for page in pages:
                    for start in range(0, len(page), ACTORS_PER_CALL):
                        # A part of a page at a time: building the entries of thousands of actors takes a while.
                        seen += await self._keep_listed(page[start : start + ACTORS_PER_CALL], fence)
        except SourceUnavailable as failure:
            if failure.is_down:
                self._health.failed(failure, is_listing=True)
            raise
        if not seen and await self._records.count_tokens():
            # A listing without a single token is much more likely to be wrong than the end of all subscriptions. Where
            # there never was one, it may be right.
            raise SourceUnavailable(f"actor source {self.name}: lists no tokens: nothing is removed", is_down=False)
        self._health.answered()
        return SyncResult(seen, await self._records.remove_unseen(fence, began_us))

    async def _keep_listed(self, listed: Sequence[ListedActor], fence: int) -> int:
        kept = [entry for actor in listed for entry in self._build_entries(actor)]
        for start in range(0, len(kept), ACTORS_PER_CALL):
            entries = kept[start : start + ACTORS_PER_CALL]
            await self._apply_interval_changes(entries, await self._records.keep(entries, fence=fence))
        return sum(len(entry.token_hashes) for entry in kept)

    def _build_entries(self, listed: ListedActor) -> list[KeptActor]:
        recognised = [self._shape.recognise(token) for token in listed.tokens]
        hashes = [hash_token(token) for token in recognised if token is not None and self._shape.is_whole(token)]
        if len(hashes) < len(recognised):
            name = "without id" if listed.actor is None else listed.actor.id
            count = len(recognised) - len(hashes)
            self._health.log_problem(f"actor {name}: {count} of its tokens are not of the form {self._shape.prefix}…")
        # At least one entry: an actor whose last token was revoked is still one.
        starts = range(0, max(1, len(hashes)), TOKENS_PER_ENTRY)
        return [KeptActor(listed.actor, hashes[start : start + TOKENS_PER_ENTRY]) for start in starts]
