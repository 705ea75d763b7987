"""Host names, looked up so that a name whose look-up hangs delays no other.

:func:`socket.getaddrinfo` blocks, for half a minute if no name server answers. Trio runs it in a thread, out of 40 that
everything shares: a single name that hangs would take them all. So each name has a few threads of its own here, callers
share a look-up, and the last addresses are used while none succeeds::

    unknown ──look-up──► fresh ──FRESH_SECONDS──► known ──look-up──► fresh
       │                   ▲                        │ fails, or takes more than PATIENCE_SECONDS
       │ fails: error      └────── succeeds ────────┤
       ▼                                            ▼
    unknown                                 the known addresses, for STALE_SECONDS; then the error

Trio asks it for every host name of the run (:func:`trio.socket.set_custom_hostname_resolver`): upstreams, Redis, and
httpx, which connects by :func:`trio.open_tcp_stream`. "Happy eyeballs" over the addresses stays Trio's.
"""

from __future__ import annotations

import logging
import math
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from attrs import define, field, frozen

from cgw.errors import explain_os_error
from cgw.lifetime import open_background_task

FRESH_SECONDS = 5.0
"""How long addresses are used without a new look-up. The system does not tell how long a record is valid; this is the
shortest validity in use, that of names which fail over."""

PATIENCE_SECONDS = 0.25
"""How long a look-up may take before known addresses are used instead."""

STALE_SECONDS = 3600.0
"""How long addresses are used while look-ups fail. Not for ever: another service may have them by then."""

FAILED_SECONDS = 1.0
"""How long a failure stands before the name is looked up again, so that retries don't load the name server."""

OVERDUE_SECONDS = 5.0
"""A look-up that takes longer may have been forgotten by the name server: the next caller starts another one."""

THREADS_PER_NAME = 2
MAX_NAMES = 256

LookUp = Callable[..., Sequence[Any]]
"""Takes and returns what :func:`socket.getaddrinfo` does."""

_Question = tuple[bytes | str | None, bytes | str | int, int, int, int, int]

_logger = logging.getLogger("cgw.resolver")


@frozen
class ResolverStatistics:
    """``names`` in the cache, look-ups ``started`` and ``pending``, and ``stale`` answers since the start."""

    names: int
    started: int
    pending: int
    stale: int


@define(eq=False)
class _Name:
    """The knowledge about one name. Times are Trio's."""

    question: _Question
    addresses: Sequence[Any] = ()
    found_at: float = 0.0
    # The last outcome, if it was a failure.
    error: OSError | None = None
    failed_at: float = 0.0
    is_reported: bool = False
    # When the look-ups that are under way were started, the oldest first.
    started_at: list[float] = field(factory=list)
    outcomes: int = 0
    has_outcome: trio.Event = field(factory=trio.Event)
    # Not the run's own limiter: threads that hang would keep its tokens from everything else.
    limiter: trio.CapacityLimiter = field(factory=partial(trio.CapacityLimiter, THREADS_PER_NAME))

    @property
    def display_name(self) -> str:
        host = self.question[0]
        return host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)

    def is_known(self, now: float, seconds: float) -> bool:
        """Return whether there are addresses that were found within ``seconds``."""
        return bool(self.addresses) and now - self.found_at < seconds

    def needs_look_up(self, now: float) -> bool:
        if self.started_at:
            return len(self.started_at) < THREADS_PER_NAME and now - self.started_at[-1] >= OVERDUE_SECONDS
        return self.error is None or now - self.failed_at >= FAILED_SECONDS


class Resolver(trio.abc.HostnameResolver):
    """Looks names up by ``look_up``, which blocks, in threads. Made by :func:`open_resolver`."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up_blocking = look_up
        # Those that were asked for last are at the end.
        self._names: OrderedDict[_Question, _Name] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.is_running = trio.Event()
        self._started = self._stale = 0

    def statistics(self) -> ResolverStatistics:
        """Return a snapshot of the counters."""
        pending = sum(len(name.started_at) for name in self._names.values())
        return ResolverStatistics(len(self._names), self._started, pending, self._stale)

    async def run(self) -> None:
        """Serve look-ups until cancelled; then abandon the threads of those that hang, which are daemons."""
        async with trio.open_nursery() as self._nursery:
            self.is_running.set()
            await trio.sleep_forever()

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """Return the addresses of ``host`` as :func:`socket.getaddrinfo` does; at once if they are known and fresh.

        Raises :exc:`OSError` if it cannot be looked up and no addresses of the last :data:`STALE_SECONDS` are known.
        Cancel-safe: a look-up goes on, for other callers and for the next one.
        """
        await trio.lowlevel.checkpoint()
        # Looked up without the port, so that all ports of a host share a look-up; the name of a service needs one.
        service = port if isinstance(port, (bytes, str)) else 0
        name = self._find((host, service, family, type, proto, flags))
        if not name.is_known(trio.current_time(), FRESH_SECONDS):
            await self._refresh(name)
        if service:
            return list(name.addresses)
        # A new list each time: Trio changes the order in it.
        return [(*address[:4], (address[4][0], port or 0, *address[4][2:])) for address in name.addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """Return the name of an address, as :func:`socket.getnameinfo`. cgw itself never asks for one."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)

    def _find(self, question: _Question) -> _Name:
        name = self._names.pop(question, None)
        if name is None:
            self._make_room()
            name = _Name(question)
        self._names[question] = name
        return name

    def _make_room(self) -> None:
        if len(self._names) < MAX_NAMES:
            return
        # One with a look-up under way stays: its threads have to be counted.
        oldest = next((question for question, name in self._names.items() if not name.started_at), None)
        if oldest is None:
            raise socket.gaierror(socket.EAI_AGAIN, f"{MAX_NAMES} other host names are being looked up already")
        del self._names[oldest]

    async def _refresh(self, name: _Name) -> None:
        """Return when ``name`` has addresses that can be used. Raises :exc:`OSError` if there are none."""
        now = trio.current_time()
        is_known = name.is_known(now, STALE_SECONDS)
        if name.started_at and now - name.started_at[0] >= OVERDUE_SECONDS:
            # Not as soon as its callers lose patience: a name server that is always slow is not worth a line each time.
            self._report(name, f"it has taken {now - name.started_at[0]:.0f} s so far")
        if name.needs_look_up(now):
            self._start_look_up(name, now)
        if name.started_at:
            # Counted from the start of the look-up: while it hangs, only its first callers wait.
            patience_ends = name.started_at[0] + PATIENCE_SECONDS
            outcomes = name.outcomes
            with trio.move_on_at(patience_ends if is_known else math.inf):
                while name.outcomes == outcomes:
                    await name.has_outcome.wait()
        if name.is_known(trio.current_time(), FRESH_SECONDS):
            return
        error = name.error or socket.gaierror(socket.EAI_AGAIN, "the look-up has no result")
        if not is_known:
            # A new exception for each caller: a shared one would collect the tracebacks of all.
            raise type(error)(*error.args) from None
        self._stale += 1
        if not name.started_at:
            self._report(name, explain_os_error(error))

    def _start_look_up(self, name: _Name, now: float) -> None:
        assert self._nursery is not None, "the resolver serves while run() runs"
        name.started_at.append(now)
        self._started += 1
        # A task of the resolver's, not of the caller, who may be cancelled while others wait.
        self._nursery.start_soon(self._look_up, name, now)

    async def _look_up(self, name: _Name, started_at: float) -> None:
        error: OSError | None = None
        try:
            name.addresses = await trio.to_thread.run_sync(
                self._look_up_blocking, *name.question, abandon_on_cancel=True, limiter=name.limiter
            )
        except OSError as failure:
            error = failure
        except (ValueError, RuntimeError) as failure:
            # A name that can't be encoded, or no thread to be had: one name's failure, not the service's.
            error = socket.gaierror(socket.EAI_FAIL, str(failure))
        now = trio.current_time()
        name.error, name.failed_at = error, now
        if error is None:
            name.found_at = now
            if name.is_reported:
                name.is_reported = False
                _logger.warning("the host name %s can be looked up again", name.display_name)
        name.started_at.remove(started_at)
        name.outcomes += 1
        has_outcome, name.has_outcome = name.has_outcome, trio.Event()
        has_outcome.set()

    def _report(self, name: _Name, reason: str) -> None:
        """Log, once until it succeeds, that ``name`` cannot be looked up."""
        if name.is_reported:
            return
        name.is_reported = True
        consequence = "there are no addresses to use"
        if name.addresses:
            age_seconds = trio.current_time() - name.found_at
            consequence = f"its addresses of {age_seconds:.0f} s ago are used, for at most {STALE_SECONDS / 60:g} min"
        _logger.warning("the host name %s cannot be looked up: %s; %s", name.display_name, reason, consequence)


@asynccontextmanager
async def open_resolver(look_up: LookUp | None = None) -> AsyncIterator[Resolver]:
    """Have a :class:`Resolver` look up all names of this Trio run for the length of the block.

    ``look_up`` is called as :func:`socket.getaddrinfo`, the default. Look-ups that hang do not delay the end.
    """
    resolver = Resolver(socket.getaddrinfo if look_up is None else look_up)
    async with open_background_task(resolver.run):
        await resolver.is_running.wait()
        former = trio.socket.set_custom_hostname_resolver(resolver)
        try:
            yield resolver
        finally:
            trio.socket.set_custom_hostname_resolver(former)
