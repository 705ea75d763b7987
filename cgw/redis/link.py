"""One connection shared by many tasks: one writer that batches, one reader that answers in order.

Redis answers the commands of a connection in the order in which they came, so a first-in-first-out queue of
calls is all that matches replies to callers. A caller that is cancelled or has waited long enough leaves its place
in the queue, marked as nobody's: its reply is dropped when it comes, and the link stays in step. Nothing is
allocated per call but that place; deadlines are kept by one watchdog per link.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Any, Protocol

import hiredis
import outcome
import trio
from attrs import field, frozen
from redis.exceptions import InvalidResponse, NoScriptError

from cgw.errors import StoreUnavailable
from cgw.redis.handshake import NEED_DATA, RedisConnection, pack_command

RECEIVE_BYTES = 65_536
MAX_TIMEOUTS_IN_A_ROW = 8
"""After this many calls without an answer in time the link is replaced: the circuit is open until a PING is quick."""

SENT_EARLY = 16
"""So many commands are not kept for one large write: the server would idle while their callers run, and they while it
works (50 callers: 12,000 pairs of calls a second, and 22,000 so; benchmark ``limits``, 2026-11-23)."""

STALL_SECONDS = 0.01
"""When a deadline is noticed later than this, the delay was ours: the server gets that much time to show itself."""

_CLOSE_SECONDS = 1.0
_ASKING = pack_command(("ASKING",))


@frozen
class LuaScript:
    """A Lua script: its text, and the SHA-1 under which servers know it."""

    text: str = field(repr=False)
    sha1: str

    @classmethod
    def from_text(cls, text: str) -> LuaScript:
        """The script with this text."""
        # Not for security: Redis names scripts so.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@frozen
class ScriptCall:
    """One run of a script on ``keys`` (all in one slot) with ``args``."""

    script: LuaScript
    keys: Sequence[bytes | str]
    args: Sequence[bytes | str | int]

    def pack_evalsha(self) -> bytes:
        """The command that runs it on a server that knows it."""
        return pack_command(("EVALSHA", self.script.sha1, len(self.keys), *self.keys, *self.args))

    def pack_eval(self) -> bytes:
        """The command that runs it on any server, and makes it known there."""
        return pack_command(("EVAL", self.script.text, len(self.keys), *self.keys, *self.args))


def _get_descriptor(stream: trio.abc.Stream) -> int | None:
    """What bytes can be written to as they are: not with TLS in between."""
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None


class LinkCounters:
    """What links and their owners count; shared by all links of one :class:`~cgw.redis.opening.Redis`."""

    __slots__ = ("calls", "cancelled", "failed_fast", "reconnects", "redirections", "retries", "timeouts")

    def __init__(self) -> None:
        self.calls = 0
        self.timeouts = 0
        self.cancelled = 0
        self.failed_fast = 0
        self.reconnects = 0
        self.redirections = 0
        self.retries = 0


class PostedCalls(Protocol):
    """Who looks after calls that nobody waits for. Both methods are called from the link's tasks and don't wait."""

    def keep(self, call: ScriptCall) -> None:
        """Keep a call whose answer was lost with its link, for later."""
        ...

    def posted_failed(self, link: Link, call: ScriptCall, error: Exception) -> None:
        """A posted call had an error for an answer."""
        ...


class _Call:
    """A place in the queue. ``task`` is ``None`` once nobody waits; ``undo`` is then sent in its place.

    A call that was posted never had a task, and is its own ``undo``.
    """

    __slots__ = ("sent_at", "task", "undo")

    def __init__(self, task: trio.lowlevel.Task | None, sent_at: float, undo: ScriptCall | None) -> None:
        self.task = task
        self.sent_at = sent_at
        self.undo = undo


class Link:
    """A greeted connection while it works. ``run`` serves it; afterwards ``error`` says why it ended."""

    def __init__(
        self,
        connection: RedisConnection,
        timeout_seconds: float,
        counters: LinkCounters,
        posted_calls: PostedCalls,
    ) -> None:
        self.error: str | None = None
        self.address = connection.address
        self._stream = connection.stream
        self._replies = connection.reader
        self._timeout_seconds = timeout_seconds
        self._counters = counters
        self._posted_calls = posted_calls
        self._calls: deque[_Call] = deque()
        self._unsent: list[bytes] = []
        self._is_sending = False
        self._descriptor = _get_descriptor(connection.stream)
        self._parked_writer: trio.lowlevel.Task | None = None
        self._parked_watchdog: trio.lowlevel.Task | None = None
        self._received_at = trio.current_time()
        self._timeouts_in_a_row = 0
        self._scope = trio.CancelScope()

    @property
    def waiting_calls(self) -> int:
        """Calls whose reply has not come yet, those that nobody waits for included."""
        return len(self._calls)

    async def run(self) -> None:
        """Serve the link until it breaks, is killed or is cancelled; then every waiting caller has its error."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._read)
                    nursery.start_soon(self._guard, self._write)
                    nursery.start_soon(self._watch)
        finally:
            self.kill("was closed")
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await trio.aclose_forcefully(self._stream)

    async def request(self, data: bytes, undo: ScriptCall | None, now: float, *, is_asking: bool = False) -> Any:
        """Send one packed command and wait for its reply; an error reply is returned as an exception.

        ``now`` is the current time, from which the deadline counts. With ``is_asking`` the command is one that a
        cluster's ASK has sent here. Raises :exc:`StoreUnavailable` when the link breaks or no reply comes within
        the deadline. Cancel-safe: the command may still be executed. If the caller stops waiting for either reason,
        ``undo`` is sent after it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.error is not None:
            raise self._unavailable()
        if is_asking:
            # Nothing waits between this and the next line, so no other caller's command comes between the two.
            self._enqueue(_Call(None, now, None), _ASKING)
        call = _Call(trio.lowlevel.current_task(), now, undo)
        self._enqueue(call, data)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._counters.cancelled += 1
            self._abandon(call)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def post(self, call: ScriptCall, *, is_asking: bool = False) -> None:
        """Run a script without waiting for its answer. If the link breaks before that, the call is kept for later."""
        if self.error is not None:
            self._posted_calls.keep(call)
            return
        now = trio.current_time()
        if is_asking:
            self._enqueue(_Call(None, now, None), _ASKING)
        # After ASKING with the text, as "unknown script" would come when the permission to ask is used up.
        self._enqueue(_Call(None, now, call), call.pack_eval() if is_asking else call.pack_evalsha())

    def _take_posted_error(self, call: ScriptCall, error: Exception) -> None:
        if isinstance(error, NoScriptError):
            self._enqueue(_Call(None, trio.current_time(), call), call.pack_eval())
        else:
            self._posted_calls.posted_failed(self, call, error)

    def kill(self, reason: str) -> None:
        """End the link at once: every waiting caller gets :exc:`StoreUnavailable`. The first reason counts."""
        if self.error is not None:
            return
        self.error = reason
        self._scope.cancel()
        self._unsent.clear()
        calls, self._calls = self._calls, deque()
        for call in calls:
            task, call.task = call.task, None
            if call.undo is not None:
                self._posted_calls.keep(call.undo)
            if task is not None:
                trio.lowlevel.reschedule(task, outcome.Error(self._unavailable()))

    def _enqueue(self, call: _Call, data: bytes) -> None:
        self._counters.calls += 1
        self._calls.append(call)
        self._unsent.append(data)
        if len(self._unsent) >= SENT_EARLY:
            self._send_early()
        if self._parked_writer is not None:
            trio.lowlevel.reschedule(self._parked_writer)
            self._parked_writer = None
        if self._parked_watchdog is not None:
            trio.lowlevel.reschedule(self._parked_watchdog)
            self._parked_watchdog = None

    def _send_early(self) -> None:
        """Send what has gathered, as far as it goes: the server works on it while more callers come along."""
        if self._is_sending or self._descriptor is None:
            return
        data = b"".join(self._unsent)
        try:
            sent = os.write(self._descriptor, data)
        except OSError:
            return  # the kernel takes no more, or the connection broke: the writer will find out
        self._unsent = [data[sent:]] if sent < len(data) else []

    def _abandon(self, call: _Call) -> None:
        """Leave the call's place in the queue to nobody."""
        call.task = None
        undo, call.undo = call.undo, None
        if undo is not None:
            self.post(undo)

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(f"the link to Redis at {self.address.display_name} {self.error}")

    async def _guard(self, serve: Callable[[], Awaitable[None]]) -> None:
        try:
            await serve()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.kill(f"broke: {error.__cause__ or error}")
        except InvalidResponse as error:
            self.kill(f"broke the protocol: {error}")

    async def _write(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            while not self._unsent:
                self._parked_writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._is_sending = True
            await self._stream.send_all(data)
            self._is_sending = False

    async def _read(self) -> None:
        receive, feed, next_reply = self._stream.receive_some, self._replies.feed, self._replies.gets
        reschedule = trio.lowlevel.reschedule
        while True:
            data = await receive(RECEIVE_BYTES)
            if not data:
                self.kill("was closed by the server")
                return
            self._received_at = trio.current_time()
            feed(bytes(data))  # for the type only: no copy is made of bytes
            while (reply := next_reply()) is not NEED_DATA:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if not self._calls:
                    raise InvalidResponse("a reply without a command")
                call = self._calls.popleft()
                task = call.task
                if task is not None:
                    call.task = None
                    self._timeouts_in_a_row = 0
                    reschedule(task, outcome.Value(reply))
                elif call.undo is not None and isinstance(reply, Exception):
                    self._take_posted_error(call.undo, reply)

    async def _watch(self) -> None:
        """Keep every call's deadline. All calls have the same allowance, so the queue is sorted by deadline.

        Wakes up at most once per allowance while calls come and go in time, and never while there are none.
        """
        while True:
            if not self._calls:
                await self._wait_call()
            overdue_at = trio.current_time() - self._timeout_seconds
            next_call = next((call for call in self._calls if call.sent_at > overdue_at), None)
            wait_from = next_call.sent_at if next_call is not None else trio.current_time()
            deadline = wait_from + self._timeout_seconds
            await trio.sleep_until(deadline)
            noticed_at = trio.current_time()
            if noticed_at - deadline > STALL_SECONDS:
                # This process itself was held up: commands may not have left yet, and replies lie unread.
                await trio.sleep(STALL_SECONDS)
            # Replies may have come in the same moment: let the reader go first.
            await trio.lowlevel.checkpoint()
            self._expire(noticed_at)

    async def _wait_call(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked_watchdog = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked_watchdog = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _expire(self, now: float) -> None:
        """Turn away the callers whose deadline had passed at ``now``; kill a link that was silent, or is too slow."""
        overdue = list(takewhile(lambda call: call.sent_at <= now - self._timeout_seconds, self._calls))
        if not overdue:
            return
        milliseconds = f"{self._timeout_seconds * 1000:g} ms"
        if now - self._received_at >= self._timeout_seconds:
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
