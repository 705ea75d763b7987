"""Error bodies in the shape of Anthropic's API."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import frozen

from cgw.errors import MISSING_TOKEN, UNKNOWN_TOKEN, Headers, Refusal
from cgw.providers.error_styles import JSON_HEADERS, clean_message, encode_error

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    414: "request_too_large",
    429: "rate_limit_error",
    431: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

# The API's own texts: Claude Code looks for "x-api-key" in them to say that the key is wrong.
_WORDS = {MISSING_TOKEN: "x-api-key header is required", UNKNOWN_TOKEN: "invalid x-api-key"}


@frozen
class AnthropicErrors:
    """Anthropic's shape (https://platform.claude.com/docs/en/api/errors): the ``type`` follows from the status."""

    is_for_sdks: ClassVar[bool] = True
    takes_key_in_query: ClassVar[bool] = False

    def render(self, refusal: Refusal, request_id: str | None = None) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        default = "api_error" if refusal.status >= 500 else "invalid_request_error"
        message = _WORDS.get(refusal.code or "", refusal.message)
        error = {"type": _TYPES.get(refusal.status, default), "message": clean_message(message)}
        answer: dict[str, Any] = {"type": "error", "error": error}
        if request_id is not None:
            answer["request_id"] = request_id  # where the API has its own, too
        return JSON_HEADERS, encode_error(answer)
