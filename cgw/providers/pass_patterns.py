"""Patterns of paths that pass unread, as settings have them, and the paths that they are compared with. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from attrs import frozen

from cgw.config.kinds import Kind

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MAX_PATTERNS = 100
PASS_HELP = (
    "Further paths of the API that pass unread, separated by commas, as in POST /v1/batches, /v1/files/*. All callers "
    "share the provider's account there; see docs/providers.md."
)

_PATTERN = re.compile(r"(?:([A-Z]+) +)?(/[A-Za-z0-9._~:*/-]+)")
_SEGMENT = re.compile(rb"[A-Za-z0-9._~!$&'()+,=:@%-]+")


# What cgw answers itself, by what an actor may use or has stored: an unread path to it would be a way around.
_OWN = re.compile(rb"v1(?:beta)?/models(?:/[^:]*)?|v1/responses(?:/.*)?", re.DOTALL | re.IGNORECASE)


@frozen
class PassPattern:
    """A method (``None``: any of :data:`METHODS`) and a path, by its segments.

    ``*`` stands for one segment, or as the last one for one or more.
    """

    method: str | None
    segments: tuple[bytes, ...]

    def __str__(self) -> str:
        path = "/" + b"/".join(self.segments).decode("ascii")
        return path if self.method is None else f"{self.method} {path}"

    @classmethod
    def parse(cls, text: str) -> PassPattern:
        """Return the pattern that ``text`` describes. Raises :exc:`ValueError`."""
        match = _PATTERN.fullmatch(text)
        segments = () if match is None else tuple(match[2][1:].encode("ascii").split(b"/"))
        if match is None or any(segment in (b"", b".", b"..") for segment in segments):
            raise ValueError("must be paths such as /v1/files/* or POST /v1/batches, separated by commas")
        if any(b"*" in segment and segment != b"*" for segment in segments) or segments[0] == b"*":
            raise ValueError("must have * for whole segments only, and not for the first one")
        if match[1] is not None and match[1] not in METHODS:
            raise ValueError(f"must have one of the methods {', '.join(METHODS)}")
        return cls(match[1], segments)

    def matches(self, method: bytes, segments: Sequence[bytes]) -> bool:
        """Return whether a request matches."""
        name = method.decode("latin-1")
        if name not in METHODS if self.method is None else name != self.method:
            return False
        own = self.segments
        if len(segments) < len(own) or (len(segments) > len(own) and own[-1] != b"*"):
            return False
        return all(mine in (b"*", theirs) for mine, theirs in zip(own, segments, strict=False))


def is_own(segments: Sequence[bytes]) -> bool:
    """Return whether cgw answers the path below a provider's prefix itself: lists of models, stored responses."""
    return _OWN.fullmatch(unquote_to_bytes(b"/".join(segments))) is not None


def _parse_patterns(text: str) -> tuple[PassPattern, ...]:
    if text.strip() == "none":
        return ()
    patterns = tuple(PassPattern.parse(part.strip()) for part in text.split(",") if part.strip())
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise ValueError(f"must name 1 to {MAX_PATTERNS} paths, separated by commas")
    return patterns


PASS_ROUTES: Kind[tuple[PassPattern, ...]] = Kind(
    _parse_patterns, lambda patterns: ", ".join(map(str, patterns)) or "none"
)
"""The kind of a list of patterns; ``none`` for an empty one."""


def split_path(path: bytes) -> tuple[bytes, ...] | None:
    """Return the segments of a path that every server reads alike; ``None`` for any other.

    Refused are empty and dot segments, backslashes, semicolons (Java's servers cut a segment there, and ``..;`` is
    ``..``), text that is not ASCII, and escapes of anything that has a meaning in paths: an upstream that resolves them
    would serve another path than the one that was checked.
    """
    segments = tuple(path[1:].split(b"/"))
    for segment in segments:
        if _SEGMENT.fullmatch(segment) is None:
            return None
        decoded = unquote_to_bytes(segment)
        # Escapes that are malformed or doubled stay in the decoded text.
        if decoded in (b".", b"..") or any(not 0x20 <= byte < 0x7F or byte in b"/\\%?#;" for byte in decoded):
            return None
    return segments
