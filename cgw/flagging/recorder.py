"""Flagged prompts in Redis, for those who look into abuse (the reference's §6.4)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import trio
from attrs import field, frozen
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis.lua import LuaScript
from cgw.redis.opening import Store

MAX_PROMPTS = 1000
"""How many are kept; beyond that the oldest goes. With :data:`MAX_PROMPT_BYTES`, 256 MiB at most."""

MAX_PROMPT_BYTES = 256 * 1024
"""What is longer is cut: an actor must not be able to fill Redis."""

MAX_WAITING = 32
"""Prompts that wait to be written; while there are so many, further ones are dropped."""

_TAG = "cgw:{prompts}:"
_INDEX = f"{_TAG}index"

# Of feature and user nothing is known but that they are no colons; bounded, as it comes from a URL.
_NAME = re.compile(r"prompt:([0-9a-f]{32}):([a-z_]{1,40}):([^:\s]{1,200})")

logger = logging.getLogger("cgw.flagging")


@frozen
class PromptName:
    """The name of a kept prompt: ``prompt:<trace id>:<feature>:<actor id>``."""

    trace_id: str
    feature: str
    actor_id: str

    def __str__(self) -> str:
        return f"prompt:{self.trace_id}:{self.feature}:{self.actor_id}"

    @classmethod
    def parse(cls, text: str) -> PromptName | None:
        """Return the name that ``text`` is; ``None`` if it is none."""
        match = _NAME.fullmatch(text)
        return None if match is None else cls(match[1], match[2], match[3])


@frozen
class _Recorded:
    name: PromptName
    prompt: bytes = field(repr=False)


class PromptRecorder:
    """Writes flagged prompts to ``store`` while :meth:`run` runs, each for ``ttl_seconds``, and reads them.

    There are ``max_prompts`` at most.
    """

    def __init__(self, store: Store, ttl_seconds: float, *, max_prompts: int = MAX_PROMPTS) -> None:
        self._store = store
        self._max_prompts = max_prompts
        self._ttl_ms = round(ttl_seconds * 1000)
        self._record, self._list = _load("record_prompt"), _load("list_prompts")
        self.dropped = 0
        """Prompts that were not kept, since the start."""
        self._send, self._receive = trio.open_memory_channel[_Recorded](MAX_WAITING)

    def record(self, name: PromptName, prompt: str) -> None:
        """Have ``prompt`` written soon, so that nobody waits for Redis. Never blocks.

        While :data:`MAX_WAITING` wait, it is dropped, and the log says so.
        """
        data = prompt[:MAX_PROMPT_BYTES].encode("utf-8", "replace")[:MAX_PROMPT_BYTES]
        try:
            self._send.send_nowait(_Recorded(name, data))
        except trio.WouldBlock:
            self.dropped += 1
            logger.warning("flagged prompt %s is not kept: %d others wait for Redis", name, MAX_WAITING)

    async def run(self) -> None:
        """Write what is recorded, until cancelled; what waits then is dropped."""
        while True:
            recorded = await self._receive.receive()
            name = str(recorded.name)
            keys, arguments = (_INDEX, _TAG + name), (name, recorded.prompt, self._ttl_ms, self._max_prompts, _TAG)
            try:
                await self._run(self._record, keys, arguments)
            except StoreUnavailable as error:
                self.dropped += 1
                logger.warning("flagged prompt %s is not kept: %s", name, error)

    async def list_names(self) -> Sequence[PromptName]:
        """Return the names of all prompts that are kept. Raises :exc:`~cgw.errors.StoreUnavailable`."""
        names = await self._run(self._list, (_INDEX,), ())
        return [parsed for name in names if (parsed := PromptName.parse(name.decode("utf-8", "replace"))) is not None]

    async def read(self, name: PromptName) -> bytes | None:
        """Return a kept prompt; ``None`` if there is none. Raises :exc:`~cgw.errors.StoreUnavailable`."""
        try:
            found: bytes | None = await self._store.execute_command("GET", f"{_TAG}{name}")
        except ResponseError as error:
            raise StoreUnavailable(f"Redis cannot read a flagged prompt: {error}") from None
        return found

    async def _run(self, script: LuaScript, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        try:
            return await self._store.run_script(script, keys, arguments)
        except ResponseError as error:
            # A key of another type, say: someone else's.
            raise StoreUnavailable(f"Redis cannot keep flagged prompts: {error}") from None


def _load(name: str) -> LuaScript:
    return LuaScript.from_text(files(__package__).joinpath(f"lua/{name}.lua").read_text("utf-8"))
