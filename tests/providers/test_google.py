"""Google's Gemini API: the URL, the rewrites, and clear refusals of odd bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import MISSING_TOKEN, UNKNOWN_TOKEN, Refusal
from cgw.model import BodyWindow, Feature
from cgw.providers.dialect import PreparedRequest
from cgw.providers.google.errors import GoogleErrors
from cgw.providers.google.generate import _build_reader
from cgw.providers.google.usage import read_response_array
from cgw.wire.messages import Origin

PATH = "/v1/completions/google"
HELLO = [{"role": "user", "parts": [{"text": "hello"}]}]
BODY = {"model": "gemini-a", "contents": HELLO}

Prepare = Callable[..., PreparedRequest]


def sent(prepared: PreparedRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepared.upstream.body)
    return body


@pytest.mark.parametrize(
    ("stream", "target"),
    [
        (True, b"/v1beta/models/gemini-a:streamGenerateContent?alt=sse"),
        (False, b"/v1beta/models/gemini-a:generateContent"),
        (None, b"/v1beta/models/gemini-a:generateContent"),
    ],
)
@pytest.mark.parametrize("model", ["gemini-a", "google/gemini-a", "models/gemini-a"])
@pytest.mark.parametrize("feature", [Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS])
def test_model_and_stream_are_in_the_url(
    prepare: Prepare, stream: bool | None, target: bytes, model: str, feature: Feature
) -> None:
    """The URL has model and method, the body has neither; a generation config is always there; both features work."""
    prepared = prepare(PATH, {**BODY, "model": model, "stream": stream}, feature=feature)
    assert (prepared.upstream.origin, prepared.upstream.target) == (Origin("https", "google.test", 443), target)
    assert sent(prepared) == {"contents": HELLO, "generationConfig": {}}
    assert (prepared.model, prepared.is_stream) == ("google/gemini-a", bool(stream))
    assert (prepared.metadata, prepared.prompt_character_count) == ({"stream": bool(stream)}, 5)


def test_the_key_is_in_a_header_only(prepare: Prepare) -> None:
    """The key is never part of a URL, and a client's own key goes nowhere."""
    upstream = prepare(PATH, BODY, target=f"{PATH}?key=client", headers=[(b"x-goog-api-key", b"client")]).upstream
    assert [item for item in upstream.headers if item[0] == b"x-goog-api-key"] == [(b"x-goog-api-key", b"KEY-google")]
    assert b"key" not in upstream.target
    assert b"KEY-google" not in upstream.body


def test_a_models_name_cannot_change_the_url(prepare: Prepare) -> None:
    """Every character that means something in a URL is encoded."""
    upstream = prepare(PATH, {**BODY, "model": "../../v1/x?a=b#c:d e\r\né"}).upstream
    assert upstream.target == (b"/v1beta/models/..%2F..%2Fv1%2Fx%3Fa%3Db%23c%3Ad%20e%0D%0A%C3%A9:generateContent")


def test_the_fields_of_the_api_are_passed_on(prepare: Prepare) -> None:
    """Tools, images, thinking, schemas: all fields of the API but stored contexts; unknown ones are dropped."""
    parts = [{"text": "hé"}, {"inlineData": {"mimeType": "image/png", "data": "AA=="}}, {"functionResponse": {"a": 1}}]
    fields = {
        "contents": [{"role": "user", "parts": parts}, {"role": "model", "parts": [{"thoughtSignature": "x"}]}],
        "generationConfig": {
            "maxOutputTokens": 10,
            "candidateCount": 2,
            "thinkingConfig": {"thinkingBudget": 5},
            "responseSchema": {"type": "OBJECT"},
        },
        "safetySettings": [{"category": "a", "threshold": "b"}],
        "tools": [{"functionDeclarations": []}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        "systemInstruction": {"parts": [{"text": "abc"}]},
    }
    prepared = prepare(PATH, {**BODY, **fields, "cachedContent": "cachedContents/1", "junk": 1, "labels": {}})
    assert sent(prepared) == fields
    assert (prepared.prompt_character_count, prepared.max_completion_tokens) == (5, 20)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"systemInstruction": "be kind"}, {"systemInstruction": {"parts": [{"text": "be kind"}]}}),
        ({"systemInstruction": ""}, {}),
        ({"systemInstruction": None}, {}),
        (
            {"system_instruction": {"parts": {"text": "be kind"}}},
            {"systemInstruction": {"parts": [{"text": "be kind"}]}},
        ),
        ({"generation_config": {"max_output_tokens": 5}}, {"generationConfig": {"maxOutputTokens": 5}}),
        ({"generationConfig": None}, {"generationConfig": {}}),
        ({"tool_config": {"a": 1}, "safety_settings": []}, {"toolConfig": {"a": 1}, "safetySettings": []}),
        ({"contents": {"role": "user", "parts": {"text": "hello"}}}, {}),
    ],
)
def test_other_spellings_are_brought_into_one(prepare: Prepare, body: dict[str, Any], expected: dict[str, Any]) -> None:
    """The reference's string as system instruction, names with underscores, and single objects for lists are taken."""
    assert sent(prepare(PATH, {**BODY, **body})) == {"contents": HELLO, "generationConfig": {}, **expected}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"contents": None}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": "hello"}, "contents"),
        ({"contents": [5]}, "contents[0]"),
        ({"contents": [{"parts": "hello"}]}, "contents[0].parts"),
        ({"contents": [{"parts": ["hello"]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"text": 5}]}]}, "contents[0].parts[0].text"),
        ({"contents": [{"role": 5, "parts": []}]}, "contents[0].role"),
        ({"systemInstruction": 5}, "systemInstruction"),
        ({"systemInstruction": {"parts": [{"text": 5}]}}, "systemInstruction.parts[0].text"),
        ({"generationConfig": []}, "generationConfig"),
        ({"generationConfig": {"maxOutputTokens": "5"}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 9}}, "generationConfig.max_output_tokens"),
        ({"generationConfig": {}, "generation_config": {}}, "generation_config"),
        ({"tools": {}}, "tools"),
        ({"stream": "true"}, "stream"),
        ({"model": 5}, "model"),
    ],
)
def test_a_wrong_field_is_named(prepare: Prepare, body: dict[str, Any], param: str) -> None:
    """An odd body gets 400 and the path of what is wrong."""
    with pytest.raises(Refusal) as caught:
        prepare(PATH, {**BODY, **body})
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_missing_conversation_has_a_text_of_its_own(prepare: Prepare) -> None:
    """As for the other APIs."""
    with pytest.raises(Refusal, match='request body must contain "contents" field'):
        prepare(PATH, {"model": "gemini-a"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["parts", "text", "role", "maxOutputTokens", "max_output_tokens"]), inner)
    ),
    max_leaves=6,
)
fields = st.sampled_from(["contents", "systemInstruction", "generation_config", "generationConfig", "tools", "stream"])


@given(st.dictionaries(fields, json_values))
def test_any_body_is_prepared_or_refused(prepare: Prepare, body: dict[str, Any]) -> None:
    """Whatever the fields are, there is a request or a refusal that names one of them."""
    try:
        prepared = prepare(PATH, {"model": "gemini-a", **body})
    except Refusal as refusal:
        assert refusal.status == 400
        assert refusal.param
    else:
        assert prepared.upstream.target.startswith(b"/v1beta/models/gemini-a:")


@given(st.dictionaries(fields, json_values))
def test_both_readers_accept_the_same_bodies(body: dict[str, Any]) -> None:
    """The quick reader and the one that explains agree, also where classes are fields of classes."""
    reader = _build_reader()
    raw = {"model": "gemini-a", **body}
    try:
        expected = reader.structure_or_explain(raw)
    except Refusal:
        with pytest.raises(msgspec.ValidationError):
            reader.structure(raw)
    else:
        assert repr(reader.structure(raw)) == repr(expected)


@pytest.mark.parametrize(
    ("refusal", "status", "words"),
    [
        (Refusal(400, "wrong", param="contents[0]"), "INVALID_ARGUMENT", "wrong"),
        (Refusal(401, "x", code=MISSING_TOKEN), "UNAUTHENTICATED", "unregistered callers"),
        (Refusal(401, "x", code=UNKNOWN_TOKEN), "UNAUTHENTICATED", "API key not valid"),
        (Refusal(404, "x"), "NOT_FOUND", "x"),
        (Refusal(418, "x"), "INVALID_ARGUMENT", "x"),
        (Refusal(429, "x"), "RESOURCE_EXHAUSTED", "x"),
        (Refusal(503, "x"), "UNAVAILABLE", "x"),
        (Refusal(599, "x"), "INTERNAL", "x"),
    ],
)
def test_errors_have_googles_shape(refusal: Refusal, status: str, words: str) -> None:
    """Code, message, the code's name; a wrong field is a violation in the details."""
    error = json.loads(GoogleErrors().render(refusal)[1])["error"]
    assert (error["code"], error["status"]) == (refusal.status, status)
    assert words in error["message"]
    if refusal.param is not None:
        assert error["details"][0]["fieldViolations"] == [{"field": "contents[0]", "description": "wrong"}]


def test_a_stream_that_is_an_array_is_read_wherever_it_is_cut() -> None:
    """Cut at any byte, an array gives the figures of its last whole chunk, and counts as final only at its end."""
    chunks = [
        {"candidates": [{"content": {"parts": [{"text": "Grüße, "}]}}], "usageMetadata": {"promptTokenCount": 3}},
        {"candidates": [{"content": {"parts": [{"text": '"usageMetadata": {'}]}}]},
        {
            "candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 9, "thoughtsTokenCount": 2},
        },
    ]
    data = b"[" + b",\r\n".join(json.dumps(chunk, indent=1).encode() for chunk in chunks) + b"\n]\n"
    for size in range(len(data) + 1):
        reading = read_response_array(BodyWindow(data[:size], b"", size, size == len(data)))
        assert reading.is_final == (reading.completion_token_count == 11) or size < 2
    reading = read_response_array(BodyWindow(data, b"", len(data), is_complete=True))
    assert reading.prompt_token_count == 3
    assert reading.completion_character_count == 7 + 18 + 1
    assert read_response_array(BodyWindow(b"", b"", 0, is_complete=True)).prompt_token_count is None


@pytest.mark.parametrize("end", [b"\n]", b"\r\n]\r\n", b"]"])
def test_the_figures_of_a_long_array_are_in_its_last_chunk(end: bytes) -> None:
    """Where the middle of an array is missing, its last chunk tells the figures; arguments of tools cannot."""
    last = {
        "candidates": [
            {"content": {"parts": [{"functionCall": {"args": {"usageMetadata": {"promptTokenCount": 0}}}}]}}
        ],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 9},
        "modelVersion": "gemini-a",
    }
    tail = b'{"text": "cut"}]}}]}\n,\r\n' + json.dumps(last, indent=2).encode() + end
    reading = read_response_array(BodyWindow(b'[{"candidates": [', tail, 10**6, is_complete=True))
    assert (reading.prompt_token_count, reading.completion_token_count, reading.is_final) == (3, 9, True)
    broken = read_response_array(BodyWindow(b'[{"candidates": [', tail[:-30], 10**6, is_complete=False))
    assert (broken.prompt_token_count, broken.is_final) == (None, False)


@given(st.binary(max_size=60), st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_as_an_array(head: bytes, tail: bytes, is_whole: bool) -> None:
    """Nothing that an upstream sends raises."""
    total = len(head) + len(tail) + (0 if is_whole else 10)
    read_response_array(BodyWindow(b"[" + head, tail, total + 1, is_complete=True))
