"""Error bodies, checked with the real SDKs."""

from __future__ import annotations

import json

import anthropic
import httpx2
import openai
import pytest

from cgw.errors import Refusal
from cgw.providers.anthropic.errors import AnthropicErrors
from cgw.providers.dialect import ErrorStyle
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.openai.errors import OpenAIErrors

STYLES = pytest.mark.parametrize("style", [ReferenceErrors(), AnthropicErrors(), OpenAIErrors()])


def answer_with(style: ErrorStyle, refusal: Refusal) -> httpx2.MockTransport:
    headers, body = style.render(refusal)
    return httpx2.MockTransport(lambda _: httpx2.Response(refusal.status, headers=list(headers), content=body))


@pytest.mark.parametrize(
    ("status", "exception", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (405, anthropic.APIStatusError, "invalid_request_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (414, anthropic.APIStatusError, "request_too_large"),
        (431, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (502, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "overloaded_error"),
        (504, anthropic.InternalServerError, "timeout_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_anthropics_sdk_raises_its_own_exception(
    status: int, exception: type[anthropic.APIStatusError], kind: str
) -> None:
    """Each status reaches Anthropic's SDK as the exception and the type that its users handle."""
    transport = answer_with(AnthropicErrors(), Refusal(status, "what is “wrong”"))
    with (
        anthropic.Anthropic(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(exception) as caught,
    ):
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.body == {"type": "error", "error": {"type": kind, "message": "what is “wrong”"}}


@pytest.mark.parametrize(
    ("refusal", "exception", "kind", "param", "code"),
    [
        (Refusal(400, "w", param="n"), openai.BadRequestError, "invalid_request_error", "n", "invalid_request"),
        (Refusal(400, "w", code="model_not_found"), openai.BadRequestError, "invalid_request_error", None,
         "model_not_found"),
        (Refusal(401, "w"), openai.AuthenticationError, "invalid_request_error", None, "invalid_api_key"),
        (Refusal(403, "w"), openai.PermissionDeniedError, "invalid_request_error", None, "permission_denied"),
        (Refusal(404, "w"), openai.NotFoundError, "invalid_request_error", None, "not_found"),
        (Refusal(405, "w"), openai.APIStatusError, "invalid_request_error", None, "method_not_allowed"),
        (Refusal(431, "w"), openai.APIStatusError, "invalid_request_error", None, "request_headers_too_large"),
        (Refusal(502, "w"), openai.InternalServerError, "server_error", None, "bad_gateway"),
        (Refusal(413, "w"), openai.APIStatusError, "invalid_request_error", None, "request_too_large"),
        (Refusal(429, "w"), openai.RateLimitError, "requests", None, "rate_limit_exceeded"),
        (Refusal(500, "w"), openai.InternalServerError, "server_error", None, "internal_error"),
        (Refusal(503, "w"), openai.InternalServerError, "server_error", None, "service_unavailable"),
        (Refusal(504, "w"), openai.InternalServerError, "server_error", None, "timeout"),
    ],
)  # fmt: skip
def test_openais_sdk_raises_its_own_exception(
    refusal: Refusal, exception: type[openai.APIStatusError], kind: str, param: str | None, code: str | None
) -> None:
    """Each status reaches OpenAI's SDK as the exception, type, parameter and code that its users handle."""
    transport = answer_with(OpenAIErrors(), refusal)
    with (
        openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(exception) as caught,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    error = caught.value
    assert (error.status_code, error.type, error.param, error.code) == (refusal.status, kind, param, code)
    assert error.body == {"message": "w", "type": kind, "param": param, "code": code}


@STYLES
def test_what_the_gateway_has_to_say_about_a_token_is_kept(style: ErrorStyle) -> None:
    """Only a wrong and a missing key have words of the API's own."""
    _, body = style.render(Refusal(401, "access token denied: it has expired"))
    assert b"access token denied: it has expired" in body


def test_the_reference_shape_is_one_line_of_json() -> None:
    """The reference's error is an object with one text, and a line feed after it."""
    headers, body = ReferenceErrors().render(Refusal(400, 'model "a" is not allowed'))
    assert list(headers) == [(b"content-type", b"application/json")]
    assert body == b'{"error":"model \\"a\\" is not allowed"}\n'


@STYLES
def test_the_refusals_own_headers_are_not_rendered(style: ErrorStyle) -> None:
    """The gateway adds them when it sends the response, so an error style must not."""
    headers, _ = style.render(Refusal(429, "wait", headers=[(b"retry-after", b"1")]))
    assert [name for name, _ in headers] == [b"content-type"]


@STYLES
def test_any_text_can_be_rendered(style: ErrorStyle) -> None:
    """A text with line ends, quotes or a lone surrogate still gives valid JSON in UTF-8."""
    _, body = style.render(Refusal(400, 'a"\r\n\x00\ud83d'))
    assert 'a\\"' in json.dumps(json.loads(body.decode()))
