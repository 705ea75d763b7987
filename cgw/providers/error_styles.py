"""The shapes in which APIs tell their callers that something is wrong, so that each SDK raises its own exception."""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import frozen

from cgw.errors import Headers, Refusal

_JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_OPENAI_TYPES_AND_CODES: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}


def _encode(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


def _text(message: str) -> str:
    """``message`` as something that UTF-8 can carry; a header's odd bytes may have left half a surrogate pair."""
    return message.encode("utf-8", "replace").decode()


@frozen
class ReferenceErrors:
    """``{"error":"<text>"}`` and a newline, as in the reference, but said to be JSON (there it is sniffed as text)."""

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """The header fields and the body for ``refusal``; its own headers are the caller's to add."""
        return _JSON_HEADERS, _encode({"error": _text(refusal.message)}) + b"\n"


@frozen
class AnthropicErrors:
    """Anthropic's shape (its API's page "Errors"): an error object whose ``type`` follows from the status."""

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """The header fields and the body for ``refusal``; its own headers are the caller's to add."""
        default = "api_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"type": _ANTHROPIC_TYPES.get(refusal.status, default), "message": _text(refusal.message)}
        return _JSON_HEADERS, _encode({"type": "error", "error": error})


@frozen
class OpenAIErrors:
    """OpenAI's shape (its API's page "Error codes"): message, type, the offending parameter, and a code."""

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """The header fields and the body for ``refusal``; its own headers are the caller's to add."""
        default = ("server_error" if refusal.status >= 500 else "invalid_request_error", None)
        kind, code = _OPENAI_TYPES_AND_CODES.get(refusal.status, default)
        error = {"message": _text(refusal.message), "type": kind, "param": refusal.param, "code": refusal.code or code}
        return _JSON_HEADERS, _encode({"error": error})
