"""Error bodies in the shape of OpenAI's API."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cgw.errors import Headers, Refusal
from cgw.providers.error_styles import JSON_HEADERS, clean_message, encode_error

_TYPES_AND_CODES: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}


@frozen
class OpenAIErrors:
    """OpenAI's shape (https://platform.openai.com/docs/guides/error-codes): message, type, parameter and code."""

    is_for_sdks: ClassVar[bool] = True

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        default = ("server_error" if refusal.status >= 500 else "invalid_request_error", None)
        kind, code = _TYPES_AND_CODES.get(refusal.status, default)
        error = {
            "message": clean_message(refusal.message),
            "type": kind,
            "param": refusal.param,
            # cgw's own reason is more precise than what follows from the status.
            "code": refusal.code or code,
        }
        return JSON_HEADERS, encode_error({"error": error})
