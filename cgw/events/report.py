"""Completions and embeddings summed up by day, actor, feature and model, for ``cgw usage``.

A sealed segment is read once: its sums are kept in a small file beside it, ``<segment>.summary.json``. Its first
reader writes that and not the gateway, whose streams would feel the time that it takes (60 ms for 16 MiB).
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import date
from pathlib import Path

import msgspec

from cgw.events.reading import decode_lines, list_readable_segments, read_chunks, report_damage
from cgw.events.segments import SUMMARY_SUFFIX, Segment
from cgw.model import EventName

SUMMARY_VERSION = 3

_FINISHED = frozenset([EventName.COMPLETIONS_FINISHED.value, EventName.EMBEDDINGS_FINISHED.value])


class UsageRow(msgspec.Struct, gc=False):
    """The completions of one UTC day, actor, feature and model.

    ``requests`` counts all of them, ``errors`` those that were not answered 2xx. The sums are over what is known,
    ``None`` where nothing is. ``actor`` is the id; ``actor_name`` the name that was recorded last, at ``named_at``;
    both are ``""`` for none.
    """

    day: str
    actor: str
    source: str
    feature: str
    model: str
    actor_name: str = ""
    named_at: str = ""
    requests: int = 0
    errors: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_characters: int | None = None
    completion_characters: int | None = None


class _Figures(msgspec.Struct, gc=False):
    """The part of an event's metadata that a row needs, by the names of the row."""

    feature: str | None = None
    model: str | None = None
    actor_name: str | None = None
    status: int | None = msgspec.field(name="resolved_status_code", default=None)
    prompt_tokens: int | None = msgspec.field(name="prompt_token_count", default=None)
    completion_tokens: int | None = msgspec.field(name="completion_token_count", default=None)
    prompt_characters: int | None = msgspec.field(name="prompt_character_count", default=None)
    completion_characters: int | None = msgspec.field(name="completion_character_count", default=None)
    tokens_used: int | None = None  # of embeddings, as the next one
    input_characters: int | None = msgspec.field(name="input_character_count", default=None)


class _Line(msgspec.Struct, gc=False):
    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: _Figures


class _Summary(msgspec.Struct):
    """The sums of a segment. ``bytes`` is its size, by which a reader knows that they are up to date."""

    version: int
    bytes: int
    damaged_lines: int
    rows: list[UsageRow]


_Table = dict[tuple[str, str, str, str, str], UsageRow]
"""Rows by their first five fields."""


def summarise(
    folder: Path, *, since: date = date.min, until: date = date.max, actor: str | None = None
) -> list[UsageRow]:
    """Sum up the completions of the event log in ``folder``, oldest day first.

    ``since`` and ``until`` are UTC days, both included; ``actor`` is an id. May run while cgw processes write. A
    million events take some seconds and little memory the first time. Raises :exc:`~cgw.errors.EventLogError` when
    the data directory is missing or something in it cannot be read.
    """
    first, last = since.isoformat(), until.isoformat()
    table: _Table = {}
    for segment in list_readable_segments(folder):
        summary = _read_summary(segment) or _sum_up(segment)
        if summary.damaged_lines:
            report_damage(segment, summary.damaged_lines)
        for row in summary.rows:
            if first <= row.day <= last and actor in (None, row.actor):
                sums = _find_row(table, (row.day, row.actor, row.source, row.feature, row.model))
                _add(sums, row, requests=row.requests, errors=row.errors, named_at=row.named_at)
    return [row for _, row in sorted(table.items())]


def _sum_up(segment: Segment) -> _Summary:
    """Sum up a segment; keep the result of a sealed one beside it, where this user may write."""
    table: _Table = {}
    summary = _Summary(SUMMARY_VERSION, 0, 0, [])
    decoder = msgspec.json.Decoder(_Line)
    for chunk in read_chunks(segment):
        lines, damaged = decode_lines(decoder, chunk.lines)
        summary.damaged_lines += damaged
        for line in lines:
            if line.name in _FINISHED:
                figures, moment = line.metadata, line.created_at
                if figures.tokens_used is not None:
                    figures.prompt_tokens = figures.tokens_used
                if figures.input_characters is not None:
                    figures.prompt_characters = figures.input_characters
                key = (moment[:10], line.identifier, line.source, figures.feature or "", figures.model or "")
                status = figures.status
                errors = 0 if status is not None and 200 <= status < 300 else 1
                _add(_find_row(table, key), figures, requests=1, errors=errors, named_at=moment)
    summary.rows = list(table.values())
    if not segment.is_open:
        _write_summary(segment, summary)
    return summary


def _find_row(table: _Table, key: tuple[str, str, str, str, str]) -> UsageRow:
    row = table.get(key)
    if row is None:
        row = table[key] = UsageRow(*key)
    return row


def _add(row: UsageRow, part: UsageRow | _Figures, *, requests: int, errors: int, named_at: str) -> None:
    row.requests += requests
    row.errors += errors
    if part.actor_name and named_at >= row.named_at:
        row.actor_name, row.named_at = part.actor_name, named_at
    if (tokens := part.prompt_tokens) is not None:
        row.prompt_tokens = (row.prompt_tokens or 0) + tokens
    if (tokens := part.completion_tokens) is not None:
        row.completion_tokens = (row.completion_tokens or 0) + tokens
    if (characters := part.prompt_characters) is not None:
        row.prompt_characters = (row.prompt_characters or 0) + characters
    if (characters := part.completion_characters) is not None:
        row.completion_characters = (row.completion_characters or 0) + characters


def _read_summary(segment: Segment) -> _Summary | None:
    with suppress(OSError, ValueError):
        summary = msgspec.json.decode(segment.beside(SUMMARY_SUFFIX).read_bytes(), type=_Summary)
        if (summary.version, summary.bytes) == (SUMMARY_VERSION, os.stat(segment.path).st_size):
            return summary
    return None


def _write_summary(segment: Segment, summary: _Summary) -> None:
    path = segment.beside(SUMMARY_SUFFIX)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        summary.bytes = os.stat(segment.path).st_size
        temporary.write_bytes(msgspec.json.encode(summary))
        os.replace(temporary, path)
    except OSError:  # it only saves time
        with suppress(OSError):
            temporary.unlink()
