"""The source of actors from a TOML file, which is read again when it changes (see :mod:`cgw.actors.actors_file`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from cgw.actors.actors_file import ActorsFile, FileVersion
from cgw.actors.policies import STATIC
from cgw.actors.source import ActorList, NotFromSource
from cgw.actors.tokens import hash_token
from cgw.errors import ConfigError
from cgw.model import Actor

T = TypeVar("T")

COOLDOWN_SECONDS = 5.0
"""Reading a file is cheap, so this is short: it only stops a caller that hammers from keeping the disk busy."""

WATCH_SECONDS = 3.0
"""How often the file is looked at."""

RELOAD_SECONDS = 30.0
"""How long the watch waits for a file on a disk that hangs, before it tries again."""

logger = logging.getLogger("cgw.actors")


class StaticSource:
    """Knows the tokens whose hashes its file lists. An ``Updater`` and a ``Runner``, see :mod:`cgw.actors.source`."""

    name = STATIC
    cooldown_seconds = COOLDOWN_SECONDS

    def __init__(self, actors_by_hash: Mapping[str, Actor], file: ActorsFile, version: FileVersion) -> None:
        """``actors_by_hash`` has the tokens' SHA-256 in lower-case hex as keys; it is ``version`` of ``file``."""
        self._actors_by_hash = dict(actors_by_hash)
        self._file = file
        self._version = version
        # What is wrong with `_version` of the file, if anything; then the actors are those of an earlier version.
        self._error: ConfigError | None = None
        self._trouble: str | None = None
        # Callers that find the same edit wait for the first one's reading.
        self._updating = trio.Lock()
        # A thread that hangs on its disk is abandoned; the next one waits for it, so there is never more than one.
        self._thread_limiter = trio.CapacityLimiter(1)

    async def get(self, token: str, client: str = "") -> Actor:
        """Return the actor of ``token``. Raises :exc:`~cgw.actors.source.NotFromSource` if the file does not list it.

        One hash and one look-up, whatever the number of actors; does not block.
        """
        # Hashes are compared, not tokens: how long it takes says nothing about the tokens that there are.
        actor = self._actors_by_hash.get(hash_token(token)) if token else None
        if actor is None:
            raise NotFromSource
        return actor

    def describe(self) -> str | None:
        """Return one sentence for operators while the file is wrong, and the actors are those of an earlier version."""
        return self._trouble

    def recall(self, token_hash: str) -> Actor | None:
        """See :class:`~cgw.actors.source.Recaller`."""
        return self._actors_by_hash.get(token_hash)

    @property
    def actors(self) -> tuple[Actor, ...]:
        """All actors of the file, in its order."""
        # An actor is there once per token; ids are unique within a file.
        return tuple({actor.id: actor for actor in self._actors_by_hash.values()}.values())

    async def list_actors(self, *, max_actors: int, seconds: float) -> ActorList:
        """See :class:`~cgw.actors.source.Lister`."""
        return ActorList(self.actors[:max_actors], len(self.actors) <= max_actors)

    async def update(self, actor: Actor, token: str) -> None:
        """See :meth:`reload`; ``actor`` and ``token`` do not matter, as the file has them all."""
        await self.reload()

    async def reload(self) -> None:
        """Read the file again if it has changed since it was read last; the whole table changes at once, or not.

        Raises :exc:`~cgw.errors.ConfigError` with every problem (as :func:`load_static_actors`) while the file is
        wrong or missing; what was read before stays in force. A wrong file is parsed once, however often it is
        asked for. Cancel-safe: nothing changes then.
        """
        try:
            await self._reload()
        except ConfigError:
            # Without the problems: they are logged, and anybody may be able to read healthz.
            self._trouble = "the actors file cannot be used now (see the log); what was read before stays in force"
            raise
        self._trouble = None

    async def _reload(self) -> None:
        file = self._file
        async with self._updating:
            # In a thread, as the file may be on a network file system.
            if await self._run_blocking(file.get_version) == self._version:
                if self._error is not None:
                    # A new exception each time: the same object would collect the tracebacks of all callers.
                    raise ConfigError(self._error.problems)
                return
            version, content = await self._run_blocking(file.read)
            try:
                actors_by_hash = await self._run_blocking(partial(file.parse, content))
            except ConfigError as error:
                # Keep the version too, so that the same wrong file is not parsed again.
                self._version, self._error = version, error
                raise
            # One mapping replaces the other, so get() never sees a mixture.
            self._version, self._error, self._actors_by_hash = version, None, actors_by_hash
        logger.info("the actors were read again from %s: %d", file.path, len(self.actors))

    async def run(self) -> None:
        """Read the file again soon after it changes, until cancelled: a removed token stops working then.

        A wrong edit is logged once, and what was read before stays in force.
        """
        logged: tuple[str, ...] | None = None
        while True:
            await trio.sleep(WATCH_SECONDS)
            try:
                with trio.move_on_after(RELOAD_SECONDS):
                    await self.reload()
                logged = None
            except ConfigError as error:
                if error.problems != logged:
                    logged = error.problems
                    logger.error("the actors stay as they were: %s", "; ".join(error.problems))

    async def _run_blocking(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._thread_limiter)


def load_static_actors(path: Path, *, percentage: int, interval_ms: int) -> StaticSource:
    """Read the actors file. ``percentage`` and ``interval_ms`` are the settings of the short-term rate. Blocks.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, each beginning with the file's path and the key's.
    """
    file = ActorsFile(path, percentage, interval_ms)
    version, content = file.read()
    return StaticSource(file.parse(content), file, version)
