"""Bounds the time that decoding a request body takes, in which no other task runs, before it is decoded."""

from __future__ import annotations

from cgw.errors import Refusal

MAX_UNCOUNTED_BYTES = 1_250_000
"""Parts and texts are counted in larger bodies: whatever one of this size holds, decoding takes some 60 ms at most."""

MAX_PARTS = 250_000
"""The most objects and lists of a body. What stands in texts counts, too: a text of four megabytes that is nothing but
JSON has half as many."""

MAX_QUOTES = 400_000
"""The most quotation marks around names of fields and texts, two for each. Those inside of texts are escaped, and don't
count. Each name or text takes 0.1 to 0.6 microseconds."""


def check_density(body: bytes) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (400) for a large body of so many parts that decoding it takes too long.

    Counting takes 0.8 ms for a megabyte.
    """
    if len(body) <= MAX_UNCOUNTED_BYTES:
        return
    if body.count(b"{") + body.count(b"[") > MAX_PARTS:
        raise Refusal(400, f"failed to parse request body: more than {MAX_PARTS} objects and lists")
    # A text that ends with a backslash hides its last quotation mark behind it, but not its first.
    if (quotes := body.count(b'"')) > MAX_QUOTES and quotes - body.count(b'\\"') > MAX_QUOTES:
        raise Refusal(400, f"failed to parse request body: more than {MAX_QUOTES // 2} names and texts")
