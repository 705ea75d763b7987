"""Write ``docs/events.md`` from the declarations of all kinds of event: ``python -m docs.generate_events``."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cgw.events import records
from cgw.events.kinds import KINDS, EventKind, Key, list_keys
from cgw.events.lines import EventLine, render_line
from cgw.model import Actor, Feature, Usage, UsageEvent, UsageQuality

PAGE = Path(__file__).with_name("events.md")

INTRODUCTION = """\
# Usage events

Each event is one JSON object on a line of its own: in `events/` of the data directory, and in every sink that it is
shipped to. This page lists every kind and every key, for analysts. It is generated from their declarations
(`cgw/events/kinds.py`) by `python -m docs.generate_events`, and a test holds it up to date.

- **An event may arrive twice**, for example when a sink's answer was lost: count distinct `id`s.
- **A key without a value is left out**; there is no null, and no −1. Sum what is there.
- The names are those of Cody Gateway, so that queries go on working. Keys in *italics* are cgw's own.
- No event holds a key or a token. Prompts are in events only where flagging says so.
- Metadata that would make a line longer than 1 MiB is `{"omitted_bytes": …}` instead.
- Events of earlier versions lack keys that came later: read all of them as optional.
- The reference's early `CodeCompletionLogged` is not recorded: it held the prompt of every code completion.
"""

_TYPES = {str: "text", int: "integer", float: "number", bool: "true or false"}

_ACTOR = Actor(id="acme", name="Acme Inc.", source="static", access_enabled=True)
_TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
_EXCHANGE: dict[str, Any] = {
    "trace_id": _TRACE_ID,
    "outcome": "completed",
    "started_at": 1795600799.251,
    "ended_at": 1795600801.874,
    "request_bytes": 1834,
    "response_bytes": 20_716,
    "response_chunks": 112,
    "time_to_first_byte_ms": 411.386,
    "overhead_ms": 0.412,
}
_USER: dict[str, Any] = {"sg_actor_id": "7", "sg_actor_anonymous_uid": None}


def build_examples() -> list[UsageEvent]:
    """Return an event of each kind, built as the gateway builds it, in the order of :data:`KINDS`."""
    return [
        records.completions_finished(
            _ACTOR,
            feature=Feature.CHAT_COMPLETIONS,
            model="anthropic/claude-3-5-sonnet-20240620",
            provider="anthropic",
            usage=Usage(1210, 342, 4711, 1288, UsageQuality.EXACT, cache_read_token_count=1024),
            resolved_status=200,
            upstream_status=200,
            upstream_request_duration_ms=2620,
            metadata={"stream": True, "max_tokens": 4000},
            **_USER,
            exchange=records.build_exchanged(**_EXCHANGE),
        ),
        records.embeddings_finished(
            _ACTOR,
            model="sourcegraph/st-multi-qa-mpnet-base-dot-v1",
            provider="sourcegraph",
            input_character_count=1702,
            tokens_used=431,
            quality=UsageQuality.EXACT,
            resolved_status=200,
            upstream_status=200,
            upstream_request_duration_ms=84,
            metadata={"batch_size": 3},
            exchange=records.build_exchanged(**_EXCHANGE | {"response_chunks": None}),
        ),
        records.rate_limited(
            _ACTOR,
            Feature.CODE_COMPLETIONS,
            error="rate limit exceeded",
            cause="quota",
            limit=1000,
            unit="requests",
            window_ms=86_400_000,
            retry_after_ms=86_400,
            trace_id=_TRACE_ID,
        ),
        records.request_blocked(
            _ACTOR,
            Feature.CHAT_COMPLETIONS,
            metadata={
                "flagged": True,
                "flagging_result": {"reason": ["blocked_phrase"], "should_block": True, "blocked_phrase": "never"},
                "model": "anthropic/claude-3-haiku-20240307",
                "provider": "anthropic",
                "prompt_token_count": 812,
                "max_tokens_to_sample": 1000,
            },
            **_USER,
            trace_id=_TRACE_ID,
        ),
        records.unauthorized("dotcom-user", "token expired", trace_id=_TRACE_ID),
        records.access_denied(_ACTOR, trace_id=_TRACE_ID),
    ]


def build_page() -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION, "\n## The line\n\n", _build_table(EventLine)]
    for kind, example in zip(KINDS, build_examples(), strict=True):
        parts.append(_build_section(kind, example))
    return "".join(parts)


def _build_section(kind: EventKind, example: UsageEvent) -> str:
    fixed = msgspec.structs.replace(
        example, id="019e0f6e-9d6e-7c3a-8a51-6f2b1c0d4e5f", created_at=datetime(2026, 11, 25, 12, 0, 1, 874210, UTC)
    )
    line = msgspec.json.format(render_line(fixed), indent=2).decode()
    return f"\n## {kind.name}\n\n{kind.when}\n\n{_build_table(kind.metadata)}\n```json\n{line}\n```\n"


def _build_table(declaration: type[Any]) -> str:
    rows = "".join(_build_rows(declaration))
    return f"| key | type | meaning | absent when |\n|---|---|---|---|\n{rows}"


def _build_rows(declaration: type[Any], outer: str = "") -> Iterator[str]:
    for name, (key_type, key) in list_keys(declaration).items():
        is_object = typing.is_typeddict(key_type)
        yield _build_row(f"{outer}`{name}`", "object" if is_object else _name_type(key_type, key), key)
        if is_object:
            yield from _build_rows(key_type, f"{outer}`{name}` → ")


def _build_row(name: str, type_name: str, key: Key) -> str:
    meaning = key.meaning.replace("|", r"\|")
    return f"| {f'*{name}*' if key.is_own else name} | {type_name} | {meaning} | {key.absent or 'never'} |\n"


def _name_type(key_type: Any, key: Key) -> str:
    if typing.get_origin(key_type) is list:
        return "list of texts"
    if typing.get_origin(key_type) is dict:
        return "object"
    return f"{_TYPES[key_type]}, {key.unit}" if key.unit else _TYPES[key_type]


if __name__ == "__main__":
    PAGE.write_text(build_page(), "utf-8")
