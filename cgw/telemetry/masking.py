"""Masking of credentials in the log: known values, and text that looks like a credential.

This is the last line of defence only: code must not put credentials into messages in the first place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = "[masked]"

MIN_SECRET_LENGTH = 6
"""Shorter values are not masked: they would occur inside ordinary words."""

# Each pattern keeps the text before the secret in its group. All of them take linear time on hostile text: each
# begins with a literal or a look-behind, and repetitions that could overlap are bounded.
#
# name: value, name=value, "name": "value", (b'name', b'value'), with the scheme of an Authorization header.
_NAMED = (
    r"""((?:authorization|x-api-key|x-goog-api-key|api[-_]?key|access[-_]?token|password|passwd|secret)['"]?\s{0,8}"""
    r"""(?:[:=]|(?<=['"]),)\s{0,8}(?:b?['"])?(?:(?:bearer|basic|token)\s{1,8})?)(?!\[masked\])[^\s'",;&]+"""
)
_PATTERNS = (
    _NAMED,
    r"((?<![\w-])(?:bearer|basic)(?:\s|%20|\+){1,8})[\w.~+/=-]{6,}",
    r"((?<=://)[^/\s:@]*:)[^/\s@]+(?=@)",  # redis://user:password@host
    r"((?<=[?&])(?:key|token)=)[^\s'\"&#]+",
    # Values with a known prefix: tokens of cgw's own and Sourcegraph's user, dotcom and licence tokens; keys of
    # Anthropic and OpenAI (sk-), Google, Fireworks and Slack; JSON Web Tokens.
    r"((?<![A-Za-z0-9]))(?:cgw_[0-9a-f]{16,}|sg[pds]_\w{6,}|slk_\w{6,})",
    r"((?<![A-Za-z0-9]))(?:sk-[\w-]{8,}|AIza[\w-]{20,}|fw_\w{16,}|xox[a-z]-[\w-]{8,})",
    r"((?<![\w-]))eyJ[\w-]{8,}\.[\w-]+\.[\w-]*",
)
_CREDENTIAL = re.compile("|".join(_PATTERNS), re.IGNORECASE | re.ASCII)

# Every text that _CREDENTIAL matches contains one of these, in lower case, or "://" and "@". Searching for them takes
# 2 µs, for the pattern 30 µs. "://" alone would be no hint: many user agents hold an address.
_HINTS = (
    *("authorization", "key", "access", "passw", "secret", "bearer", "basic", "token="),
    *("sk-", "sgp_", "sgd_", "sgs_", "slk_", "cgw_", "aiza", "fw_", "xox", "eyj"),
)


class SecretMask:
    """Replaces credentials in text: ``secrets``, and whatever looks like a credential. Safe to call from any thread.

    ``secrets`` are exact values such as providers' keys; found as they are, URL-quoted, in a ``repr`` and in JSON.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values: set[str] = set()
        for secret in secrets:
            if len(secret) >= MIN_SECRET_LENGTH:
                # repr() chooses its quotes by what the whole text contains, so a quote in a secret may be escaped or
                # not.
                in_repr = repr(secret)[1:-1]
                in_json = json.dumps(secret, ensure_ascii=False)[1:-1]
                values |= {secret, quote(secret, safe=""), in_repr, in_repr.replace("'", "\\'"), in_json}
        self._value_count = len(values)
        # Longest first, so that a secret that contains another one is masked as a whole.
        self._longest_first = sorted(values, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, self._longest_first))) if values else None

    def __call__(self, text: str) -> str:
        """Return ``text`` with each credential replaced by ``[masked]``."""
        if not self.may_change(text):
            return text
        if self._values is not None:
            # Before the patterns: one of them could mask a part of a known value, whose rest would not be found then.
            text = self._values.sub(MASK, text)
        return _CREDENTIAL.sub(_mask_match, text)

    def may_change(self, text: str) -> bool:
        """Return false only if masking leaves ``text``, and every part of it, as it is."""
        # Loops, because any() over a generator takes twice as long.
        for value in self._longest_first:
            if value in text:
                return True
        lowered = text.lower()
        for hint in _HINTS:
            if hint in lowered:
                return True
        return "@" in lowered and "://" in lowered

    def __repr__(self) -> str:
        return f"<SecretMask of {self._value_count} values>"


def _mask_match(match: re.Match[str]) -> str:
    kept = match.group(match.lastindex) if match.lastindex else ""
    return f"{kept}{MASK}"
