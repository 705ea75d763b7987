"""The words of an upstream's error, for the log: without what the caller sent. Pure.

Some APIs quote the request in their errors, and prompts are not logged.
"""

from __future__ import annotations

import re

LOGGED_CHARACTERS = 300
"""The part of an error's body that is logged."""

MAX_SENT_BYTES = 256 * 1024
"""The largest request that is compared with the words, in 1 ms; those of errors about larger ones are withheld."""

_PIECE, _STEP = 20, 4
"""Every run of 23 characters that words and request share has a piece at a step of this length."""

_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)

WITHHELD = "its words repeat the request"


def describe_words(body: bytes, sent: bytes, names: tuple[str, ...] = ()) -> str:
    """Return the beginning of the error ``body`` in one line; a note where it repeats 23 characters of ``sent``.

    ``names`` are what it may repeat, such as the model's.
    """
    words = " ".join(body[: 4 * LOGGED_CHARACTERS].decode("utf-8", "replace").split())[:LOGGED_CHARACTERS]
    if not words:
        return "without a body"
    compared = _unescape(words)
    for name in names:
        compared = compared.replace(name, "\0")
    if len(compared) < _PIECE:
        return words
    if len(sent) > MAX_SENT_BYTES:
        return WITHHELD
    text = _unescape(" ".join(sent.decode("utf-8", "replace").split()))
    for start in range(0, len(compared) - _PIECE + 1, _STEP):
        if compared[start : start + _PIECE] in text:
            return WITHHELD
    return words


def _unescape(text: str) -> str:
    """Undo JSON's escapes, of any depth: errors quote requests inside of strings."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(
        lambda match: chr(int(match[1], 16)) if match[1] else " " if match[2] in "ntr" else match[2], text
    )
