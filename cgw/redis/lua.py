"""Lua scripts, and calls of them with keys and arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import field, frozen

from cgw.redis.handshake import pack_command


@frozen
class LuaScript:
    """A Lua script: its text, and the SHA-1 under which servers cache it."""

    text: str = field(repr=False)
    sha1: str

    @classmethod
    def from_text(cls, text: str) -> LuaScript:
        """Return the script with this text."""
        # Redis identifies cached scripts by SHA-1; nothing depends on its strength.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def pack_load(self) -> bytes:
        """Return the packed ``SCRIPT LOAD``, which makes a server cache the script."""
        return pack_command(("SCRIPT", "LOAD", self.text))


@frozen
class ScriptCall:
    """One call of a script with ``keys`` (all in one cluster slot) and ``args``."""

    script: LuaScript
    keys: Sequence[bytes | str]
    args: Sequence[bytes | str | int]

    def pack_evalsha(self) -> bytes:
        """Return the packed ``EVALSHA``, which fails with NOSCRIPT where the server has not cached the script."""
        return pack_command(("EVALSHA", self.script.sha1, len(self.keys), *self.keys, *self.args))

    def pack_eval(self) -> bytes:
        """Return the packed ``EVAL``, which runs the script's text and makes the server cache it."""
        return pack_command(("EVAL", self.script.text, len(self.keys), *self.keys, *self.args))
