"""Usage in golden streams of every dialect: whole, in windows that are cut anywhere, and broken off anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from cgw.config.kinds import Secret
from cgw.limits.tokens import count_tokens
from cgw.model import BodyWindow, Usage, UsageQuality
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.embeddings.sdk import SdkEmbeddings
from cgw.providers.openai_compatible.settings import OpenAICompatibleSettings
from cgw.providers.registry import PROVIDERS, build_dialects
from cgw.providers.route import FreeRoute
from cgw.wire.final_events import FinalEventScanner
from cgw.wire.messages import RequestHead, ResponseHead
from tests.support.golden_streams import BY_UPSTREAM, Golden
from tests.support.provider_routes import CASES, HELLO, RouteCase

STREAM = ResponseHead(200, [(b"content-type", b"text/event-stream")])

_COMPATIBLE = OpenAICompatibleSettings(api_url="http://a/v1", access_token=Secret("k"), allowed_models=("*",))
_SETTINGS = {provider.name: provider.settings_class(access_token=Secret("k")) for provider in PROVIDERS}
DIALECTS = {
    dialect.path: dialect
    for dialect in build_dialects({**_SETTINGS, "my-server": _COMPATIBLE})
    # The former have no streams; Google's SDK routes, with the model in the path, have tests of their own.
    if not isinstance(dialect, FreeRoute | SdkEmbeddings) and "{model}" not in dialect.path
}


def list_goldens() -> Iterator[object]:
    for name, case in CASES.items():
        for stream, golden in BY_UPSTREAM[case.upstream_path].items():
            yield pytest.param(case, golden, id=f"{name}, {stream}")


EACH_GOLDEN = pytest.mark.parametrize(("case", "golden"), list(list_goldens()))


def prepare(case: RouteCase) -> tuple[Dialect, PreparedRequest]:
    dialect = DIALECTS[case.path]
    body = json.dumps(case.build_body(stream=True)).encode()
    return dialect, dialect.prepare(RequestHead(b"POST", case.path.encode(), ()), body, Caller("a:", case.feature))


def leave_out_prompt(usage: Usage) -> Usage:
    assert usage.prompt_character_count == len(HELLO)
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
    return Usage(**{**fields, "prompt_character_count": None})


def test_every_dialect_has_golden_streams() -> None:
    """No route is without a case, and no API without a text, an error in the middle of it, and several bytes each."""
    assert {case.path for case in CASES.values()} == set(DIALECTS)
    for goldens in BY_UPSTREAM.values():
        assert {"text", "error"} <= set(goldens)
        assert any(not golden.body.isascii() for golden in goldens.values())


@EACH_GOLDEN
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_a_stream_gives_its_usage_wherever_its_window_is_cut(case: RouteCase, golden: Golden, line_end: bytes) -> None:
    """Each stream, with either line end, has the usage that it was made with, at every cut of the window."""
    dialect, request = prepare(case)
    body = golden.body.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    for cut in range(len(body) + 1):
        window = BodyWindow(body[:cut], body[cut:], len(body), True)
        assert leave_out_prompt(dialect.read_usage(request, STREAM, window)) == golden.usage


@EACH_GOLDEN
def test_a_stream_that_breaks_off_anywhere_has_no_wrong_figures(case: RouteCase, golden: Golden) -> None:
    """At every byte: figures are right, smaller or unknown, the quality is partial, and what is charged is bounded."""
    dialect, request = prepare(case)
    whole = dialect.read_usage(request, STREAM, BodyWindow(golden.body, b"", len(golden.body), True))
    for length in range(len(golden.body)):
        usage = dialect.read_usage(request, STREAM, BodyWindow(golden.body[:length], b"", length, False))
        assert usage.quality is UsageQuality.PARTIAL
        for name in ("prompt_token_count", "completion_token_count", "cache_read_token_count"):
            figure, full = getattr(usage, name), getattr(whole, name)
            assert figure is None or (full is not None and figure <= full)
        characters, full_characters = usage.completion_character_count, whole.completion_character_count
        assert characters is not None
        assert full_characters is not None
        assert characters <= full_characters
        # An estimate of what arrived: the prompt, and the text that was there.
        most = max(len(HELLO), usage.prompt_quota_token_count or usage.prompt_token_count or 0)
        assert count_tokens(usage, length) <= most + (usage.completion_token_count or full_characters)


@EACH_GOLDEN
def test_a_stream_ends_by_its_dialects_marker(case: RouteCase, golden: Golden) -> None:
    """The marker is found at the very end, wherever the stream is cut; a stream that ends by an error has none."""
    dialect, _ = prepare(case)
    has_marker = golden.body.rstrip().endswith((b"[DONE]", b'{"type":"message_stop"}')) or re.search(
        rb"\nevent: response\.(completed|incomplete|failed)\n", golden.body
    )
    assert bool(dialect.final_markers) == (case.path != "/v1/completions/google")
    if not dialect.final_markers:
        return
    for cut in range(len(golden.body)):
        scanner = FinalEventScanner(dialect.final_markers)
        scanner.feed(golden.body[:cut])
        # The first half of a CRLF ends a line, too.
        assert not scanner.is_final or golden.body[cut:] == b"\n"
        scanner.feed(golden.body[cut:])
        assert scanner.is_final == bool(has_marker)


def test_a_long_stream_that_breaks_off_is_estimated_by_its_text() -> None:
    """Where the middle of a stream is missing and so are its figures, the text's share of the bytes is charged."""
    case = CASES["openai"]
    dialect, request = prepare(case)
    chunk = b'data: {"id":"c_1","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
    body = chunk * 5000
    usage = dialect.read_usage(request, STREAM, BodyWindow(body[:32768], body[-32768:], len(body), False))
    assert usage.completion_character_count is not None
    assert 0.95 * 25_000 < usage.completion_character_count <= 25_000
    assert (usage.quality, usage.completion_token_count) == (UsageQuality.PARTIAL, None)
    assert count_tokens(usage, len(body)) < 25_000 / 4 + 10


@pytest.mark.parametrize("size", [5_000, 20_000])
def test_a_large_last_chunk_of_gemini_is_read(size: int) -> None:
    """The chunk with the figures may hold the sources of a search: it is found in the whole window."""
    case = CASES["google"]
    dialect, request = prepare(case)
    counts = {"promptTokenCount": 12, "candidatesTokenCount": 9}
    first = b'data: {"candidates": [{"content": {"parts": [{"text": "word"}]}}]}\r\n\r\n'
    candidate = {"finishReason": "STOP", "groundingMetadata": {"chunk": "x" * size}}
    last = json.dumps({"candidates": [candidate], "usageMetadata": counts}).encode()
    body = first * 1000 + b"data: " + last + b"\r\n\r\n"
    usage = dialect.read_usage(request, STREAM, BodyWindow(body[:32768], body[-32768:], len(body), True))
    assert (usage.prompt_token_count, usage.completion_token_count, usage.quality) == (12, 9, UsageQuality.EXACT)
