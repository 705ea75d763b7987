"""``/-/log-level``: the level of the log, read and changed while the process runs."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

from cgw.control.bodies import receive_body
from cgw.control.responses import JSON, ControlResponse
from cgw.errors import Refusal
from cgw.telemetry.log_level import LEVELS, MAX_SECONDS, LogLevel
from cgw.transport.asgi_host import Receive
from cgw.wire.messages import RequestHead

PATH = "/-/log-level"

MAX_BODY_BYTES = 1024

_FIELDS = ("level", "seconds")


async def answer_log_level(log_level: LogLevel, head: RequestHead, receive: Receive) -> ControlResponse:
    """Change the level by a POST, and return the one in force.

    ``level`` and ``seconds`` are in the query or, as a form, in the body. Raises :exc:`~cgw.errors.Refusal`: 400 that
    names the parameter, 413.
    """
    if head.method == b"POST":
        query = head.target.partition(b"?")[2]
        body = await receive_body(head, receive, MAX_BODY_BYTES)
        level, seconds = _parse_change([*_parse_form("query", query), *_parse_form("body", body)])
        log_level.set(level, seconds)
    state: dict[str, object] = {"level": log_level.name, "configured": log_level.configured_name}
    if (left := log_level.seconds_left) is not None:
        state["seconds_left"] = round(left, 1)
    return ControlResponse(200, JSON, json.dumps(state).encode("ascii"))


def _parse_form(part: str, data: bytes) -> list[tuple[str, str]]:
    try:
        # A final line end is what `curl -d @file` and echo leave.
        return parse_qsl(data.strip().decode("utf-8"), keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    except ValueError:
        if not data.strip():
            return []
        raise Refusal(400, f"the {part} must be a form: level=DEBUG&seconds=600", code="invalid_form") from None


def _parse_change(fields: list[tuple[str, str]]) -> tuple[str, float | None]:
    values = dict(fields)
    for name in values:
        if name not in _FIELDS:
            raise _refuse(f"{name[:40]!r} is not a parameter: set level and, if you want, seconds")
    if len(values) != len(fields):
        raise _refuse("level and seconds may be given once each, in the query or in the body")
    if "level" not in values:
        raise _refuse(f"level is missing: set it to {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    level = values["level"].upper()
    if level not in LEVELS:
        raise _refuse(f"level is {values['level'][:40]!r}, and must be {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    return level, _parse_seconds(values.get("seconds"))


def _parse_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    # Also refuses nan, which compares as false.
    if not 0 < seconds <= MAX_SECONDS:
        raise _refuse(f"seconds is {text[:40]!r}, and must be a number above 0, at most {MAX_SECONDS:.0f}")
    return seconds


def _refuse(text: str) -> Refusal:
    return Refusal(400, text, code="invalid_parameter")
