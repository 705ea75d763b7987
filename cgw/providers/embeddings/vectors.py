"""Embedding vectors as the JSON that came, which is passed on without decoding a number.

Numbers keep their digits that way, and a batch of 500 vectors costs a few milliseconds instead of a hundred.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec
from attrs import frozen

from cgw.errors import UpstreamProtocolError

Span = tuple[int, int]
"""Where something begins in a text, and where what follows it does."""

_NUMBER = rb"\s*-?[0-9][-+.0-9eE]*\s*"


@frozen
class Vectors:
    """One JSON list of numbers (or ``null``) per input, in the order of inputs. ``token_count`` is ``None`` if unknown.

    ``model`` is the name for the client.
    """

    rows: Sequence[bytes]
    model: str
    token_count: int | None


MIN_LIST_BYTES = 64
"""Shorter lists stay where they are: they are shapes and the like."""


MAX_BRACKETS = 20_000
"""How many brackets are looked at: a few for each vector of the largest request."""


def find_lists(body: bytes) -> Iterator[Span]:
    """Yield where the long innermost lists of a JSON text begin, and where the text behind them does.

    A search for brackets: what stands in strings may be taken for a list, too, and then the skeleton is no JSON.
    """
    start = body.find(b"[")
    for _ in range(MAX_BRACKETS):
        if start < 0:
            return
        end = body.find(b"]", start) + 1
        if not end:
            return
        inner = body.find(b"[", start + 1, end)
        if inner >= 0:
            start = inner
            continue
        if end - start >= MIN_LIST_BYTES:
            yield start, end
        start = body.find(b"[", end)


@frozen
class HollowBody:
    """A JSON text and its long lists, each of which is ``["<n>"]`` in the ``skeleton``.

    The skeleton is small, so that decoding it takes no time, however large the text is.
    """

    body: bytes
    spans: Sequence[Span]

    @property
    def skeleton(self) -> bytes:
        """The text without its long lists."""
        parts, at = [], 0
        for index, (start, end) in enumerate(self.spans):
            parts += [self.body[at:start], b'["%d"]' % index]
            at = end
        return b"".join([*parts, self.body[at:]])

    def find(self, marker: Sequence[str]) -> Span:
        """Return where the list is that ``marker`` stands for in the skeleton.

        Raises :exc:`~cgw.errors.UpstreamProtocolError` for anything that is no marker.
        """
        if len(marker) == 1 and marker[0].isascii() and marker[0].isdigit() and len(marker[0]) < 9:
            index = int(marker[0])
            if index < len(self.spans):
                return self.spans[index]
        raise UpstreamProtocolError("the upstream's answer has something else where numbers should be")


def build_row_splitter(dimensions: int) -> Callable[[bytes, Span], Iterator[bytes]]:
    """Return a function that splits a flat JSON list inside a text into lists of ``dimensions`` numbers, one at a time.

    It raises :exc:`~cgw.errors.UpstreamProtocolError` for anything else than such a list.
    """
    row = re.compile(rb"(?:%b,){%d}%b" % (_NUMBER, dimensions - 1, _NUMBER))

    def split(body: bytes, span: Span) -> Iterator[bytes]:
        at, end = span[0] + 1, span[1] - 1
        while (match := row.match(body, at, end)) is not None:
            yield b"[%b]" % match[0].strip()
            at = match.end()
            if at == end:
                return
            if body[at : at + 1] != b",":
                break
            at += 1
        raise UpstreamProtocolError(f"the upstream's numbers are not whole vectors of {dimensions}")

    return split


def build_pieces(vectors: Vectors, dimensions: int) -> list[bytes]:
    """Return the response's body in pieces: one for each vector, and what stands around them."""
    pieces = [
        b'%b{"index":%d,"data":%b}' % (b"," if index else b'{"embeddings":[', index, row)
        for index, row in enumerate(vectors.rows)
    ]
    model = msgspec.json.encode(vectors.model)
    pieces.append(b'],"model":%b,"dimensions":%d}\n' % (model, dimensions))
    return pieces
