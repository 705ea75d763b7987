"""Sums of completions and embeddings: a row for each day, actor, feature, provider and model, or for some of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cgw.events.latencies import add_buckets, find_bucket
from cgw.model import EventName

KEYS = ("day", "actor", "source", "feature", "provider", "model")
"""The fields that tell one row from another. An actor's id is its own only together with its source."""

_FINISHED = frozenset([EventName.COMPLETIONS_FINISHED.value, EventName.EMBEDDINGS_FINISHED.value])
_Key = tuple[str, str, str, str, str, str]

_SUCCESSES = (None, "completed")  # events of earlier versions have no outcome
_CLIENT_GONE = "client_gone"
_CLIENT_CLOSED_REQUEST = 499


class UsageRow(msgspec.Struct, gc=False):
    """The completions and embeddings of one UTC day, actor, feature, provider and model; ``""``: of all of them.

    ``requests`` counts all of them, ``aborted`` those whose client left before the end, ``errors`` those that failed
    otherwise. The sums are over what is known, ``None`` where nothing is; ``cached_tokens`` are those of the prompt
    that came from the provider's cache. ``actor`` is the id; ``actor_name`` the name that was recorded last, at
    ``named_at``; both are ``""`` for none. ``first_bytes`` are the buckets of :mod:`cgw.events.latencies`.
    """

    day: str = ""
    actor: str = ""
    source: str = ""
    feature: str = ""
    provider: str = ""
    model: str = ""
    actor_name: str = ""
    named_at: str = ""
    requests: int = 0
    errors: int = 0
    aborted: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_characters: int | None = None
    completion_characters: int | None = None
    first_bytes: dict[int, int] = {}


class Figures(msgspec.Struct, gc=False):
    """The part of an event's metadata that a row needs, by the names of the row."""

    feature: str | None = None
    provider: str | None = None
    model: str | None = None
    actor_name: str | None = None
    outcome: str | None = None
    status: int | None = msgspec.field(name="resolved_status_code", default=None)
    prompt_tokens: int | None = msgspec.field(name="prompt_token_count", default=None)
    completion_tokens: int | None = msgspec.field(name="completion_token_count", default=None)
    cached_tokens: int | None = msgspec.field(name="prompt_cache_read_token_count", default=None)
    prompt_characters: int | None = msgspec.field(name="prompt_character_count", default=None)
    completion_characters: int | None = msgspec.field(name="completion_character_count", default=None)
    tokens_used: int | None = None  # of embeddings, as the next one
    input_characters: int | None = msgspec.field(name="input_character_count", default=None)
    first_byte_ms: float | None = msgspec.field(name="time_to_first_byte_ms", default=None)


class Line(msgspec.Struct, gc=False):
    """A line of the event log, as far as it is summed."""

    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: Figures


class UsageTable:
    """Rows by their keys, each with a sum of its own."""

    def __init__(self, by: Sequence[str] = KEYS) -> None:
        """``by`` are those of :data:`KEYS` that tell one row from another."""
        self._by = [key in by for key in KEYS]
        self._rows: dict[_Key, UsageRow] = {}

    def rows(self) -> list[UsageRow]:
        """Return the rows, in the order of their keys."""
        return [row for _, row in sorted(self._rows.items())]

    def count(self, lines: Iterable[Line]) -> None:
        """Add the completions and embeddings among ``lines``, by all keys. A million take some 2 s."""
        rows = self._rows
        for line in lines:
            if line.name not in _FINISHED:
                continue
            figures, moment = line.metadata, line.created_at
            key = (
                moment[:10],
                line.identifier,
                line.source,
                figures.feature or "",
                figures.provider or "",
                figures.model or "",
            )
            row = rows.get(key)
            if row is None:
                row = rows[key] = UsageRow(*key)
            row.requests += 1
            status = figures.status
            if figures.outcome == _CLIENT_GONE or status == _CLIENT_CLOSED_REQUEST:
                row.aborted += 1
            elif status is None or not 200 <= status < 300 or figures.outcome not in _SUCCESSES:
                row.errors += 1
            if figures.tokens_used is not None:
                figures.prompt_tokens = figures.tokens_used
            if figures.input_characters is not None:
                figures.prompt_characters = figures.input_characters
            if figures.actor_name and moment >= row.named_at:
                row.actor_name, row.named_at = figures.actor_name, moment
            _add_amounts(row, figures)
            if figures.first_byte_ms is not None:
                bucket = find_bucket(figures.first_byte_ms)
                row.first_bytes[bucket] = row.first_bytes.get(bucket, 0) + 1

    def add(self, part: UsageRow) -> None:
        """Add the sums of ``part`` to the row of its keys."""
        has_day, has_actor, has_source, has_feature, has_provider, has_model = self._by
        key = (
            part.day if has_day else "",
            part.actor if has_actor else "",
            part.source if has_source else "",
            part.feature if has_feature else "",
            part.provider if has_provider else "",
            part.model if has_model else "",
        )
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = UsageRow(*key)
        row.requests += part.requests
        row.errors += part.errors
        row.aborted += part.aborted
        # The name is the actor's, not that of a row for all of them.
        if has_actor and part.actor_name and part.named_at >= row.named_at:
            row.actor_name, row.named_at = part.actor_name, part.named_at
        _add_amounts(row, part)
        add_buckets(row.first_bytes, part.first_bytes)


def _add_amounts(row: UsageRow, part: UsageRow | Figures) -> None:
    if (tokens := part.prompt_tokens) is not None:
        row.prompt_tokens = (row.prompt_tokens or 0) + tokens
    if (tokens := part.completion_tokens) is not None:
        row.completion_tokens = (row.completion_tokens or 0) + tokens
    if (tokens := part.cached_tokens) is not None:
        row.cached_tokens = (row.cached_tokens or 0) + tokens
    if (characters := part.prompt_characters) is not None:
        row.prompt_characters = (row.prompt_characters or 0) + characters
    if (characters := part.completion_characters) is not None:
        row.completion_characters = (row.completion_characters or 0) + characters
