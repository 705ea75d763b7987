"""Usage from the windows of responses: both APIs, whole bodies and windows, streamed or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgw.config.kinds import Secret
from cgw.model import BodyWindow, Feature, Usage, UsageQuality
from cgw.providers.anthropic import usage as anthropic_usage
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.google import usage as google_usage
from cgw.providers.openai import usage as openai_usage
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.registry import build_dialects
from cgw.providers.usage_reading import PartsDecoder, decode_json
from cgw.wire.messages import RequestHead, ResponseHead

EXACT, PARTIAL, ESTIMATED = UsageQuality.EXACT, UsageQuality.PARTIAL, UsageQuality.ESTIMATED
JSON = ResponseHead(200, [(b"content-type", b"application/json")])
STREAM = ResponseHead(200, [(b"content-type", b"text/event-stream; charset=utf-8")])

DIALECTS = {
    dialect.path: dialect
    for dialect in build_dialects(
        {
            "anthropic": AnthropicSettings(access_token=Secret("KEY")),
            "openai": OpenAISettings(access_token=Secret("KEY")),
        }
    )
}
ANTHROPIC, ANTHROPIC_SDK = DIALECTS["/v1/completions/anthropic-messages"], DIALECTS["/anthropic/v1/messages"]
OPENAI, OPENAI_SDK = DIALECTS["/v1/completions/openai"], DIALECTS["/openai/v1/chat/completions"]


def request_of(dialect: Dialect, *, stream: bool = False) -> PreparedRequest:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}).encode()
    head = RequestHead(b"POST", dialect.path.encode(), [])
    return dialect.prepare(head, body, Caller("acme:", Feature.CHAT_COMPLETIONS))


def whole(body: bytes, *, is_complete: bool = True, cut: int = 7) -> BodyWindow:
    return BodyWindow(body[:cut], body[cut:], len(body), is_complete)


def windows(body: bytes, head_bytes: int, tail_bytes: int, *, is_complete: bool = True) -> BodyWindow:
    assert head_bytes + tail_bytes < len(body)
    return BodyWindow(body[:head_bytes], body[-tail_bytes:], len(body), is_complete)


def event(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()


def delta(text: str) -> bytes:
    return event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})


START = event({"type": "message_start", "message": {"usage": {"input_tokens": 12, "output_tokens": 1}}})
STOP = event({"type": "message_stop"})


def message_delta(**usage: object) -> bytes:
    return event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage})


def chunk(text: str | None = None, **extra: object) -> bytes:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices, **extra}).encode() + b"\n\n"


OPENAI_USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
DONE = b"data: [DONE]\n\n"


def message(text: str = "héllo", **usage: object) -> bytes:
    content = [{"type": "text", "text": text}, {"type": "tool_use", "input": {"usage": {"input_tokens": 9}}}]
    return json.dumps({"type": "message", "content": content, "usage": usage}, ensure_ascii=False).encode()


def completion(text: str = "héllo", **extra: object) -> bytes:
    choices = [{"message": {"content": text}}, {"message": {"content": None, "tool_calls": []}}]
    return json.dumps({"choices": choices, **extra}).encode()


def read(dialect: Dialect, response: ResponseHead, body: BodyWindow) -> Usage:
    return dialect.read_usage(request_of(dialect, stream=response is STREAM), response, body)


@pytest.mark.parametrize("dialect", [ANTHROPIC, ANTHROPIC_SDK])
def test_a_message_gives_its_usage(dialect: Dialect) -> None:
    """A whole message gives exact tokens, also those of the cache, and the length of its text and its tools' input."""
    body = whole(message(input_tokens=12, output_tokens=34, cache_read_input_tokens=5))
    usage = Usage(12, 34, 5, 33, EXACT, cache_read_token_count=5, prompt_quota_token_count=13)
    assert read(dialect, JSON, body) == usage


@pytest.mark.parametrize("dialect", [OPENAI, OPENAI_SDK])
def test_a_completion_gives_its_usage(dialect: Dialect) -> None:
    """A whole completion gives exact tokens and the length of its text."""
    assert read(dialect, JSON, whole(completion(usage=OPENAI_USAGE))) == Usage(12, 34, 5, 5, EXACT)


@pytest.mark.parametrize("dialect", [ANTHROPIC, ANTHROPIC_SDK])
def test_a_message_stream_gives_its_usage(dialect: Dialect) -> None:
    """The input tokens of the start, the output tokens of the last delta, and the text of all deltas count."""
    body = START + delta("hé") + message_delta(output_tokens=3) + delta("llo") + message_delta(output_tokens=34) + STOP
    assert read(dialect, STREAM, whole(body)) == Usage(12, 34, 5, 5, EXACT)


@pytest.mark.parametrize("dialect", [OPENAI, OPENAI_SDK])
def test_a_completion_stream_gives_its_usage(dialect: Dialect) -> None:
    """The chunk with usage and the text of all deltas count; chunks with a null usage do not matter."""
    body = chunk("hé", usage=None) + chunk("llo", usage=None) + chunk(usage=OPENAI_USAGE) + DONE
    assert read(dialect, STREAM, whole(body)) == Usage(12, 34, 5, 5, EXACT)


def test_a_prompt_that_grew_is_counted_by_the_last_delta() -> None:
    """Server tools can make the prompt grow: the larger of the figures is the final one."""
    body = START + message_delta(input_tokens=500, output_tokens=34) + STOP
    assert read(ANTHROPIC, STREAM, whole(body)).prompt_token_count == 500
    body = START + message_delta(input_tokens=0, output_tokens=34) + STOP
    assert read(ANTHROPIC, STREAM, whole(body)).prompt_token_count == 12


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (ANTHROPIC, message("x" * 900, input_tokens=12, output_tokens=34)),
        (OPENAI, completion("x" * 900, usage=OPENAI_USAGE, extra="z")),
    ],
)
def test_tokens_of_a_large_response_are_read_from_its_end(dialect: Dialect, body: bytes) -> None:
    """With the middle dropped the tokens are exact, and the length of the text is unknown."""
    assert read(dialect, JSON, windows(body, 50, 200)) == Usage(12, 34, 5, None, EXACT)


@pytest.mark.parametrize(
    "end",
    [
        b'"tool": {"usage": {"input_tokens": 1, "output_tokens": 1}}}',
        b'"tools": [{"usage": {"input_tokens": 1, "output_tokens": 1}}]}',
        b'"usage": {"input_tokens": 1, "output_tok',
        b'"usage": [1]}',
        b'"text": "usage"}',
    ],
)
def test_a_nested_usage_is_not_taken_for_the_responses_own(end: bytes) -> None:
    """In a window, ``usage`` counts only if it and everything after it is the end of the outermost object."""
    body = b'{"content": "' + b"x" * 900 + b'", ' + end
    assert read(ANTHROPIC, JSON, windows(body, 50, 200)) == Usage(None, None, 5, None, ESTIMATED)


def test_a_quoted_usage_is_not_taken_for_the_responses_own() -> None:
    """Text that looks like usage is skipped, and the real usage before it is found."""
    body = json.dumps(
        {"choices": "x" * 900, "usage": OPENAI_USAGE, "fingerprint": '"usage": {"prompt_tokens": 1}}', "last": "usage"}
    ).encode()
    assert read(OPENAI, JSON, windows(body, 50, 250)) == Usage(12, 34, 5, None, EXACT)


def test_tokens_of_a_large_stream_are_read_from_both_ends() -> None:
    """With the middle dropped and both windows cut inside a frame, tokens are exact and the text's length unknown."""
    body = START + delta("hello") * 50 + message_delta(output_tokens=34) + STOP
    assert read(ANTHROPIC, STREAM, windows(body, 300, 300)) == Usage(12, 34, 5, None, EXACT)
    body = chunk("hello") * 50 + chunk(usage=OPENAI_USAGE) + DONE
    assert read(OPENAI, STREAM, windows(body, 300, 300)) == Usage(12, 34, 5, None, EXACT)


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        (ANTHROPIC, START + delta("hello") + delta("x")[:-1], Usage(12, None, 5, 5, PARTIAL)),
        (ANTHROPIC, START + delta("hello") + message_delta(output_tokens=34), Usage(12, 34, 5, 5, PARTIAL)),
        (ANTHROPIC, START[:30], Usage(None, None, 5, 0, PARTIAL)),
        (OPENAI, chunk("hello"), Usage(None, None, 5, 5, PARTIAL)),
        (OPENAI, b"", Usage(None, None, 5, 0, PARTIAL)),
    ],
)
def test_a_stream_that_broke_off_is_partial(dialect: Dialect, body: bytes, expected: Usage) -> None:
    """The part that arrived is read; the first output tokens of a message are not taken for its total."""
    assert read(dialect, STREAM, whole(body, is_complete=False)) == expected


def test_a_stream_that_ended_without_its_marker_is_partial() -> None:
    """A complete body without the end marker does not prove that the figures are final."""
    error = event({"type": "error", "error": {"type": "overloaded_error"}})
    assert read(ANTHROPIC, STREAM, whole(START + error)) == Usage(12, None, 5, 0, PARTIAL)
    assert read(OPENAI, STREAM, whole(chunk("hello", usage=OPENAI_USAGE))) == Usage(12, 34, 5, 5, PARTIAL)


def test_a_response_without_figures_is_estimated() -> None:
    """OpenAI streams without ``include_usage`` hold no figures; the length of the text is known."""
    assert read(OPENAI, STREAM, whole(chunk("hello") + DONE)) == Usage(None, None, 5, 5, ESTIMATED)
    assert read(OPENAI, JSON, whole(completion())) == Usage(None, None, 5, 5, ESTIMATED)


@pytest.mark.parametrize("figure", [-1, True, 1.5, "12", None, 2**53, 10**40])
def test_odd_figures_are_unknown(figure: object) -> None:
    """Only integers that are plausible and not negative count."""
    usage = read(ANTHROPIC, JSON, whole(message(input_tokens=figure, output_tokens=34)))
    assert usage == Usage(None, 34, 5, 33, PARTIAL)


@pytest.mark.parametrize("dialect", [ANTHROPIC, OPENAI])
@pytest.mark.parametrize("status", [100, 301, 400, 429, 500, 529])
def test_responses_without_success_have_no_figures(dialect: Dialect, status: int) -> None:
    """For responses that are not 2xx, only the prompt's length is known."""
    body = whole(message(input_tokens=1, output_tokens=1))
    assert read(dialect, ResponseHead(status, JSON.headers), body) == Usage(prompt_character_count=5)


@pytest.mark.parametrize(("encoding", "is_known"), [(b"gzip", False), (b"identity", True), (b"Identity ", True)])
def test_an_encoded_response_has_no_figures(encoding: bytes, is_known: bool) -> None:
    """A body that the upstream compressed, although it was asked not to, is not read."""
    response = ResponseHead(200, [*JSON.headers, (b"content-encoding", encoding)])
    usage = read(OPENAI, response, whole(completion(usage=OPENAI_USAGE)))
    assert usage == (Usage(12, 34, 5, 5, EXACT) if is_known else Usage(prompt_character_count=5))


def test_the_response_decides_whether_it_is_a_stream() -> None:
    """A JSON answer to a streaming request is read as JSON; without a content type the request decides."""
    streaming = request_of(OPENAI, stream=True)
    body = whole(completion(usage=OPENAI_USAGE))
    assert OPENAI.read_usage(streaming, JSON, body) == Usage(12, 34, 5, 5, EXACT)
    stream = whole(chunk("hello", usage=OPENAI_USAGE) + DONE)
    assert OPENAI.read_usage(streaming, ResponseHead(200, []), stream) == Usage(12, 34, 5, 5, EXACT)


RECORDINGS = {
    ANTHROPIC.path: START + delta("héllo") * 3 + message_delta(output_tokens=34) + STOP,
    OPENAI.path: chunk("héllo") * 3 + chunk(usage=OPENAI_USAGE) + DONE,
}


@pytest.mark.parametrize("dialect", [ANTHROPIC, OPENAI])
@pytest.mark.parametrize("change", [lambda body: body, lambda body: body.replace(b"\n", b"\r\n")], ids=["lf", "crlf"])
def test_where_windows_are_cut_does_not_change_the_usage(dialect: Dialect, change: Callable[[bytes], bytes]) -> None:
    """A stream that is wholly in its windows reads the same, wherever the first one ends."""
    body = change(RECORDINGS[dialect.path])
    expected = read(dialect, STREAM, whole(body))
    assert expected.quality is EXACT
    assert {read(dialect, STREAM, whole(body, cut=cut)) for cut in range(len(body) + 1)} == {expected}


@pytest.mark.parametrize("dialect", [ANTHROPIC, OPENAI])
def test_a_stream_cut_anywhere_gives_no_wrong_figures(dialect: Dialect) -> None:
    """Wherever a stream breaks off, figures are correct or unknown, and the quality is partial."""
    body = RECORDINGS[dialect.path]
    full = read(dialect, STREAM, whole(body))
    for length in range(len(body)):
        usage = read(dialect, STREAM, whole(body[:length], is_complete=False))
        assert usage.quality is PARTIAL
        assert usage.prompt_token_count in (None, full.prompt_token_count)
        assert usage.completion_token_count in (None, full.completion_token_count)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "usage", "message", "delta", "choices", "content", "text", "input_tokens"]), inner
        )
    ),
    max_leaves=12,
)
kinds = st.sampled_from(["message_start", "message_delta", "content_block_delta", "message_stop"])
frames = st.tuples(kinds, json_values).map(
    lambda pair: b"data: " + json.dumps(pair[1] | {"type": pair[0]} if isinstance(pair[1], dict) else pair[1]).encode()
)
bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(frames).map(lambda items: b"\n\n".join(items) + b"\n\n")
    | st.integers(1, 20_000).map(lambda depth: b'{"usage":' * depth)
)


@given(bodies, st.integers(0, 40), st.integers(0, 40), st.booleans(), st.sampled_from([JSON, STREAM]))
def test_no_response_makes_the_reader_raise(
    body: bytes, head_bytes: int, tail_bytes: int, is_complete: bool, response: ResponseHead
) -> None:
    """Whatever an upstream sent, each figure is unknown or not negative."""
    head = body[:head_bytes]
    tail = body[len(head) :][-tail_bytes:] if tail_bytes else body[len(head) :]
    for dialect in (ANTHROPIC, OPENAI):
        usage = read(dialect, response, BodyWindow(head, tail, len(body), is_complete))
        assert all(
            figure is None or figure >= 0
            for figure in (usage.prompt_token_count, usage.completion_token_count, usage.completion_character_count)
        )


figures = st.sampled_from([0, 5, 2**53 - 1, 2**53, -1, 1.0, True, None, "5", 10**30])
usages = st.none() | st.dictionaries(
    st.sampled_from(
        ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "promptTokenCount", "other"]
    ),
    figures,
)
texts: st.SearchStrategy[Any] = st.none() | st.text(max_size=3) | st.just(5) | st.just({})
text_objects: st.SearchStrategy[Any] = (
    st.none() | st.just([]) | st.dictionaries(st.sampled_from(["content", "text", "other"]), texts)
)
choices: st.SearchStrategy[Any] = (
    st.none() | st.just({}) | st.dictionaries(st.sampled_from(["message", "delta", "index"]), text_objects)
)
gemini_parts = st.fixed_dictionaries(
    {}, optional={"text": texts, "functionCall": st.none() | st.dictionaries(st.just("args"), json_values)}
)
gemini_contents = st.none() | st.fixed_dictionaries(
    {}, optional={"parts": st.lists(gemini_parts | st.just("text"), max_size=2) | gemini_parts}
)
responses = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message_start", "message_delta", "content_block_delta", 5, None]),
        "choices": st.lists(choices, max_size=2) | st.none(),
        "content": st.lists(text_objects, max_size=2) | st.just("text"),
        "delta": text_objects,
        "message": st.none() | st.fixed_dictionaries({}, optional={"usage": usages, "content": texts}),
        "usage": usages | st.just([]) | st.just(5),
        "usageMetadata": usages | st.just([]) | st.just(5),
        "candidates": st.lists(
            st.fixed_dictionaries({}, optional={"content": gemini_contents, "finishReason": texts}) | st.none(),
            max_size=2,
        )
        | st.none(),
        "other": json_values,
    },
)


@settings(max_examples=1000)
@given(responses)
def test_both_ways_to_take_the_parts_of_an_object_agree(value: dict[str, Any]) -> None:
    """What the decoder takes from the bytes is what is taken from the decoded object."""
    data = json.dumps(value).encode()
    whole_object = decode_json(data)
    decoders: list[PartsDecoder[Any]] = [
        openai_usage.COMPLETIONS,
        anthropic_usage.MESSAGES,
        anthropic_usage.EVENTS,
        google_usage.RESPONSES,
    ]
    for decoder in decoders:
        if whole_object is not None:  # NaN
            # As text: 1, 1.0 and True are equal.
            assert repr(decoder.decode(data)) == repr(decoder.take_parts(whole_object))


CONTENTS = responses.map(json.dumps).map(str.encode) | st.sampled_from(
    [b"", b"[DONE]", b"[]", b"{} {}", b"{", b" {}\n"]
)


@given(st.lists(CONTENTS, max_size=5))
@example([b"", b"{} {}"])
@example([b'{"usage":', b"{}} {}"])
@example([b"{}\n{}", b'{"usage":null,', b'"choices":[]}'])
@example([b"{}\n{}", b"{}", b""])
def test_a_stream_is_decoded_at_once_as_one_by_one(contents: list[bytes]) -> None:
    """The contents of a stream give the same parts in one call as each by itself; what is no object is left out."""
    for decoder in (openai_usage.COMPLETIONS, anthropic_usage.EVENTS, google_usage.RESPONSES):
        one_by_one = [decoder.decode(data) for data in contents]
        assert repr(decoder.decode_all(contents)) == repr([parts for parts in one_by_one if parts is not None])
