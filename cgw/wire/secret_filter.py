"""Masking of secrets in the body of a response, which may come in any pieces. Sans-I/O, and bounded.

Some providers repeat the key in their error bodies, and that key is the operator's, not the caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

from attrs import field, frozen

MIN_SECRET_LENGTH = 6
"""Shorter values are not masked: they would occur inside ordinary words."""


@frozen
class BodySecrets:
    """The secrets to mask, as they may stand in a body: as they are, in a JSON string, and URL-quoted."""

    _values: tuple[bytes, ...] = field(repr=False)
    _pattern: re.Pattern[bytes] | None = field(repr=False)

    @classmethod
    def build(cls, secrets: Iterable[str]) -> BodySecrets:
        """Return the filter for ``secrets``; those that are too short are left out."""
        values: set[bytes] = set()
        for secret in secrets:
            if len(secret) >= MIN_SECRET_LENGTH:
                in_json = json.dumps(secret)[1:-1]
                forms = (secret, in_json, in_json.replace("/", "\\/"), quote(secret, safe=""))
                values.update(form.encode("utf-8", "surrogatepass") for form in forms)
        # Longest first, so that a secret that contains another one is masked as a whole.
        longest_first = tuple(sorted(values, key=len, reverse=True))
        return cls(longest_first, re.compile(b"|".join(map(re.escape, longest_first))) if values else None)

    def open_filter(self) -> SecretFilter | None:
        """Return a filter for one body, ``None`` if there is nothing to mask."""
        return None if self._pattern is None else SecretFilter(self._values, self._pattern)


class SecretFilter:
    """Masks the secrets of one body with as many asterisks, so that its length stays the same.

    It holds back the end of what it was fed while that may be the beginning of a secret: less than the longest one.
    """

    def __init__(self, longest_first: tuple[bytes, ...], pattern: re.Pattern[bytes]) -> None:
        self._longest_first = longest_first
        self._pattern = pattern
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, and return those that can go out, masked."""
        data = self._held + data
        end = self._find_possible_start(data)
        for match in self._pattern.finditer(data):
            # A whole secret goes out masked, unless it is the beginning of a longer one.
            if match.start() < end < match.end():
                end = match.end()
        passed, self._held = data[:end], data[end:]
        return self._pattern.sub(_mask, passed)

    def close(self) -> bytes:
        """Return what was held back, masked: the body has ended."""
        held, self._held = self._held, b""
        return self._pattern.sub(_mask, held)

    def _find_possible_start(self, data: bytes) -> int:
        """Return the index of the longest end of ``data`` that a secret begins with."""
        earliest = len(data)
        for value in self._longest_first:
            at = data.find(value[:1], max(0, len(data) - len(value) + 1), earliest)
            while at >= 0 and not value.startswith(data[at:]):
                at = data.find(value[:1], at + 1, earliest)
            if at >= 0:
                earliest = at
        return earliest


def _mask(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])
