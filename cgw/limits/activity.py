"""Finding the actors that limits are counted for now: a scan of the store, for ``cgw limits show``."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import aclosing
from urllib.parse import unquote

import trio
from attrs import frozen

from cgw.limits.claims import build_key_prefix
from cgw.model import Feature
from cgw.redis.opening import Store

MAX_ACTORS = 10_000
"""More are not looked for: each takes a call, and a list of more is not for people."""

SCAN_SECONDS = 60.0
"""The time after which a scan ends with what it has found: several million keys."""

_FEATURES = "|".join(re.escape(feature.value) for feature in Feature)
# As claims.py builds them; reservations are left out, as they have a limit beside them.
_KEY = re.compile(rf"cgw:\{{([^{{}}:]+):([^{{}}:]+)\}}:(?:{_FEATURES}):(?:quota|rate|in_flight|notice)")


@frozen
class ActiveActors:
    """Actors by source and id, sorted. ``is_complete`` is false when the scan met one of its bounds."""

    actors: tuple[tuple[str, str], ...]
    is_complete: bool


async def find_active_actors(
    store: Store,
    sources: Collection[str],
    *,
    feature: Feature | None = None,
    max_actors: int = MAX_ACTORS,
    seconds: float = SCAN_SECONDS,
) -> ActiveActors:
    """Return the actors of ``sources`` that the store counts anything for now, for ``feature`` or for any.

    At most ``max_actors``, and what is found within ``seconds``. Raises :exc:`~cgw.errors.StoreUnavailable` when a
    server does not answer. Cancel-safe; writes nothing.
    """
    found: set[tuple[str, str]] = set()
    with trio.move_on_after(seconds) as time_scope:
        async with aclosing(store.scan(_build_pattern(sources, feature))) as pages:
            async for keys in pages:
                for key in keys:
                    match = _KEY.fullmatch(key.decode("utf-8", "replace"))
                    if match is not None and (source := unquote(match[1])) in sources:
                        found.add((source, unquote(match[2])))
                # One more than the bound tells that there are more.
                if len(found) > max_actors:
                    break
    is_complete = len(found) <= max_actors and not time_scope.cancelled_caught
    return ActiveActors(tuple(sorted(found)[:max_actors]), is_complete)


def _build_pattern(sources: Collection[str], feature: Feature | None) -> str:
    """Return a glob that the server compares keys with, so that fewer of them travel."""
    prefix = "cgw:{*}:"
    if len(sources) == 1:
        (source,) = sources
        # Built without an id, because the wildcard in its place must not be encoded.
        prefix = build_key_prefix(source, "").removesuffix("}:") + "*}:"
    return f"{prefix}{'*' if feature is None else feature.value}:*"
