"""A connection to a Redis server that many tasks share: one writer that batches, one reader, replies in order.

Redis answers the commands of a connection in the order in which they came, so one first-in-first-out queue is enough
to match replies to callers::

    request(), post() ──► _unsent ──► _send_now() or _write() ──► server
           │                                                          │
           └──────────► _calls, in the same order ◄── _read(): the next reply belongs to the first call

A call's entry stays in the queue until its reply comes, whatever happens to the caller, so that the later replies
still find their callers::

    waiting ──reply──────────────────► done, the caller has its reply
       │
       └─cancelled, deadline──► abandoned ──reply──► done, the reply is dropped
                                (its undo is posted behind it)

    posted ──reply──► done  (NOSCRIPT: posted again as EVAL; other errors: handed to the owner)

When the link goes down, waiting calls fail, and undos and posted calls are handed to the owner, to be sent on another
link. Nothing is allocated per call except the entry and the closure that abandons it. A call on an idle link costs two
turns of tasks, the reader's and the caller's: the command is written in the caller's own turn, and one alarm per link
keeps all deadlines.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import takewhile
from typing import Any, Protocol

import hiredis
import outcome
import trio
from attrs import define
from redis.exceptions import InvalidResponse, NoScriptError

from cgw.errors import StoreUnavailable, explain_os_error
from cgw.redis.alarm import Alarm
from cgw.redis.handshake import NEED_DATA, RedisConnection, pack_command
from cgw.redis.lua import ScriptCall

RECEIVE_BYTES = 65_536
MAX_TIMEOUTS_IN_A_ROW = 8
"""After this many timeouts without a reply in between, the link is replaced; connecting waits for a quick PING, so
that calls fail fast until the server is quick again (a circuit breaker)."""

SEND_EARLY_COUNT = 16
"""This many unsent commands are written at once instead of being kept for one large write by the writer task.

Otherwise the server would idle while the callers run, and the callers while the server works. Measured with 50
callers: 12,000 pairs of calls a second without, 22,000 with (benchmark ``limits``, 2026-11-23).
"""

STALL_SECONDS = 0.01
"""When the watchdog wakes up later than this, this process was stalled: replies get that much time to be read."""

_CLOSE_SECONDS = 1.0
_ASKING = pack_command(("ASKING",))


@define
class LinkCounters:
    """Counters that all links of one store share, see :class:`~cgw.redis.store.RedisStatistics`."""

    calls: int = 0
    timeouts: int = 0
    cancelled: int = 0
    failed_fast: int = 0
    reconnects: int = 0
    redirections: int = 0
    retries: int = 0


class LinkOwner(Protocol):
    """The store that a link belongs to. Its methods are called from the link's tasks and must not block."""

    def keep_call(self, call: ScriptCall) -> None:
        """Keep a call whose reply was lost with its link, to be sent on the next one."""
        ...

    def handle_posted_error(self, link: Link, call: ScriptCall, error: Exception) -> None:
        """Handle the error reply to a posted call."""
        ...

    def handle_link_up(self) -> None:
        """Handle that a link was connected."""
        ...

    def handle_link_lost(self) -> None:
        """Handle that a link broke, or was closed by the server."""
        ...


class _Call:
    """An entry in the queue of calls that have no reply yet.

    ``task`` is the waiting caller; ``None`` for a posted call, and once the caller is cancelled or timed out.
    ``if_lost`` is what has to run when the reply is lost: the undo of a waiting call, or the posted call itself.
    """

    __slots__ = ("if_lost", "sent_at", "task")

    def __init__(self, task: trio.lowlevel.Task | None, sent_at: float, if_lost: ScriptCall | None) -> None:
        self.task = task
        self.sent_at = sent_at
        self.if_lost = if_lost


class Link:
    """A connection in use, after the handshake. ``run`` serves it; afterwards ``error`` says why it went down.

    A link goes down once and is never up again::

        up ──the connection breaks, protocol error, silence, kill()──► down (``error`` is set, requests fail at once)
    """

    def __init__(
        self,
        connection: RedisConnection,
        timeout_seconds: float,
        counters: LinkCounters,
        owner: LinkOwner,
    ) -> None:
        self.error: str | None = None
        self.address = connection.address
        self._stream = connection.stream
        self._replies = connection.reader
        self._timeout_seconds = timeout_seconds
        self._counters = counters
        self._owner = owner
        self._calls: deque[_Call] = deque()
        # Packed commands that the kernel does not have yet, in the order of `_calls`.
        self._unsent: list[bytes] = []
        self._is_sending = False
        self._descriptor = _get_descriptor(connection.stream)
        self._parked_writer: trio.lowlevel.Task | None = None
        self._deadline_alarm = Alarm()
        self._received_at = trio.current_time()  # the handshake's PING has just been answered
        self._timeouts_in_a_row = 0
        self._scope = trio.CancelScope()

    @property
    def waiting_calls(self) -> int:
        """Calls that have no reply yet, abandoned and posted ones included."""
        return len(self._calls)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the link until it goes down or is cancelled; every caller has its reply or its error then."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for serve in (self._read, self._write):
                        nursery.start_soon(self._run_guarded, serve, name=serve)
                    nursery.start_soon(self._keep_deadlines)
        finally:
            self.kill("was closed")
            # Closing has a checkpoint: without the shield, a cancelled task would leave the socket open.
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _run_guarded(self, serve: Callable[[], Awaitable[None]]) -> None:
        try:
            await serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.kill(f"broke: {explain_os_error(error)}")
        except InvalidResponse as error:
            self.kill(f"broke the protocol: {error}")

    def kill(self, reason: str) -> None:
        """Take the link down at once: every waiting caller gets :exc:`StoreUnavailable`. The first reason is kept."""
        if self.error is not None:
            return
        # First, so that what the owner posts from here on does not end up in this link again.
        self.error = reason
        self._scope.cancel()
        self._unsent.clear()
        calls, self._calls = self._calls, deque()
        for call in calls:
            # The server may have run the command or not, and there is no telling: undo it on the next link.
            if call.if_lost is not None:
                self._owner.keep_call(call.if_lost)
            if call.task is not None:
                trio.lowlevel.reschedule(call.task, outcome.Error(self._build_unavailable()))

    def _build_unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(f"the link to Redis at {self.address.display_name} {self.error}")

    # --- calls --------------------------------------------------------------------------------------------------------

    async def request(self, data: bytes, undo: ScriptCall | None, now: float, *, is_asking: bool = False) -> Any:
        """Send one packed command and wait for its reply; an error reply is returned as an exception.

        ``now`` is the current time, from which the deadline counts. Set ``is_asking`` when an ASK of a cluster has
        redirected the command here. Raises :exc:`StoreUnavailable` when the link goes down or no reply comes within
        the deadline. Cancel-safe: the command may still be executed, and its reply is dropped. When the caller stops
        waiting, for whatever reason, ``undo`` is sent behind the command.
        """
        # Before anything is sent: a caller that is cancelled already must not change anything on the server.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.error is not None:
            raise self._build_unavailable()
        if is_asking:
            # ASKING counts for the next command of the connection only. There is no checkpoint between the two
            # lines, so that no other task's command comes in between.
            self._enqueue(_Call(None, now, None), _ASKING)
        call = _Call(trio.lowlevel.current_task(), now, undo)
        self._enqueue(call, data)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._counters.cancelled += 1
            self._abandon(call)
            return trio.lowlevel.Abort.SUCCEEDED

        # The reader, the watchdog or kill() reschedules this task; Trio does not call abort after that.
        return await trio.lowlevel.wait_task_rescheduled(abort)

    def post(self, call: ScriptCall, *, is_asking: bool = False) -> None:
        """Run a script without waiting for its reply. If the link goes down first, the owner keeps the call."""
        if self.error is not None:
            self._owner.keep_call(call)
            return
        now = trio.current_time()
        if not is_asking:
            self._enqueue(_Call(None, now, call), call.pack_evalsha())
            return
        self._enqueue(_Call(None, now, None), _ASKING)
        # EVAL, not EVALSHA: after a NOSCRIPT the permission that ASKING gave would be used up.
        self._enqueue(_Call(None, now, call), call.pack_eval())

    def _enqueue(self, call: _Call, data: bytes) -> None:
        self._counters.calls += 1
        is_idle = not self._calls
        # Before the command can be sent, so that the reply always finds its call.
        self._calls.append(call)
        self._unsent.append(data)
        # With calls in flight, commands gather instead: the callers that the next replies wake up, and those that run
        # in this turn, share one write.
        if is_idle or len(self._unsent) >= SEND_EARLY_COUNT:
            self._send_now()
        # The writer runs after the tasks that are runnable now, so that their commands leave in one write. It is not
        # woken for a command that the kernel has taken already.
        if self._unsent and self._parked_writer is not None:
            trio.lowlevel.reschedule(self._parked_writer)
            self._parked_writer = None
        self._deadline_alarm.set(call.sent_at + self._timeout_seconds)

    def _abandon(self, call: _Call) -> None:
        """Drop the reply of a call when it comes, and undo the call."""
        call.task = None
        undo, call.if_lost = call.if_lost, None
        if undo is not None:
            # Redis runs the commands of a connection in order: posted on this link, the undo runs after the call.
            self.post(undo)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send_now(self) -> None:
        """Write the unsent commands now, as far as the kernel takes them."""
        # While the writer is in send_all, a part of its data may not be written yet: bytes from here would get
        # between the halves of a command.
        if self._is_sending or self._descriptor is None:
            return
        data = b"".join(self._unsent)
        try:
            sent = os.write(self._descriptor, data)
        except OSError:
            return  # the kernel's buffer is full, or the connection broke: the writer waits for it, or reports it
        # The rest of a command that was cut stays first: nothing else may be sent before it.
        self._unsent = [data[sent:]] if sent < len(data) else []

    async def _write(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            # A loop: _send_now may have sent everything between the wake-up and this task's turn.
            while not self._unsent:
                self._parked_writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            self._send_now()
            if not self._unsent:
                continue
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._is_sending = True
            await self._stream.send_all(data)
            self._is_sending = False  # not reached on errors: the link is down then

    # --- receiving ----------------------------------------------------------------------------------------------------

    async def _receive(self) -> bytes:
        """Return what has arrived, as soon as there is something; empty at the end of the connection."""
        descriptor = self._descriptor
        if descriptor is None:
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))  # for the type only: this copies nothing
        while True:
            # Wait first: the last read has taken all that was there, so a read now would find nothing nearly always.
            await trio.lowlevel.wait_readable(descriptor)
            try:
                return os.read(descriptor, RECEIVE_BYTES)
            except BlockingIOError:
                continue  # a spurious wake-up

    async def _read(self) -> None:
        # Local names: these are looked up for each reply.
        feed, next_reply, reschedule = self._replies.feed, self._replies.gets, trio.lowlevel.reschedule
        while True:
            data = await self._receive()
            if not data:
                self.kill("was closed by the server")
                return
            self._received_at = trio.current_time()
            feed(data)
            while (reply := next_reply()) is not NEED_DATA:
                if isinstance(reply, hiredis.PushNotification):
                    continue  # RESP3: not a reply to a command
                if not self._calls:
                    raise InvalidResponse("a reply without a command")
                call = self._calls.popleft()
                if call.task is not None:
                    self._timeouts_in_a_row = 0  # only by replies in time: late ones find no task
                    reschedule(call.task, outcome.Value(reply))
                elif call.if_lost is not None and isinstance(reply, Exception):
                    self._handle_posted_error(call.if_lost, reply)

    def _handle_posted_error(self, call: ScriptCall, error: Exception) -> None:
        if isinstance(error, NoScriptError):
            self._enqueue(_Call(None, trio.current_time(), call), call.pack_eval())
        else:
            self._owner.handle_posted_error(self, call, error)

    # --- deadlines ----------------------------------------------------------------------------------------------------

    async def _keep_deadlines(self) -> None:
        """Time out the calls whose deadline passes.

        All calls of a link have the same timeout, so the queue is sorted by deadline. This task wakes up at most
        once per timeout while replies come in time, and not at all while there are no calls.
        """
        while True:
            deadline = await self._deadline_alarm.wait()
            noticed_at = trio.current_time()
            if self._calls and self._calls[0].sent_at <= noticed_at - self._timeout_seconds:
                if noticed_at - deadline > STALL_SECONDS:
                    # This process was stalled: commands may not have been sent yet, and replies not read. Let the
                    # writer and the server do their part before the server is blamed.
                    await trio.sleep(STALL_SECONDS)
                # Replies may be readable since the same moment: let the reader run first.
                await trio.lowlevel.checkpoint()
                # As of when the deadline was noticed: calls that became overdue during the pauses get theirs, too.
                self._expire(noticed_at)
            self._set_next_deadline()

    def _set_next_deadline(self) -> None:
        if not self._calls:
            return  # the next call sets the alarm
        # Calls at the head of the queue may be overdue already: they are abandoned, and their replies late. If there
        # are no others, look again after a timeout whether the server has become silent.
        now = trio.current_time()
        overdue_at = now - self._timeout_seconds
        wait_from = next((call.sent_at for call in self._calls if call.sent_at > overdue_at), now)
        self._deadline_alarm.set(wait_from + self._timeout_seconds)

    def _expire(self, now: float) -> None:
        """Time out the callers whose deadline has passed at ``now``; kill a link that is silent or too slow."""
        overdue = list(takewhile(lambda call: call.sent_at <= now - self._timeout_seconds, self._calls))
        if not overdue:
            return
        milliseconds = f"{self._timeout_seconds * 1000:g} ms"
        # Any byte counts, also a late reply or a part of one: such a server is slow, not gone.
        if now - self._received_at >= self._timeout_seconds:
            # Not a byte in all that time: kill() fails the overdue callers, and those behind them at once.
            self._counters.timeouts += sum(call.task is not None for call in overdue)
            self.kill(f"was silent for {milliseconds}")
            return
        for call in overdue:
            task = call.task
            if task is not None:
                self._counters.timeouts += 1
                self._timeouts_in_a_row += 1
                self._abandon(call)
                error = StoreUnavailable(f"Redis at {self.address.display_name} did not answer within {milliseconds}")
                trio.lowlevel.reschedule(task, outcome.Error(error))
        if self._timeouts_in_a_row >= MAX_TIMEOUTS_IN_A_ROW:
            self.kill(f"was too slow: {self._timeouts_in_a_row} calls in a row took longer than {milliseconds}")


def _get_descriptor(stream: trio.abc.Stream) -> int | None:
    """Return the file descriptor for writes that bypass Trio, or ``None`` if there is TLS in between."""
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None
