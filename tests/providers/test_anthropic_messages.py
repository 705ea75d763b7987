"""Anthropic's Messages API: upstream requests from the reference's route and from the SDK route."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import pytest
from anthropic.types import message_create_params

from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.anthropic.messages import BODY_FIELDS, build_endpoint
from cgw.providers.dialect import Dialect, PreparedRequest
from cgw.wire.messages import Origin

REFERENCE = "/v1/completions/anthropic-messages"
SDK = "/anthropic/v1/messages"
BOTH = pytest.mark.parametrize("path", [REFERENCE, SDK])

HELLO = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]

Prepare = Callable[..., PreparedRequest]


def sent(prepared: PreparedRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepared.upstream.body)
    return body


@BOTH
def test_the_request_is_rewritten_for_the_upstream(prepare: Prepare, path: str) -> None:
    """The model loses its prefix, the user id is the gateway's, and the rest is as it was sent."""
    body = {"model": "anthropic/claude-a", "messages": HELLO, "max_tokens": 10, "metadata": {"user_id": "mine"}}
    prepared = prepare(path, body)
    assert sent(prepared) == {**body, "model": "claude-a", "metadata": {"user_id": "acme:7"}}
    assert prepared.model == "anthropic/claude-a"
    assert prepared.metadata == {"stream": False, "max_tokens": 10}
    assert prepared.prompt_character_count == 5
    assert not prepared.is_stream


@BOTH
@pytest.mark.parametrize(("stream", "accept"), [(True, b"text/event-stream"), (False, b"application/json")])
def test_the_upstream_request_is_complete(prepare: Prepare, path: str, stream: bool, accept: bytes) -> None:
    """The request has its target, and each header once; none of the client's headers is passed on."""
    client = [(b"authorization", b"Bearer client"), (b"x-api-key", b"client"), (b"cookie", b"a=b")]
    upstream = prepare(path, {"model": "claude-a", "messages": HELLO, "stream": stream}, headers=client).upstream
    assert (upstream.method, upstream.origin, upstream.target) == (
        b"POST",
        Origin("https", "anthropic.test", 443),
        b"/base/v1/messages",
    )
    assert sorted(upstream.headers) == [
        (b"accept", accept),
        (b"accept-encoding", b"identity"),
        (b"anthropic-version", b"2023-06-01"),
        (b"content-type", b"application/json"),
        (b"user-agent", upstream.headers[2][1]),
        (b"x-api-key", b"KEY-anthropic"),
    ]
    assert upstream.headers[2][1].startswith(b"cgw/")


def test_the_sdk_route_passes_on_version_betas_and_query(prepare: Prepare) -> None:
    """An SDK chooses the API's version and betas; they and the query are passed on."""
    headers = [(b"anthropic-version", b"2099-01-01"), (b"anthropic-beta", b"a,b"), (b"anthropic-beta", b"c")]
    body = {"model": "claude-a", "messages": HELLO}
    upstream = prepare(SDK, body, target=f"{SDK}?beta=true", headers=headers).upstream
    assert upstream.target == b"/base/v1/messages?beta=true"
    assert [item for item in upstream.headers if item[0].startswith(b"anthropic-")] == headers


def test_the_reference_route_passes_on_betas_only(prepare: Prepare) -> None:
    """On the reference's route the version is fixed, and there is no query; today's fields need betas."""
    headers = [(b"anthropic-version", b"2099-01-01"), (b"anthropic-beta", b"a")]
    body = {"model": "claude-a", "messages": HELLO}
    upstream = prepare(REFERENCE, body, target=f"{REFERENCE}?beta=true", headers=headers).upstream
    assert upstream.target == b"/base/v1/messages"
    assert [item for item in upstream.headers if item[0].startswith(b"anthropic-")] == [
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"a"),
    ]


def test_the_reference_route_drops_unknown_fields(prepare: Prepare) -> None:
    """Unknown fields of the body and of messages, and null fields, are dropped; content parts are kept whole."""
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    body = {
        "model": "claude-a",
        "messages": [{"role": "user", "content": [part], "junk": 1}],
        "thinking": {"type": "adaptive"},
        "top_k": None,
        "junk": 1,
        "fallbacks": [{"model": "claude-x"}],
    }
    assert sent(prepare(REFERENCE, body)) == {
        "model": "claude-a",
        "messages": [{"role": "user", "content": [part]}],
        "thinking": {"type": "adaptive"},
        "metadata": {"user_id": "acme:7"},
    }


def test_the_sdk_route_passes_on_unknown_fields(prepare: Prepare) -> None:
    """A field that is newer than this gateway reaches the API."""
    body = {
        "model": "claude-a",
        "messages": [{"role": "user", "content": "hi", "new": [1]}],
        "new": {"a": None},
        "metadata": {"other": 1},
    }
    assert sent(prepare(SDK, body)) == {**body, "metadata": {"other": 1, "user_id": "acme:7"}}


def test_the_fields_of_today_are_known() -> None:
    """The reference's route passes on every field of a message in Anthropic's own SDK."""
    fields = set(get_type_hints(message_create_params.MessageCreateParamsStreaming))
    headers = {"user_profile_id", "workspace_id"}
    assert fields - headers <= BODY_FIELDS


@pytest.mark.parametrize(
    ("own", "content", "system"),
    [
        (None, "be kind", "be kind"),
        (None, [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}], "be kind"),
        ("first", "be kind", "first\n\nbe kind"),
        ([{"type": "text", "text": "first"}], "be kind", "first\n\nbe kind"),
        ("first", "", "first"),
        ("", "be kind", "be kind"),
        ("first", [], "first"),
        (None, [], None),
        (
            [{"type": "text", "text": "first", "cache_control": {"type": "ephemeral"}}],
            "be kind",
            [
                {"type": "text", "text": "first", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "be kind"},
            ],
        ),
        (
            None,
            [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
            [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        ),
        ([{"type": "odd", "text": 3}], "be kind", [{"type": "odd", "text": 3}, {"type": "text", "text": "be kind"}]),
    ],
)
def test_a_first_system_message_moves_to_the_top(
    prepare: Prepare, own: object, content: object, system: object
) -> None:
    """Its text is put after the client's own ``system``, and the message is removed; an empty one changes nothing."""
    body: dict[str, Any] = {"model": "claude-a", "messages": [{"role": "system", "content": content}, *HELLO]}
    if own is not None:
        body["system"] = own
    prepared = prepare(REFERENCE, body)
    assert sent(prepared).get("system") == system
    assert sent(prepared)["messages"] == HELLO


def test_a_lone_system_is_kept(prepare: Prepare) -> None:
    """Without a system message the client's own ``system`` is passed on unchanged (the reference empties it)."""
    prepared = prepare(REFERENCE, {"model": "claude-a", "messages": HELLO, "system": "be kind"})
    assert sent(prepared)["system"] == "be kind"
    assert prepared.prompt_character_count == len("be kind" + "hello")


def test_a_system_message_on_the_sdk_route_stays_where_it_is(prepare: Prepare) -> None:
    """Today's API accepts system messages itself."""
    messages = [{"role": "system", "content": "be kind"}, *HELLO]
    assert sent(prepare(SDK, {"model": "claude-a", "messages": messages}))["messages"] == messages


def test_an_image_in_a_system_message_is_refused(prepare: Prepare) -> None:
    """Content that cannot be moved to the top is refused, not dropped."""
    content = [{"type": "text", "text": "a"}, {"type": "image", "source": {}}]
    with pytest.raises(Refusal) as caught:
        prepare(REFERENCE, {"model": "claude-a", "messages": [{"role": "system", "content": content}]})
    assert caught.value.param == "messages[0].content[1]"


@BOTH
@pytest.mark.parametrize("messages", [None, []])
def test_messages_are_required(prepare: Prepare, path: str, messages: object) -> None:
    """The reference's text for a body without messages."""
    for body in ({"model": "claude-a", "messages": messages}, {"model": "claude-a"}):
        with pytest.raises(Refusal, match='request body must contain "messages" field') as caught:
            prepare(path, body)
        assert (caught.value.status, caught.value.param) == (400, "messages")


def test_max_tokens_is_capped_on_the_reference_route_only(prepare: Prepare) -> None:
    """The cap itself is allowed, more is refused with the reference's text; the SDK route has no cap."""
    body: Mapping[str, Any] = {"model": "claude-a", "messages": HELLO}
    assert sent(prepare(REFERENCE, {**body, "max_tokens": 4000}))["max_tokens"] == 4000
    with pytest.raises(Refusal, match="max_tokens exceeds maximum allowed value of 4000: 4001") as caught:
        prepare(REFERENCE, {**body, "max_tokens": 4001})
    assert (caught.value.status, caught.value.param) == (400, "max_tokens")
    assert prepare(SDK, {**body, "max_tokens": 64000}).metadata["max_tokens"] == 64000


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"fallbacks": [{"model": "claude-x"}]}, "fallbacks"),
        ({"fallbacks": "default"}, "fallbacks"),
        ({"tools": [{"name": "a"}, {"type": "advisor_20260301", "model": "claude-x"}]}, "tools[1].model"),
    ],
)
def test_further_models_are_refused_on_the_sdk_route(prepare: Prepare, extra: dict[str, Any], param: str) -> None:
    """A field that names a model, and that is not checked against the allowed models, is refused."""
    with pytest.raises(Refusal) as caught:
        prepare(SDK, {"model": "claude-a", "messages": HELLO, **extra})
    assert (caught.value.status, caught.value.param) == (400, param)


@BOTH
def test_wrong_types_are_named_by_path(prepare: Prepare, path: str) -> None:
    """Both routes check the types of known fields."""
    with pytest.raises(Refusal) as caught:
        prepare(path, {"model": "claude-a", "messages": [{"role": "user", "content": 5}]})
    assert caught.value.param == "messages[0].content"
    assert "expected a string or a list of parts, got a number" in caught.value.message


def test_the_routes_have_their_properties(dialects: dict[str, Dialect]) -> None:
    """Models are prefixed; only the SDK route has a default feature; clients may retry after 2 seconds."""
    for dialect in (dialects[REFERENCE], dialects[SDK]):
        assert dialect.models == ("anthropic/claude-a", "anthropic/claude-b")
        assert (dialect.provider, dialect.retry_after_seconds) == ("anthropic", 2)
    assert dialects[REFERENCE].default_feature is None
    assert dialects[SDK].default_feature is Feature.CHAT_COMPLETIONS


@BOTH
def test_the_key_shows_nowhere(dialects: dict[str, Dialect], prepare: Prepare, path: str) -> None:
    """Neither a dialect's nor a request's ``repr`` contains the key."""
    prepared = prepare(path, {"model": "claude-a", "messages": HELLO})
    assert "KEY" not in repr(dialects[path])
    assert "KEY" not in repr(prepared)


@pytest.mark.parametrize("token", ["", "KEY\n", "KEY\r\nx: y", "KÉY", " KEY"])
def test_a_key_that_is_not_a_header_value_is_refused(token: str) -> None:
    """A key with line ends or the like is refused when the endpoint is built, without being repeated."""
    with pytest.raises(ValueError, match="access token must be printable ASCII") as caught:
        build_endpoint("https://api.anthropic.com", token)
    assert "KEY" not in str(caught.value)


@BOTH
def test_large_messages_are_passed_on_as_they_came(prepare: Prepare, path: str) -> None:
    """Spaces, escapes and the form of numbers stay; all else is as in a short request."""
    messages = b'[ {"role": "user", "content": "\\u00e9%b"} ]' % (b"x" * 20_000)
    prepared = prepare(path, b'{"model": "anthropic/claude-a", "messages": %b, "top_k": 1}' % messages)
    expected = b'{"model":"claude-a","messages":%b,"top_k":1,"metadata":{"user_id":"acme:7"}}' % messages
    assert prepared.upstream.body == expected
    assert prepared.prompt_character_count == 20_001


def test_a_large_system_message_moves_to_the_top(prepare: Prepare) -> None:
    """Messages that change are encoded, however large they are."""
    text = "x" * 20_000
    body = {"model": "claude-a", "messages": [{"role": "system", "content": text}, *HELLO]}
    outgoing = sent(prepare(REFERENCE, body))
    assert (outgoing["system"], outgoing["messages"]) == (text, HELLO)
