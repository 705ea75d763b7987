"""The reference's error bodies, and what the error bodies of all APIs share.

The shapes of each provider's API are in its package, so that each SDK raises its own exceptions.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import frozen

from cgw.errors import Headers, Refusal

JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)


def encode_error(value: dict[str, Any]) -> bytes:
    """Return ``value`` as JSON."""
    return msgspec.json.encode(value)


def clean_message(message: str) -> str:
    """Return ``message`` without lone surrogates, which UTF-8 cannot encode; odd bytes of a header may leave some."""
    return message.encode("utf-8", "replace").decode()


@frozen
class ReferenceErrors:
    """``{"error":"<text>"}`` and a newline, as in the reference, but said to be JSON (there it is sniffed as text)."""

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """The header fields and the body for ``refusal``; its own headers are the caller's to add."""
        return JSON_HEADERS, encode_error({"error": clean_message(refusal.message)}) + b"\n"
