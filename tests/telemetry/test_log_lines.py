"""The fast renderer of exchanges against the general one, and against a plain one that is written down here."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from cgw.model import Feature
from cgw.telemetry.exchange_lines import MAX_CACHED, MAX_CACHED_CHARACTERS, ExchangeLines
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome
from cgw.telemetry.exchange_text import describe_exchange
from cgw.telemetry.json_lines import REPORTED_ERROR, JsonLines
from cgw.telemetry.log_lines import (
    MAX_MESSAGE_CHARACTERS,
    LogEntry,
    TerminalLines,
    mask_record,
    name_severity,
    shorten,
)
from cgw.telemetry.masking import SecretMask
from tests.support.records import build_record

SECRETS = ("a known value", "123456", "k\"n'own")
VERSION = "1.2.3"

FRAGMENTS = (
    *(
        "/v1/completions/openai",
        "acme",
        "gpt-4o",
        "–",
        "\n",
        "\ud800",
        "ü",
        '"',
        "/?key=",
        "authorization:",
        "[masked]",
    ),
    *("sk-0123456789abcdef", "Bearer abcdefgh", "API", "http://u:p@h", *SECRETS, "x" * MAX_MESSAGE_CHARACTERS),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=3).map("".join)
SIZES = st.integers(0, 2**63)
DURATIONS = st.floats(0, 1e9)
RECORDS = st.builds(
    build_record,
    method=TEXTS,
    path=TEXTS,
    outcome=st.sampled_from(Outcome),
    duration_ms=DURATIONS,
    status=st.none() | st.integers(100, 599),
    protocol=TEXTS,
    actor=st.none() | TEXTS,
    source=st.none() | TEXTS,
    feature=st.sampled_from([None, *(feature.value for feature in Feature)]),
    model=st.none() | TEXTS,
    stream=st.none() | st.booleans(),
    upstream_status=st.none() | st.integers(100, 599),
    upstream_ms=st.none() | DURATIONS,
    first_byte_ms=st.none() | DURATIONS,
    request_bytes=st.none() | SIZES,
    response_bytes=st.none() | SIZES,
    route=st.sampled_from([None, "/v1/completions/openai"]),
    provider=st.none() | st.sampled_from(["openai", "my-server"]),
    is_reused=st.none() | st.booleans(),
    chunks=st.none() | SIZES,
    prompt_tokens=st.none() | SIZES,
    completion_tokens=st.none() | SIZES,
    cache_read_tokens=st.none() | SIZES,
    usage_quality=st.sampled_from([None, "exact"]),
    event_id=st.none() | st.uuids().map(str),
    stale=st.sampled_from([None, True]),
    warning=st.none() | TEXTS,
    remote_ip=st.none() | TEXTS,
    user_agent=st.none() | TEXTS,
    error=st.none() | TEXTS,
)
MOMENTS = st.floats(0, 4e9)


def format_plainly(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def round_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def render_plainly(mask: SecretMask, entry: LogEntry, record: ExchangeRecord) -> bytes:
    """Return the line of an exchange, from dictionaries, with a masked record."""

    def clean(value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    def known(**values: Any) -> dict[str, Any]:
        return {key: clean(value) for key, value in values.items() if value is not None}

    record = mask_record(record, mask)
    message = shorten(mask(describe_exchange(record, has_figures=False)), MAX_MESSAGE_CHARACTERS)
    seconds, first_byte, upstream, overhead = record.measure()
    request = known(
        requestMethod=record.method,
        requestUrl=record.path,
        status=record.status,
        responseSize=None if record.response_bytes is None else str(record.response_bytes),
        userAgent=record.user_agent,
        remoteIp=record.remote_ip,
        latency=f"{seconds:.6f}s",
        protocol=record.protocol,
    )
    exchange = known(
        outcome=record.outcome.value,
        route=record.route,
        actor=record.actor,
        source=record.source,
        feature=record.feature,
        provider=record.provider,
        model=record.model,
        stream=record.stream,
        upstream_status=record.upstream_status,
        duration_ms=round(seconds * 1000, 3),
        first_byte_ms=round_ms(first_byte),
        upstream_ms=round_ms(upstream),
        overhead_ms=round_ms(overhead),
        connection_reused=record.is_reused,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
        chunks=record.chunks,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        cache_read_tokens=record.cache_read_tokens,
        usage_quality=record.usage_quality,
        event_id=record.event_id,
        error=record.error,
        stale=record.stale,
        warning=record.warning,
    )
    fields = {
        "severity": name_severity(entry.level),
        "time": format_plainly(entry.created),
        "message": message.encode("utf-8", "replace").decode(),
        "logger": entry.logger,
        "serviceContext": {"service": "cgw", "version": VERSION},
        "logging.googleapis.com/trace": record.trace.trace_id,
        "logging.googleapis.com/spanId": record.trace.span_id,
        "request_id": record.trace.trace_id,
        "httpRequest": request,
        "exchange": exchange,
    }
    if entry.level >= logging.ERROR:
        context = known(
            method=record.method,
            url=record.path,
            userAgent=record.user_agent,
            responseStatusCode=record.status,
            remoteIp=record.remote_ip,
        )
        fields["@type"] = REPORTED_ERROR
        fields["context"] = {"httpRequest": context, **known(user=record.actor)}
    return msgspec.json.encode(fields) + b"\n"


@given(record=RECORDS, created=MOMENTS, has_secrets=st.booleans())
@example(build_record(duration_ms=0.0005), 0.9999999, True)
@example(build_record(duration_ms=1, response_bytes=123456), 0, True)
def test_fast_and_general_renderer_agree(record: ExchangeRecord, created: float, has_secrets: bool) -> None:
    """Both renderers of an exchange write the same bytes as a plain one, whatever is in the record."""
    mask = SecretMask(SECRETS if has_secrets else ())
    lines = JsonLines(mask, VERSION)
    entry = LogEntry(record.level, created, "cgw.exchange", record)
    plain = render_plainly(mask, entry, record)
    assert lines.render(entry) == plain
    assert lines.render_carefully(entry) == plain


CALLS = st.lists(RECORDS | st.sampled_from([build_record(actor="50 %", path="/%s", response_bytes=5)]), max_size=4)


@given(records=CALLS, started_at=MOMENTS | st.floats(-1e9, 0), has_secrets=st.booleans(), has_project=st.booleans())
@example([build_record(response_bytes=1, user_agent="x" * 2000), build_record(response_bytes=1)], 1.0, True, True)
@example([build_record(response_bytes=1, stale=True, actor="a", error=SECRETS[0])] * 2, 1.0, True, True)
@example([build_record(response_bytes=1, actor=SECRETS[2]), build_record(response_bytes=1, model="")], 1.0, True, False)
@example([build_record(response_bytes=1, duration_ms=0)] * 2, 0.9999999, False, False)
@example(
    [build_record(response_bytes=1, path="/\ud800"), build_record(response_bytes=1, actor="\ud800")], 1, False, False
)
def test_lines_of_a_batch_are_those_of_entries(
    records: list[ExchangeRecord], started_at: float, has_secrets: bool, has_project: bool
) -> None:
    """A batch has the bytes that each record has by itself, with the time of its end, seen before or not."""
    records = [msgspec.structs.replace(record, started_at=started_at + n) for n, record in enumerate(records)]
    mask = SecretMask(SECRETS if has_secrets else ())
    project, labels = ("a-project", {"environment": "50 %"}) if has_project else (None, None)
    lines = JsonLines(mask, VERSION, project_id=project, labels=labels, is_traced=lambda trace: trace.is_wanted)
    single = [lines.render_carefully(LogEntry(one.level, one.ended_at, "cgw.exchange", one)) for one in records]
    for _ in range(2):
        batch = lines.render_exchanges(records)
        for record, expected, line in zip(records, single, batch, strict=True):
            assert line == (None if record.level >= logging.ERROR else expected)


def test_parts_of_lines_are_kept_within_bounds() -> None:
    """However many different callers and paths there are; what may hold a secret, or is long, is never kept."""
    lines = ExchangeLines(
        SecretMask(SECRETS),
        service_context="{}",
        labels=None,
        trace_prefix="",
        is_traced=None,
        render_any=lambda record: b"another\n",
    )
    usual = [build_record(actor=f"{n}", path=f"/{n}", response_bytes=1) for n in range(2 * MAX_CACHED)]
    assert None not in lines.render(usual)
    assert len(lines._shapes) <= MAX_CACHED
    assert len(lines._callers) <= MAX_CACHED
    texts = ("x" * MAX_CACHED_CHARACTERS + "y", *SECRETS, "Bearer abcdefgh")
    fields: list[dict[str, Any]] = [{name: text} for name in ("path", "actor", "user_agent") for text in texts]
    odd = [build_record(response_bytes=1, **field) for field in fields]
    assert lines.render(odd) == [b"another\n"] * len(odd)
    assert not [key for key in (*lines._shapes, *lines._callers) if {*texts} & {*key}]


WORD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "]*)', re.ASCII | re.DOTALL)


@given(record=RECORDS)
def test_the_text_can_be_read_back(record: ExchangeRecord) -> None:
    """Whatever clients and upstreams put into the values: each is found again, none can pass for another, one line."""
    rendered = TerminalLines(SecretMask(), has_colour=False).render(LogEntry(logging.INFO, 0, "x", record)).decode()
    assert rendered.count("\n") == 1
    record = mask_record(record, SecretMask())
    words = WORD.findall(str(record))
    values = {name: json.loads(text) if text[:1] == '"' else text for name, text in words}
    assert len(words) == len(values)
    assert values["outcome"] == record.outcome.value
    assert values["status"] == ("–" if record.status is None else str(record.status))
    assert values["request_id"] == record.trace.trace_id
    assert values.get("upstream_status") == (None if record.upstream_status is None else str(record.upstream_status))
    for name in ("actor", "model", "error", "warning"):
        assert values.get(name) == (getattr(record, name) or None)
    assert values.get("tokens_in") == (None if record.prompt_tokens is None else str(record.prompt_tokens))


@given(created=MOMENTS | st.floats(-1e9, 0) | st.integers(0, 2**31).map(lambda number: number + 0.9999999))
def test_times_are_datetimes(created: float) -> None:
    """A line's time is what datetime makes of it, to the microsecond, before 1970 and around whole seconds, too."""
    line = JsonLines(SecretMask(), VERSION).render(LogEntry(logging.INFO, created, "x", "hello"))
    assert msgspec.json.decode(line)["time"] == format_plainly(created)


@given(text=TEXTS, start=st.integers(0, 50), length=st.integers(0, 50))
def test_no_part_of_a_clean_text_is_masked(text: str, start: int, length: int) -> None:
    """One look at a whole text is enough: where masking cannot change it, it changes no part of it either."""
    mask = SecretMask(SECRETS)
    if not mask.may_change(text):
        part = text[start : start + length]
        assert mask(text) == text
        assert mask(part) == part
