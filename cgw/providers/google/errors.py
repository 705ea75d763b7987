"""Error bodies in the shape of Google's APIs."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import frozen

from cgw.errors import MISSING_TOKEN, UNKNOWN_TOKEN, Headers, Refusal
from cgw.providers.error_styles import JSON_HEADERS, clean_message, encode_error

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

# The API's own texts.
_WORDS = {
    MISSING_TOKEN: "Method doesn't allow unregistered callers (callers without established identity). "
    "Please use API Key or other form of API consumer identity to call this API.",
    UNKNOWN_TOKEN: "API key not valid. Please pass a valid API key.",
}
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_REQUEST_INFO = "type.googleapis.com/google.rpc.RequestInfo"


@frozen
class GoogleErrors:
    """Google's shape (https://cloud.google.com/apis/design/errors): code, message, the code's name, and details."""

    is_for_sdks: ClassVar[bool] = True
    takes_key_in_query: ClassVar[bool] = True

    def render(self, refusal: Refusal, request_id: str | None = None) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        message = _WORDS.get(refusal.code or "") or clean_message(refusal.message)
        status = _STATUSES.get(refusal.status) or _STATUSES[500 if refusal.status >= 500 else 400]
        error: dict[str, Any] = {"code": refusal.status, "message": message, "status": status}
        details: list[dict[str, Any]] = []
        if refusal.param is not None:
            violation = {"field": refusal.param, "description": message}
            details.append({"@type": _BAD_REQUEST, "fieldViolations": [violation]})
        if request_id is not None:
            details.append({"@type": _REQUEST_INFO, "requestId": request_id})
        if details:
            error["details"] = details
        return JSON_HEADERS, encode_error({"error": error})
