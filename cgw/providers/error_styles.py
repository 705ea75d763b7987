"""Error bodies in the reference's shape, and the steps that all error styles share.

The error style of a provider's API is in the provider's package.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from attrs import frozen

from cgw.errors import Headers, Refusal

JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)


def encode_error(value: dict[str, Any]) -> bytes:
    """Return ``value`` as JSON."""
    return msgspec.json.encode(value)


def clean_message(message: str) -> str:
    """Return ``message`` with a question mark for each lone surrogate, which UTF-8 cannot encode.

    Bytes of a header that are not UTF-8 are decoded to such surrogates.
    """
    return message.encode("utf-8", "replace").decode()


@frozen
class ReferenceErrors:
    """``{"error":"<text>","request_id":"…"}`` and a newline: the reference's shape with an id, typed as JSON."""

    is_for_sdks: ClassVar[bool] = False
    takes_key_in_query: ClassVar[bool] = False

    def render(self, refusal: Refusal, request_id: str | None = None) -> tuple[Headers, bytes]:
        """See :meth:`cgw.providers.dialect.ErrorStyle.render`."""
        error = {"error": clean_message(refusal.message)}
        if request_id is not None:
            error["request_id"] = request_id
        return JSON_HEADERS, encode_error(error) + b"\n"
