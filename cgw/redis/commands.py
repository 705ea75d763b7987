"""redis-py's command methods on a store, for control work."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from redis.commands import AsyncCoreCommands


class CommandRunner(Protocol):
    """Anything that runs one command, given as words."""

    async def execute_command(self, *args: Any) -> Any:
        """Run one command and return the server's reply."""
        ...


class _Utf8Encoder:
    """The part of redis-py's encoder that its command methods use; its own class is not public."""

    decode_responses = False

    def encode(self, value: bytes | str) -> bytes:
        return value.encode() if isinstance(value, str) else value

    def decode(self, value: bytes | str, force: bool = False) -> bytes | str:
        return value.decode() if force and isinstance(value, bytes) else value


_ENCODER = _Utf8Encoder()


class StoreCommands(AsyncCoreCommands):
    """redis-py's command methods (``get``, ``set``, ``scan``, ...), run by a store.

    For control work: caches, prompts, maintenance. Replies are as the server sent them (``bytes``, RESP3 types),
    without redis-py's conversions, whatever its annotations say. Pipelines, transactions, subscriptions and blocking
    commands are not available, because they need a connection of their own. Raises, and is cancel-safe, as
    :meth:`cgw.redis.store.Store.execute_command`.
    """

    # Importing redis.exceptions imports redis-py as a whole, so importing this module later would save nothing.

    _is_async_client: Literal[True] = True  # selects the overloads of redis-py's methods that return awaitables
    _event_dispatcher: Any = None  # declared by redis-py's protocol for clients; no command reads it

    def __init__(self, runner: CommandRunner) -> None:
        self._runner = runner

    async def execute_command(self, *args: Any, **_options: Any) -> Any:
        """Run one command; redis-py's methods end here. Their options steer conversions that are not done."""
        return await self._runner.execute_command(*args)

    def get_encoder(self) -> _Utf8Encoder:
        """Return the encoder that some of redis-py's methods ask for."""
        return _ENCODER
