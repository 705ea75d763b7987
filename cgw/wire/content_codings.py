"""Decoding of compressed bodies, in any pieces. Sans-I/O, and bounded: a decoded piece is as small as its caller wants.

cgw asks upstreams for ``identity``, because usage is read, and secrets are masked, in the bytes that pass. Some servers
and proxies compress all the same, and the client may not even be able to read it.
"""

from __future__ import annotations

import zlib

from cgw.errors import UpstreamProtocolError
from cgw.wire.messages import ResponseHead

MAX_PIECE_BYTES = 64 * 1024
"""The most that one call returns: a few kilobytes can decode to gigabytes."""

_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say that there is a gzip header
_WINDOW_BITS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}
_FRAMING = (b"content-encoding", b"content-length", b"transfer-encoding")


class BodyDecoder:
    """Decodes one body: after each :meth:`feed`, :meth:`take` is to be called until it returns nothing."""

    def __init__(self, coding: bytes) -> None:
        self._inflater = zlib.decompressobj(_WINDOW_BITS[coding])
        self._pending = b""
        self._has_begun = False

    def feed(self, data: bytes) -> None:
        """Add bytes as they came."""
        self._pending += data
        self._has_begun = True

    def take(self) -> bytes:
        """Return up to :data:`MAX_PIECE_BYTES` of the decoded body, nothing where more has to be fed first.

        Raises :exc:`~cgw.errors.UpstreamProtocolError` for data that is not valid, or that goes on behind its end.
        """
        try:
            # Nothing, and at once, once its end was seen.
            piece = self._inflater.decompress(self._pending, MAX_PIECE_BYTES)
        except zlib.error as error:
            raise UpstreamProtocolError(f"the upstream's compressed body is not valid: {error}") from None
        if self._inflater.unused_data and not piece:
            raise UpstreamProtocolError("the upstream's compressed body goes on behind its end")
        self._pending = self._inflater.unconsumed_tail
        return piece

    def close(self) -> None:
        """Note the end of the body. Raises :exc:`~cgw.errors.UpstreamProtocolError` if the data is cut off."""
        if self._has_begun and not self._inflater.eof:  # no data at all is an empty body
            raise UpstreamProtocolError("the upstream's compressed body is cut off")


def open_decoder(head: ResponseHead) -> tuple[ResponseHead, BodyDecoder | None]:
    """Return the decoder of a body that is compressed, and the head of what it decodes to, which has no length.

    A body without content coding needs no decoder. Raises :exc:`~cgw.errors.UpstreamProtocolError` for a coding other
    than gzip and deflate, and for several at once.
    """
    codings = [value.strip().lower() for name, value in head.headers if name == b"content-encoding"]
    if all(coding in (b"", b"identity") for coding in codings):
        return head, None
    if len(codings) != 1 or codings[0] not in _WINDOW_BITS:
        shown = ascii(b", ".join(codings)[:40].decode("latin-1"))
        raise UpstreamProtocolError(f"the upstream's response has the content coding {shown}, which was not asked for")
    headers = tuple(field for field in head.headers if field[0] not in _FRAMING)
    return ResponseHead(head.status, headers, head.http_version, head.reason), BodyDecoder(codings[0])
