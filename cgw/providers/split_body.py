"""Large request bodies whose bulk is one list, such as ``messages``: the list is decoded once, and copied as it came.

What stands around the list is a small JSON object of its own, the *skeleton*, in which a placeholder stands for it. If
the skeleton is an object with the placeholder as one of its values, and the list is JSON, then the body is that object
with that list in it: that is how JSON is composed. So fields can be changed in the skeleton, without another pass over
a megabyte to find out where each of them stands.
"""

from __future__ import annotations

import re
import secrets
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from cgw.providers.body_density import check_density

WINDOW_BYTES = 64 * 1024
"""The bytes at the start in which the list has to begin, and those at the end in which it has to end."""

MAX_ENDS = 8
"""The most places that are tried as the list's end. Those inside a text or deeper inside leave no valid skeleton."""

# A list's end with another field, or the object's end, behind it.
_END = re.compile(rb'\](?=[ \t\r\n]*(?:,[ \t\r\n]*"|\}[ \t\r\n]*\Z))')

_decode = msgspec.json.Decoder().decode


class SplitBody(msgspec.Struct, frozen=True, gc=False):
    """A body, as :func:`split_body` returns it. ``raw`` is the decoded object, ``value`` the list as JSON,
    ``placeholder`` what stands for it in ``skeleton``, as JSON."""

    body_bytes: int
    raw: dict[str, Any]
    skeleton: bytes
    placeholder: bytes
    value: memoryview

    def __len__(self) -> int:
        return self.body_bytes

    def fill(self, skeleton: bytes) -> bytes:
        """Return a changed skeleton with the list in its place."""
        before, _, after = skeleton.partition(self.placeholder)
        return b"".join((before, self.value, after))


def split_body(body: bytes, name: str) -> SplitBody | None:
    """Decode a body and split it around the list in its field ``name``; ``None`` where that cannot be done.

    The reason may be as harmless as a skeleton that is longer than :data:`WINDOW_BYTES` allow: nothing follows from it.
    Raises :exc:`~cgw.errors.Refusal` as :func:`~cgw.providers.body_density.check_density` does.
    """
    key = _compile_key(name).search(body, 0, WINDOW_BYTES)
    if key is None:
        return None
    start = key.end()
    # Random: a client that knew it could write it itself, in any of JSON's spellings, in the place that is checked.
    mark = secrets.token_hex(16)
    placeholder = b'"%b"' % mark.encode("ascii")
    # The first end that leaves a valid skeleton is the list's: all that close before it are inside the list.
    for found in islice(_END.finditer(body, max(start, len(body) - WINDOW_BYTES)), MAX_ENDS):
        skeleton = b"".join((body[:start], placeholder, body[found.end() :]))
        try:
            raw = _decode(skeleton)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        # The list may be another value: a field deeper inside has the same name, or one further on.
        if not isinstance(raw, dict) or raw.get(name) != mark:
            return None
        check_density(body)
        value = memoryview(body)[start : found.end()]
        try:
            raw[name] = _decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return SplitBody(len(body), raw, skeleton, placeholder, value)
    return None


@lru_cache(maxsize=16)
def _compile_key(name: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*(?=\[)' % re.escape(name.encode("ascii")))
