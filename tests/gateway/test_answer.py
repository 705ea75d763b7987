"""Reading an exchange's request head, and building its response head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Headers, Refusal
from cgw.gateway.answer import (
    MAX_REMEMBERED_FIELDS,
    _Kept,
    allowed_methods,
    answer_status,
    build_answer_headers,
    content_length_of,
    is_event_stream,
    read_timeout_seconds,
    select_feature,
)
from cgw.model import Feature
from cgw.providers.anthropic.messages import AnthropicMessages, AnthropicSdkMessages, build_endpoint
from cgw.wire.heads import select_response_headers
from cgw.wire.messages import RequestHead, ResponseHead

ENDPOINT = build_endpoint("http://upstream", "key-of-tests")
REFERENCE = AnthropicMessages(ENDPOINT, ("anthropic/claude",))
SDK = AnthropicSdkMessages(ENDPOINT, ("anthropic/claude",))
OWN: Headers = ((b"x-ratelimit-limit", b"10"), (b"x-ratelimit-remaining", b"9"))


def build_head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead(b"POST", b"/v1/completions/anthropic-messages", headers)


def build_response(status: int, *headers: tuple[bytes, bytes]) -> ResponseHead:
    return ResponseHead(status, headers)


def read_timeout(value: bytes) -> float:
    return read_timeout_seconds(build_head((b"x-timeout-ms", value)), 60, 600)


@pytest.mark.parametrize("value", [b"chat_completions", b"code_completions", b" code_completions "])
def test_feature_is_read_from_the_header(value: bytes) -> None:
    """Both completion features are accepted, on either kind of route."""
    head = build_head((b"x-sourcegraph-feature", value))
    assert select_feature(head, REFERENCE) == select_feature(head, SDK) == Feature(value.strip().decode())


def test_feature_has_a_default_on_sdk_routes_only() -> None:
    """A missing header means chat on SDK routes, whose clients do not send it, and 400 on reference routes."""
    assert select_feature(build_head(), SDK) is Feature.CHAT_COMPLETIONS
    with pytest.raises(Refusal, match="X-Sourcegraph-Feature header is required") as caught:
        select_feature(build_head(), REFERENCE)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "value", [b"", b"embeddings", b"Chat_Completions", b"chat_completions,code_completions", b"\xff"]
)
@pytest.mark.parametrize("dialect", [REFERENCE, SDK], ids=["reference", "sdk"])
def test_any_other_feature_is_refused(dialect: AnthropicMessages | AnthropicSdkMessages, value: bytes) -> None:
    """Any other value gets 400 and the list of completion features, also on routes with a default."""
    with pytest.raises(Refusal, match="allowed: chat_completions, code_completions") as caught:
        select_feature(build_head((b"x-sourcegraph-feature", value)), dialect)
    assert caught.value.status == 400


def test_timeout_is_the_clients_up_to_the_maximum() -> None:
    """X-Timeout-Ms is in milliseconds, may exceed the default, and is capped by the maximum."""
    assert read_timeout_seconds(build_head(), 60, 600) == 60
    assert read_timeout_seconds(build_head(), 900, 600) == 600
    assert read_timeout(b"1500") == 1.5
    assert read_timeout(b"120000") == 120
    assert read_timeout(b"99999999") == 600


@pytest.mark.parametrize("value", [b"", b"soon", b"1e3", b"1.5", b"\xb2", b"0x10", b"1 000"])
def test_timeout_that_is_not_a_number_is_ignored(value: bytes) -> None:
    """The default applies, as in the reference."""
    assert read_timeout(value) == 60


@pytest.mark.parametrize("value", [b"0", b"-1", b"-" + b"9" * 400])
def test_timeout_that_is_not_positive_is_refused(value: bytes) -> None:
    """A timeout of zero or less is an error of the client: 400, not 504."""
    with pytest.raises(Refusal, match="positive") as caught:
        read_timeout(value)
    assert caught.value.status == 400


@pytest.mark.parametrize("digits", [309, 400, 4300, 5000])
def test_timeout_of_absurd_length_is_capped(digits: int) -> None:
    """A number too large for a float, or for Python's integer parser, is capped like any other."""
    assert read_timeout(b"9" * digits) == 600


@given(st.binary(max_size=40))
def test_any_timeout_is_a_time_or_a_400(value: bytes) -> None:
    """For any header value the result is positive and within the maximum, or the request is refused."""
    try:
        seconds = read_timeout(value)
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert 0 < seconds <= 600


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_event_streams_are_recognised_by_their_type(content_type: bytes, expected: bool) -> None:
    """The media type decides, in any case and with parameters."""
    assert is_event_stream(build_response(200, (b"content-type", content_type))) is expected
    assert not is_event_stream(build_response(200))


def test_event_streams_are_not_to_be_buffered() -> None:
    """Only event streams carry ``x-accel-buffering: no``, whatever the upstream sent."""
    stream = build_response(200, (b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"yes"))
    headers = build_answer_headers(stream, "anthropic/claude", 2, OWN)
    assert [value for name, value in headers if name == b"x-accel-buffering"] == [b"no"]
    plain = build_response(200, (b"content-type", b"application/json"))
    assert b"x-accel-buffering" not in dict(build_answer_headers(plain, "anthropic/claude", 2, OWN))


def test_own_fields_replace_the_upstreams() -> None:
    """The gateway's limit and model headers replace fields of the same names from the upstream."""
    head = build_response(200, (b"x-ratelimit-limit", b"999999"), (b"x-cody-resolved-model", b"m"), (b"x-id", b"1"))
    headers = build_answer_headers(head, "anthropic/claude", 2, OWN)
    assert sorted(headers) == sorted([(b"x-id", b"1"), *OWN, (b"x-cody-resolved-model", b"anthropic/claude")])


def test_retry_after_of_a_503_is_the_upstreams_or_the_default() -> None:
    """Every 503 carries ``retry-after``: the upstream's value, otherwise the provider's default."""
    for status in (429, 503):
        assert dict(build_answer_headers(build_response(status), "m", 30, ()))[b"retry-after"] == b"30"
        told = build_response(status, (b"retry-after", b"7"))
        assert [v for n, v in build_answer_headers(told, "m", 30, ()) if n == b"retry-after"] == [b"7"]
    assert b"retry-after" not in dict(build_answer_headers(build_response(500), "m", 30, ()))


def test_429_and_529_become_503() -> None:
    """The upstream quota is shared by all clients, and 529 is one API's own; all other statuses pass."""
    assert {status: answer_status(status) for status in (200, 204, 400, 401, 404, 429, 500, 503, 529)} == {
        **{status: status for status in (200, 204, 400, 401, 404, 500, 503)},
        429: 503,
        529: 503,
    }


def test_length_counts_only_without_a_transfer_coding() -> None:
    """RFC 9112 §6.3: a transfer coding overrides the length, which is then not passed on either."""
    plain = build_response(200, (b"content-length", b"12"))
    both = build_response(200, (b"content-length", b"12"), (b"transfer-encoding", b"chunked"))
    assert content_length_of(plain) == 12
    assert content_length_of(both) is content_length_of(build_response(200)) is None
    assert dict(build_answer_headers(plain, "m", 2, ()))[b"content-length"] == b"12"
    assert not {b"content-length", b"transfer-encoding"} & dict(build_answer_headers(both, "m", 2, ())).keys()


def test_fields_of_one_hop_and_cookies_stay_behind() -> None:
    """Cookies, alternative services, hop-by-hop fields and those that Connection names are removed."""
    dropped = (b"set-cookie", b"alt-svc", b"keep-alive", b"upgrade", b"trailer", b"proxy-authenticate", b"x-internal")
    head = build_response(200, (b"connection", b"keep-alive, X-Internal"), *((name, b"v") for name in dropped))
    assert build_answer_headers(head, "m", 2, ()) == [(b"x-cody-resolved-model", b"m")]


NAMES = st.sampled_from([b"connection", b"x-internal", b"keep-alive", b"set-cookie", b"x-id", b"upgrade"])
VALUES = st.sampled_from([b"keep-alive", b"Keep-Alive", b"close, x-internal", b"x-internal", b""])


@given(st.lists(st.tuples(NAMES, VALUES)), st.sampled_from([OWN, ((b"x-id", b"1"),)]))
def test_usual_heads_are_not_treated_differently(headers: Headers, own: Headers) -> None:
    """The short way for usual heads passes on the same fields as the general one."""
    added = [*own, (b"x-cody-resolved-model", b"m")]
    expected = [*select_response_headers(headers, [name for name, _ in added]), *added]
    assert build_answer_headers(build_response(200, *headers), "m", 2, own) == expected


def test_allow_lists_the_methods() -> None:
    """A 405 has an Allow field (RFC 9110 §10.2.1)."""
    assert allowed_methods(["GET", "HEAD"]) == [(b"allow", b"GET, HEAD")]


def test_fields_about_the_account_are_dropped() -> None:
    """The provider's own limits, organization and project are dropped, unless the operator wants them to pass."""
    about = [b"x-ratelimit-limit-tokens", b"anthropic-ratelimit-unified-status", b"ratelimit", b"openai-organization"]
    others = [b"x-request-id", b"request-id", b"openai-processing-ms", b"x-project", b"organization-id"]
    head = build_response(200, *((name, b"v") for name in [*about, b"openai-project", *others]))
    kept = [name for name, _ in build_answer_headers(head, "m", 30, ())]
    assert not {*about, b"openai-project"} & set(kept)
    assert {b"x-request-id", b"request-id", b"openai-processing-ms", b"organization-id"} <= set(kept)
    assert set(about) <= {name for name, _ in build_answer_headers(head, "m", 30, (), passes_account_fields=True)}


def test_memory_of_fields_is_bounded() -> None:
    """An upstream that thinks of ever new names of fields does not fill the memory."""
    kept = _Kept([b"x-dropped"], passes_account_fields=False)
    for index in range(3 * MAX_REMEMBERED_FIELDS):
        assert kept[b"x-%d" % index]
        assert len(kept) <= MAX_REMEMBERED_FIELDS
    assert not kept[b"x-dropped"]
