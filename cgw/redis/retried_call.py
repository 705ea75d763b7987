"""A call whose first reply was an error after which it may succeed elsewhere, in another form, or a moment later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from cgw.redis.command_keys import find_first_key
from cgw.redis.lua import ScriptCall

# Short, because all pauses of a call are part of its deadline, which is 0.1 s by default.
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.025


@define(eq=False)
class RetriedCall:
    """A script call, or a command given as words, that is sent more than once within one ``deadline``.

    ``data`` is the packed command to send next, and ``has_text`` says that it is the EVAL with the script's text.
    With ``is_asking`` it must be preceded by ASKING. ``is_waiting`` is set while a request is in flight.
    """

    data: bytes
    deadline: float
    command: tuple[Any, ...] = ()
    script_call: ScriptCall | None = None
    undo: Callable[[], ScriptCall] | None = None
    has_text: bool = field(default=False, init=False)
    is_asking: bool = field(default=False, init=False)
    is_waiting: bool = field(default=False, init=False)
    redirections: int = field(default=0, init=False)
    _pause_seconds: float = field(default=_FIRST_PAUSE_SECONDS, init=False)

    @property
    def key(self) -> Any:
        """The key that decides which node serves the call, or ``None``. All keys of a call share a slot."""
        if self.script_call is None:
            return find_first_key(self.command)
        return self.script_call.keys[0] if self.script_call.keys else None

    async def pause(self) -> None:
        """Sleep a few milliseconds, longer each time, with jitter."""
        await trio.sleep(self._pause_seconds * random.uniform(0.5, 1.0))
        self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
