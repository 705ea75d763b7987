"""The shape of a source's tokens: what can be told of a token without asking anyone."""

from __future__ import annotations

import re

from attrs import frozen

_DIGITS = re.compile("[0-9a-f]{64}")


@frozen
class TokenShape:
    """``prefix`` and 64 lower-case hex digits. ``old_prefix`` was its name earlier, and means the same token."""

    prefix: str
    old_prefix: str | None = None

    def recognise(self, token: str) -> str | None:
        """Return ``token`` with its present prefix; ``None`` if it has another one."""
        if token.startswith(self.prefix):
            return token
        old = self.old_prefix
        if old is not None and token.startswith(old):
            return self.prefix + token[len(old) :]
        return None

    def is_whole(self, token: str) -> bool:
        """Return whether what follows the prefix of a recognised token is right."""
        # Lower case only, as the tokens are made: other spellings of one token would be as many unknown ones.
        return _DIGITS.fullmatch(token, len(self.prefix)) is not None


DOTCOM_USER_TOKEN = TokenShape("sgd_")
"""The reference's §2.5."""

SUBSCRIPTION_TOKEN = TokenShape("slk_", old_prefix="sgs_")
"""The reference's §2.7."""
