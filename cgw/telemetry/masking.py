"""The last line of defence against credentials in logs: what looks like one, or is known to be one, is masked.

Nothing may rely on it: code does not put credentials into messages in the first place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = "[masked]"

MIN_SECRET_LENGTH = 6
"""Shorter values are not masked by value: they would tear ordinary words apart."""

# Each pattern keeps what stands before the secret (group 1, if any). All are linear: each starts with a literal or a
# look-behind, so that hostile text of any length costs one pass.
# This one: name: value, name=value, "name": "value", (b'name', b'value'), with the scheme of an Authorization header.
_NAMED = (
    r"""((?:authorization|x-api-key|x-goog-api-key|api[-_]?key|access[-_]?token|password|passwd|secret)['"]?\s{0,8}"""
    r"""(?:[:=]|(?<=['"]),)\s{0,8}(?:b?['"])?(?:(?:bearer|basic|token)\s{1,8})?)(?!\[masked\])[^\s'",;&]+"""
)
_PATTERNS = (
    _NAMED,
    r"((?<![\w-])(?:bearer|basic)(?:\s|%20|\+){1,8})[\w.~+/=-]{6,}",
    r"((?<=://)[^/\s:@]*:)[^/\s@]+(?=@)",  # redis://user:password@host
    r"((?<=[?&])(?:key|token)=)[^\s'\"&#]+",
    # Values known by their prefix: our own, Sourcegraph's user, dotcom and licence tokens; Anthropic, OpenAI and kin,
    # Google, Fireworks, Slack; JWT.
    r"((?<![A-Za-z0-9]))(?:cgw_[0-9a-f]{16,}|sg[pds]_\w{6,}|slk_\w{6,})",
    r"((?<![A-Za-z0-9]))(?:sk-[\w-]{8,}|AIza[\w-]{20,}|fw_\w{16,}|xox[a-z]-[\w-]{8,})",
    r"((?<![\w-]))eyJ[\w-]{8,}\.[\w-]+\.[\w-]*",
)
_CREDENTIAL = re.compile("|".join(_PATTERNS), re.IGNORECASE | re.ASCII)

# Some of these is in every text that _CREDENTIAL matches. Looking for them first takes 1 µs, the pattern takes 30.
_HINTS = (
    *("authorization", "api", "access", "passw", "secret", "bearer", "basic", "://", "key=", "token="),
    *("sk-", "sgp_", "sgd_", "sgs_", "slk_", "cgw_", "aiza", "fw_", "xox", "eyj"),
)


class SecretMask:
    """Replaces credentials in text. Safe to call from any thread."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Know ``secrets``, exact values such as providers' keys, besides what can be told by its look."""
        self._secrets: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Mask ``secret`` wherever it appears from now on: as it is, URL-quoted, or within a ``repr``."""
        if len(secret) < MIN_SECRET_LENGTH:
            return
        in_repr = repr(secret)[1:-1]
        self._secrets |= {secret, quote(secret, safe=""), in_repr, in_repr.replace("'", "\\'")}
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> str:
        """``text`` with each credential replaced by ``[masked]``."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        lowered = text.lower()
        for hint in _HINTS:
            if hint in lowered:
                return _CREDENTIAL.sub(_mask_match, text)
        return text

    def __repr__(self) -> str:
        return f"<SecretMask of {len(self._secrets)} values>"


def _mask_match(match: re.Match[str]) -> str:
    kept = match.group(match.lastindex) if match.lastindex else ""
    return f"{kept}{MASK}"
