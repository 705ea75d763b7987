"""Error bodies in the shape of OpenAI's API."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cgw.errors import MISSING_TOKEN, UNKNOWN_TOKEN, Headers, Refusal
from cgw.providers.error_styles import JSON_HEADERS, clean_message, encode_error

_TYPES_AND_CODES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    414: ("invalid_request_error", "uri_too_long"),
    429: ("requests", "rate_limit_exceeded"),
    431: ("invalid_request_error", "request_headers_too_large"),
    500: ("server_error", "internal_error"),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}

# The API's own texts, without the links to a site that does not know cgw's tokens.
_WORDS = {
    MISSING_TOKEN: "You didn't provide an API key. You need to provide your API key in an Authorization header using "
    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
    UNKNOWN_TOKEN: "Incorrect API key provided.",
}


@frozen
class OpenAIErrors:
    """OpenAI's shape (https://platform.openai.com/docs/guides/error-codes): message, type, parameter and code."""

    is_for_sdks: ClassVar[bool] = True
    takes_key_in_query: ClassVar[bool] = False

    def render(self, refusal: Refusal, request_id: str | None = None) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        kind, code = _TYPES_AND_CODES.get(refusal.status) or _TYPES_AND_CODES[500 if refusal.status >= 500 else 400]
        words = _WORDS.get(refusal.code or "")
        error = {
            "message": words or clean_message(refusal.message),
            "type": kind,
            "param": refusal.param,
            # cgw's own reason is more precise than what follows from the status.
            "code": code if words else refusal.code or code,
        }
        if request_id is not None:
            error["request_id"] = request_id  # not the API's: the SDKs show the whole error, unknown members included
        return JSON_HEADERS, encode_error({"error": error})
