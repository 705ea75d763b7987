"""Responses of the control app."""

from __future__ import annotations

from attrs import frozen

from cgw.errors import Headers

JSON: Headers = ((b"content-type", b"application/json"),)
TEXT: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)


@frozen
class ControlResponse:
    """A response that is held in memory as a whole."""

    status: int
    headers: Headers
    body: bytes
