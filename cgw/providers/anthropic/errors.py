"""Error bodies in the shape of Anthropic's API."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cgw.errors import Headers, Refusal
from cgw.providers.error_styles import JSON_HEADERS, clean_message, encode_error

_TYPES = {
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


@frozen
class AnthropicErrors:
    """Anthropic's shape (https://platform.claude.com/docs/en/api/errors): the ``type`` follows from the status."""

    is_for_sdks: ClassVar[bool] = True

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        default = "api_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"type": _TYPES.get(refusal.status, default), "message": clean_message(refusal.message)}
        return JSON_HEADERS, encode_error({"type": "error", "error": error})
