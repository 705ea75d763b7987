"""Anthropic's Text Completions API on the reference's route."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cgw.errors import Refusal
from cgw.model import BodyWindow
from cgw.providers.anthropic.complete import read_completion, read_completion_stream
from cgw.providers.dialect import PreparedRequest
from cgw.wire.messages import Origin

PATH = "/v1/completions/anthropic"
BODY = {"model": "claude-a", "prompt": "hello", "max_tokens_to_sample": 100}

Prepare = Callable[..., PreparedRequest]


def sent(prepared: PreparedRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepared.upstream.body)
    return body


def test_the_request_is_rewritten_for_the_upstream(prepare: Prepare) -> None:
    """The model loses its prefix, the user is the gateway's, unknown fields are dropped (§9.4)."""
    fields = {"stop_sequences": ["a"], "stream": True, "temperature": 0.5, "top_k": 3, "top_p": 1}
    body = {**BODY, **fields, "model": "anthropic/claude-a", "metadata": {"user_id": "me", "a": 1}, "junk": 1}
    prepared = prepare(PATH, body)
    assert sent(prepared) == {**BODY, **fields, "metadata": {"user_id": "acme:7"}}
    assert (prepared.model, prepared.is_stream) == ("anthropic/claude-a", True)
    assert prepared.metadata == {"stream": True, "max_tokens_to_sample": 100}
    assert (prepared.prompt_character_count, prepared.max_completion_tokens) == (5, 100)


def test_the_version_is_the_one_that_clients_decode(prepare: Prepare) -> None:
    """The key, the version of 2023-01-01 and no-cache are sent, and nothing of the client's."""
    headers = [(b"x-api-key", b"client"), (b"anthropic-version", b"2023-06-01"), (b"anthropic-beta", b"a")]
    upstream = prepare(PATH, BODY, headers=headers).upstream
    assert (upstream.origin, upstream.target) == (Origin("https", "anthropic.test", 443), b"/base/v1/complete")
    fields = dict(upstream.headers)
    assert fields[b"x-api-key"] == b"KEY-anthropic"
    assert (fields[b"anthropic-version"], fields[b"cache-control"]) == (b"2023-01-01", b"no-cache")
    assert b"anthropic-beta" not in fields


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": None}, "prompt", 'request body must contain "prompt" field'),
        ({"prompt": ""}, "prompt", 'request body must contain "prompt" field'),
        ({"prompt": ["a"]}, "prompt", "expected a string"),
        (
            {"max_tokens_to_sample": 4001},
            "max_tokens_to_sample",
            "max_tokens_to_sample exceeds maximum allowed value of 4000: 4001",
        ),
        ({"top_k": 0.5}, "top_k", "expected an integer"),
        ({"stop_sequences": [1]}, "stop_sequences[0]", "expected a string"),
    ],
)
def test_a_wrong_field_is_named(prepare: Prepare, body: dict[str, Any], param: str, words: str) -> None:
    """An odd body gets 400 and the path of what is wrong."""
    with pytest.raises(Refusal, match=words) as caught:
        prepare(PATH, {**BODY, **body})
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_last_event_has_the_whole_text() -> None:
    """Events repeat the text so far, so that the last one in the window is enough, however long the stream is."""
    events = [b'data: {"completion": "%b", "stop_reason": null}\r\n\r\n' % (b"a" * n) for n in range(1, 400)]
    body = b"".join(events) + b"data: [DONE]\r\n\r\n"
    for size in (len(body), 2000):
        reading = read_completion_stream(BodyWindow(body[: len(body) - size], body[-size:], len(body), True))
        assert (reading.completion_character_count, reading.is_final) == (399, True)
    cut = read_completion_stream(BodyWindow(b"", body[:5000], 5000, False))
    assert cut.completion_character_count is not None
    assert (0 < cut.completion_character_count < 399, cut.is_final) == (True, False)
    # Of an event that is larger than the window, the window is what is known.
    assert read_completion_stream(BodyWindow(body[:50], body[-200:-100], 1000, False)).completion_character_count == 100


@pytest.mark.parametrize(
    ("body", "length"),
    [(b'{"completion": "h\xc3\xa9"}', 2), (b'{"completion": 5}', None), (b"[]", None), (b"{", None)],
)
def test_a_whole_completion_has_a_length(body: bytes, length: int | None) -> None:
    """In code points; unknown where it cannot be read."""
    assert read_completion(BodyWindow(body, b"", len(body), True)).completion_character_count == length
    assert read_completion(BodyWindow(body, b"", 1000, True)).completion_character_count is None
