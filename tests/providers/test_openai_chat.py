"""OpenAI's Chat Completions API: upstream requests from the reference's route and from the SDK route."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from openai.types.chat import completion_create_params

from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.providers.openai.chat import BODY_FIELDS, build_endpoint
from cgw.wire.messages import Origin

REFERENCE = "/v1/completions/openai"
SDK = "/openai/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [REFERENCE, SDK])

HELLO = [{"role": "user", "content": "hello"}]

Prepare = Callable[..., PreparedRequest]


def sent(prepared: PreparedRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepared.upstream.body)
    return body


@BOTH
def test_the_request_is_rewritten_for_the_upstream(prepare: Prepare, path: str) -> None:
    """The model loses its prefix, the user is the gateway's, and the rest is as it was sent."""
    body = {"model": "openai/gpt-a", "messages": HELLO, "stream": True, "user": "mine", "temperature": 0}
    prepared = prepare(path, body)
    assert sent(prepared) == {**body, "model": "gpt-a", "user": "acme:7"}
    assert prepared.model == "openai/gpt-a"
    assert prepared.metadata == {"stream": True}
    assert prepared.prompt_character_count == 5
    assert prepared.is_stream


@BOTH
def test_the_upstream_request_is_complete(prepare: Prepare, path: str) -> None:
    """The request has its target, and each header once; none of the client's headers is passed on."""
    client = [(b"authorization", b"Bearer client"), (b"openai-organization", b"client"), (b"openai-project", b"x")]
    upstream = prepare(path, {"model": "gpt-a", "messages": HELLO}, headers=client).upstream
    assert (upstream.method, upstream.origin, upstream.target) == (
        b"POST",
        Origin("http", "127.0.0.1", 8080),
        b"/v1/chat/completions",
    )
    assert sorted(upstream.headers) == [
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer KEY-openai"),
        (b"content-type", b"application/json"),
        (b"openai-organization", b"org-1"),
        (b"user-agent", upstream.headers[2][1]),
    ]


def test_without_organization_there_is_no_such_header() -> None:
    """The organization is optional."""
    request = build_endpoint("https://api.openai.com", "KEY").build_request(b"", is_stream=False)
    assert b"openai-organization" not in dict(request.headers)


@BOTH
def test_betas_are_passed_on_and_the_sdks_query(prepare: Prepare, path: str) -> None:
    """A client chooses the API's betas; the query is passed on for SDKs only."""
    body = {"model": "gpt-a", "messages": HELLO}
    upstream = prepare(path, body, target=f"{path}?a=b", headers=[(b"openai-beta", b"a")]).upstream
    assert [item for item in upstream.headers if item[0] == b"openai-beta"] == [(b"openai-beta", b"a")]
    assert upstream.target == b"/v1/chat/completions" + (b"?a=b" if path == SDK else b"")


@pytest.mark.parametrize(("path", "n", "expected"), [(REFERENCE, 3, 1), (REFERENCE, 1, 1), (SDK, 3, 3)])
def test_more_than_one_choice_is_for_sdks_only(prepare: Prepare, path: str, n: int, expected: int) -> None:
    """On the reference's route ``n`` above 1 becomes 1."""
    assert sent(prepare(path, {"model": "gpt-a", "messages": HELLO, "n": n}))["n"] == expected


def test_the_reference_route_drops_unknown_fields(prepare: Prepare) -> None:
    """Unknown fields, null fields, and fields that would store prompts are dropped; content parts are kept whole."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}], "junk": 1},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
    ]
    body = {
        "model": "gpt-a",
        "messages": messages,
        "stream_options": {"include_usage": True},
        "stop": None,
        "junk": 1,
        "store": True,
        "metadata": {"a": "b"},
        "safety_identifier": "me",
    }
    assert sent(prepare(REFERENCE, body)) == {
        "model": "gpt-a",
        "messages": [{"role": "user", "content": messages[0]["content"]}, messages[1]],
        "stream_options": {"include_usage": True},
        "user": "acme:7",
    }


def test_the_sdk_route_passes_on_unknown_fields(prepare: Prepare) -> None:
    """A field that is newer than this gateway reaches the API; the caller's identity is still set by the gateway."""
    body = {
        "model": "gpt-a",
        "messages": [{"role": "user", "content": "hi", "new": 1}],
        "new": {"a": None},
        "stop": None,
    }
    assert sent(prepare(SDK, {**body, "safety_identifier": "me"})) == {**body, "user": "acme:7"}


def test_the_fields_of_today_are_known() -> None:
    """The reference's route passes on all but three fields of a completion in OpenAI's own SDK."""
    fields = set(get_type_hints(completion_create_params.CompletionCreateParamsStreaming))
    assert fields - BODY_FIELDS == {"store", "metadata", "safety_identifier"}


@BOTH
def test_code_completions_are_refused(prepare: Prepare, path: str) -> None:
    """OpenAI serves chat only; the text is the reference's."""
    with pytest.raises(Refusal) as caught:
        prepare(path, {"model": "gpt-a", "messages": HELLO}, feature=Feature.CODE_COMPLETIONS)
    assert caught.value.status == 400
    assert caught.value.message == 'feature "code_completions" is currently not supported for OpenAI'


@BOTH
def test_messages_are_required(prepare: Prepare, path: str) -> None:
    """A body without messages is refused."""
    for body in ({"model": "gpt-a", "messages": []}, {"model": "gpt-a"}):
        with pytest.raises(Refusal, match='request body must contain "messages" field'):
            prepare(path, body)


@BOTH
def test_all_text_of_the_prompt_is_counted(prepare: Prepare, path: str) -> None:
    """Strings and text parts of every role count."""
    messages = [
        {"role": "developer", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "cde"}, {"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "tool_call_id": "a", "content": "f"},
    ]
    assert prepare(path, {"model": "gpt-a", "messages": messages}).prompt_character_count == 6


@BOTH
@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": HELLO, "stop": [1]}, "stop[0]"),
        ({"messages": HELLO, "n": True}, "n"),
        ({"messages": HELLO, "logit_bias": []}, "logit_bias"),
    ],
)
def test_wrong_types_are_named_by_path(prepare: Prepare, path: str, extra: dict[str, Any], param: str) -> None:
    """Both routes check the types of known fields."""
    with pytest.raises(Refusal) as caught:
        prepare(path, {"model": "gpt-a", **extra})
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_routes_have_their_properties(dialects: dict[str, Dialect]) -> None:
    """Models are prefixed; only the SDK route has a default feature; clients may retry after 30 seconds."""
    for dialect in (dialects[REFERENCE], dialects[SDK]):
        assert dialect.models == ("openai/gpt-a",)
        assert (dialect.provider, dialect.retry_after_seconds) == ("openai", 30)
    assert dialects[REFERENCE].default_feature is None
    assert dialects[SDK].default_feature is Feature.CHAT_COMPLETIONS


@BOTH
def test_the_key_shows_nowhere(dialects: dict[str, Dialect], prepare: Prepare, path: str) -> None:
    """Neither a dialect's nor a request's ``repr`` contains the key."""
    prepared = prepare(path, {"model": "gpt-a", "messages": HELLO})
    assert "KEY" not in repr(dialects[path])
    assert "KEY" not in repr(prepared)


def test_a_key_or_organization_that_is_not_a_header_value_is_refused() -> None:
    """A value that cannot be sent is refused when the endpoint is built, without being repeated."""
    with pytest.raises(ValueError, match="access token must be printable ASCII") as caught:
        build_endpoint("https://api.openai.com", "KEY\n")
    assert "KEY" not in str(caught.value)
    with pytest.raises(ValueError, match="organization must be printable ASCII"):
        build_endpoint("https://api.openai.com", "KEY", organization="org\n1")


def test_large_messages_are_passed_on_as_they_came(prepare: Prepare) -> None:
    """On the reference's route spaces, escapes and the form of numbers stay; all else is as in a short request."""
    messages = b'[ {"role": "user", "content": "\\u00e9%b"} ]' % (b"x" * 20_000)
    body = b'{"model": "openai/gpt-a", "user": "mine", "messages": %b, "user": "mine too", "temperature": 1}' % messages
    prepared = prepare(REFERENCE, body)
    expected = b'{"model":"gpt-a","user":"acme:7","messages":%b,"temperature":1}' % messages
    assert prepared.upstream.body == expected
    assert prepared.prompt_character_count == 20_001


def test_large_messages_with_unknown_fields_are_filtered(prepare: Prepare) -> None:
    """On the reference's route a large body loses its unknown fields as well."""
    body = {"model": "gpt-a", "messages": [{"role": "user", "content": "x" * 20_000, "junk": 1}]}
    assert "junk" not in sent(prepare(REFERENCE, body))["messages"][0]
