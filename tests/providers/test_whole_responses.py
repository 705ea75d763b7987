"""Usage in responses that are not streamed, of every dialect: whole, in windows, with odd and hostile contents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.model import BodyWindow, Usage, UsageQuality
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.wire.messages import RequestHead, ResponseHead
from tests.providers.test_golden_streams import DIALECTS
from tests.support.provider_routes import CASES, HELLO, RouteCase

JSON = ResponseHead(200, [(b"content-type", b"application/json; charset=utf-8")])
STREAM = ResponseHead(200, [(b"content-type", b"text/event-stream")])
EXACT, ESTIMATED = UsageQuality.EXACT, UsageQuality.ESTIMATED

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def build_response(case: RouteCase, text: str) -> dict[str, Any]:
    """Return a response with ``text``, and 12 and 34 tokens, in the form of the case's API."""
    counts = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    if case.upstream_path == "/v1/complete":
        return {"type": "completion", "completion": text, "stop_reason": "stop_sequence", "model": "m"}
    if case.upstream_path == "/v1/messages":
        content = [{"type": "text", "text": text}]
        return {"type": "message", "content": content, "usage": {"input_tokens": 12, "output_tokens": 34}}
    if "/responses" in case.upstream_path:
        item = {"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": text}]}
        tools = [{"type": "function", "parameters": {"properties": {"usage": {"type": "object"}}}}]
        return {
            "id": "resp_1",
            "output": [item],
            "tools": tools,
            "usage": {"input_tokens": 12, "output_tokens": 34, "total_tokens": 46},
            "metadata": {"usage": "x"},
        }
    if case.path == "/v1/completions/google":
        metadata = {"promptTokenCount": 12, "candidatesTokenCount": 30, "thoughtsTokenCount": 4, "totalTokenCount": 46}
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": metadata, "modelVersion": "m", "responseId": "r"}
    if case.upstream_path.endswith("/chat/completions"):
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    else:
        choice = {"index": 0, "text": text}
    return {"choices": [choice], "usage": counts, "system_fingerprint": "f"}


def prepare(case: RouteCase, *, stream: bool = False) -> tuple[Dialect, PreparedRequest]:
    dialect = DIALECTS[case.path]
    body = json.dumps(case.build_body(stream=stream)).encode()
    return dialect, dialect.prepare(RequestHead(b"POST", case.path.encode(), ()), body, Caller("a:", case.feature))


@EACH_CASE
def test_a_whole_response_gives_its_usage(case: RouteCase) -> None:
    """Wherever its window is cut, a response has its figures and the length of its text."""
    dialect, request = prepare(case)
    body = json.dumps(build_response(case, "Grüße 👋"), ensure_ascii=False).encode()
    expected = Usage(12, 34, len(HELLO), 7, EXACT)
    if case.upstream_path == "/v1/complete":
        expected = Usage(None, None, len(HELLO), 7, ESTIMATED)
    for cut in range(len(body) + 1):
        assert dialect.read_usage(request, JSON, BodyWindow(body[:cut], body[cut:], len(body), True)) == expected


@EACH_CASE
def test_a_large_response_gives_the_figures_at_its_end(case: RouteCase) -> None:
    """With the middle dropped the figures are exact, and what looks like figures in the text is not taken for them."""
    dialect, request = prepare(case)
    fake = '"usage": {"input_tokens": 9}, "usageMetadata": {"promptTokenCount": 9}}' * 100
    body = json.dumps(build_response(case, fake)).encode()
    usage = dialect.read_usage(request, JSON, BodyWindow(body[:50], body[-600:], len(body), True))
    if case.upstream_path == "/v1/complete":
        assert usage == Usage(None, None, len(HELLO), None, ESTIMATED)
    else:
        assert usage == Usage(12, 34, len(HELLO), None, EXACT)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "usage",
                    "usageMetadata",
                    "candidates",
                    "content",
                    "parts",
                    "text",
                    "functionCall",
                    "args",
                    "choices",
                    "message",
                    "delta",
                    "completion",
                    "promptTokenCount",
                    "prompt_tokens",
                    "type",
                    "input",
                    "promptFeedback",
                    "tool_calls",
                    "function",
                    "arguments",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@EACH_CASE
@settings(max_examples=60)
@given(value=values, is_complete=st.booleans(), stream=st.booleans(), size=st.integers(0, 300))
def test_no_response_makes_the_reader_fail(
    case: RouteCase, value: object, is_complete: bool, stream: bool, size: int
) -> None:
    """Whatever the upstream sends, there is a usage, and no figure is negative."""
    dialect, request = prepare(case, stream=stream)
    data = json.dumps(value).encode()
    body = b"data: " + data + b"\n\n" + data if stream else data
    window = BodyWindow(body[:size], body[size : size + 100], len(body), is_complete)
    usage = dialect.read_usage(request, STREAM if stream else JSON, window)
    for figure in (usage.prompt_token_count, usage.completion_token_count, usage.completion_character_count):
        assert figure is None or figure >= 0
