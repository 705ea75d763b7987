"""A connection to a Redis server that many tasks share: one writer that batches, one reader, replies in order.

Redis answers the commands of a connection in the order in which they came, so one first-in-first-out queue is enough
to match replies to callers::

    request(), post() ──► _unsent ──► _send_now() or _write() ──► server
      ▲    │                                                          │
      │    └──────────► _calls, in the same order ◄── _read(): the next reply belongs to the first call
      └─one of these, or POSTPONE_SECONDS── _postponed ◄── postpone()

A call's entry stays in the queue until its reply comes, whatever happens to the caller, so that the later replies
still find their callers::

    waiting ──reply──────────────────► done, the caller has its reply
       │
       └─cancelled, deadline──► abandoned ──reply──► done, the reply is dropped
                                (its undo is posted behind it)

    posted ──reply──► done, its handler has the reply  (NOSCRIPT: posted again as EVAL; other errors: by the owner)

When the link goes down, waiting and posted calls fail, and undos are handed to the owner, to be sent on another link.
Nothing is allocated per call except the entry. A call on an idle link costs two turns of tasks, the reader's and the
caller's: the command is written in the caller's own turn, and one alarm per link keeps all deadlines.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Any

import hiredis
import outcome
import trio
from redis.exceptions import InvalidResponse, NoScriptError

from cgw.alarm import Alarm
from cgw.clock import read_clock
from cgw.errors import StoreUnavailable, explain_os_error
from cgw.redis.handshake import NEED_DATA, RedisConnection, pack_command
from cgw.redis.link_call import LinkCall
from cgw.redis.link_owner import LinkCounters, LinkOwner
from cgw.redis.lua import ScriptCall
from cgw.redis.posted_call import KeptCall, PostedCall

RECEIVE_BYTES = 65_536
MAX_TIMEOUTS_IN_A_ROW = 8
"""After this many timeouts without a reply in between, the link is replaced; connecting waits for a quick PING, so
that calls fail fast until the server is quick again (a circuit breaker)."""

SEND_EARLY_COUNT = 16
"""This many unsent commands are written at once instead of being kept for one large write by the writer task.

Otherwise the server would idle while the callers run, and the callers while the server works. Measured with 50
callers: 12,000 pairs of calls a second without, 22,000 with (benchmark ``limits``, 2026-11-23).
"""

POSTPONE_SECONDS = 0.1
"""The time for which a postponed call may wait for another one to leave with."""

GATHER_SECONDS = 0.05
"""The time in which postponed calls gather first: what they have in common they then pay for once."""

MAX_POSTPONED = 100
"""As many postponed calls leave with the next call, however short they have waited."""

STALL_SECONDS = 0.01
"""When the watchdog wakes up later than this, this process was stalled: replies get that much time to be read."""

_CLOSE_SECONDS = 1.0
_ASKING = pack_command(("ASKING",))


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
        self._latency = counters.latency
        self._owner = owner
        self._read_clock = read_clock()
        # Always the same object, because the reader keeps it.
        self._calls: deque[LinkCall] = deque()
        # Packed commands that the kernel does not have yet, in the order of `_calls`.
        self._unsent: list[bytes] = []
        # Posted calls that nothing waits for, and that are not in `_calls` yet.
        self._postponed: list[PostedCall] = []
        self._take_from = math.inf  # a call after this time takes them along
        self._postpone_alarm = Alarm()
        self._is_sending = False
        self._descriptor = _get_descriptor(connection.stream)
        self._parked_writer: trio.lowlevel.Task | None = None
        self._deadline_alarm = Alarm()
        self._received_at = trio.current_time()  # the handshake's PING has just been answered
        self._timeouts_in_a_row = 0
        self._scope = trio.CancelScope()

    @property
    def waiting_calls(self) -> int:
        """Calls that have no reply yet; abandoned, posted and postponed ones included."""
        return len(self._calls) + len(self._postponed)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the link until it goes down or is cancelled; every caller has its reply or its error then."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for serve in (self._read, self._write):
                        nursery.start_soon(self._run_guarded, serve, name=serve)
                    nursery.start_soon(self._keep_deadlines)
                    nursery.start_soon(self._keep_sending_postponed)
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
        calls = tuple(self._calls)
        self._calls.clear()
        postponed, self._postponed = self._postponed, []
        for call in calls:
            if call.undo is not None:
                # The server may have run the command or not, and there is no telling: undo it on the next link.
                self._owner.keep_call(call.undo())
            if call.task is not None:
                trio.lowlevel.reschedule(call.task, outcome.Error(self._build_unavailable()))
            elif call.posted is not None:
                call.posted.handle_reply(self._build_unavailable())
        for posted in postponed:
            posted.handle_reply(self._build_unavailable())

    def _build_unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(f"the link to Redis at {self.address.display_name} {self.error}")

    # --- calls --------------------------------------------------------------------------------------------------------

    async def request(
        self,
        data: bytes,
        undo: Callable[[], ScriptCall] | None = None,
        build_call: Callable[[], ScriptCall] | None = None,
        *,
        is_asking: bool = False,
    ) -> Any:
        """Send one packed command and wait for its reply.

        An error reply is returned as an exception; for a script, whose general form ``build_call`` builds, it goes to
        :meth:`LinkOwner.retry_script`, and what comes of that is returned. Set ``is_asking`` when an ASK of a cluster
        has redirected the command here. Raises :exc:`StoreUnavailable` when the link goes down or no reply comes within
        the deadline. Cancel-safe: the command may still be executed, and its reply is dropped. When the caller stops
        waiting, for whatever reason, the call that ``undo`` builds is sent behind the command.
        """
        # Before anything is sent: a caller that is cancelled already must not change anything on the server.
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.error is not None:
            raise self._build_unavailable()
        now = self._read_clock()
        if is_asking:
            # ASKING counts for the next command of the connection only. There is no checkpoint between the two
            # lines, so that no other task's command comes in between.
            self._enqueue(LinkCall(self, None, now, self._latency.find(_ASKING)), _ASKING)
        # Scripts, which are nearly all calls, are not looked up by their packed command each time.
        times = self._latency.find(data) if build_call is None else self._latency.of_scripts
        call = LinkCall(self, trio.lowlevel.current_task(), now, times, undo)
        self._enqueue(call, data)
        # The reader, the watchdog or kill() reschedules this task; Trio does not call abort after that.
        reply = await trio.lowlevel.wait_task_rescheduled(call.abort)
        if build_call is not None and isinstance(reply, Exception):
            return await self._owner.retry_script(self, reply, now, data, build_call, undo)
        return reply

    def post(self, posted: PostedCall, *, is_asking: bool = False) -> None:
        """Send a call without waiting for its reply."""
        if self.error is not None:
            posted.handle_reply(self._build_unavailable())
            return
        now = self._read_clock()
        if not is_asking:
            self._enqueue_posted(posted, posted.pack(), now)
            return
        self._enqueue(LinkCall(self, None, now, self._latency.find(_ASKING)), _ASKING)
        # EVAL, not EVALSHA: after a NOSCRIPT the permission that ASKING gave would be used up.
        call = posted.build_call()
        self._enqueue_posted(posted, posted.pack() if call is None else call.pack_eval(), now)

    def load_scripts(self, packed: Sequence[bytes]) -> None:
        """Send packed ``SCRIPT LOAD`` commands, whose replies don't matter: a server that refuses gets the texts."""
        for data in packed:
            self._enqueue(LinkCall(self, None, self._read_clock(), self._latency.find(data)), data)

    def postpone(self, posted: PostedCall) -> None:
        """Send a call together with the next one, but at most :data:`POSTPONE_SECONDS` later. It is packed then.

        Those that gather leave with the first call after :data:`GATHER_SECONDS`.
        """
        if self.error is not None:
            posted.handle_reply(self._build_unavailable())
            return
        self._postponed.append(posted)
        if len(self._postponed) == 1:
            now = self._read_clock()
            self._take_from = now + GATHER_SECONDS
            # An alarm that is set already rings earlier, and is set again then.
            self._postpone_alarm.set(now + POSTPONE_SECONDS)
        if not posted.gathers or len(self._postponed) >= MAX_POSTPONED:
            self._take_from = 0.0

    def send_postponed(self) -> None:
        """Send the postponed calls now."""
        if self._postponed:
            is_idle = not self._calls
            self._take_postponed(self._read_clock())
            self._hand_over(is_idle=is_idle)

    async def _keep_sending_postponed(self) -> None:
        while True:
            await self._postpone_alarm.wait()
            due_at = self._take_from - GATHER_SECONDS + POSTPONE_SECONDS
            if due_at <= self._read_clock():
                self.send_postponed()
            elif self._postponed:
                # It was set for calls that have left with another one since.
                self._postpone_alarm.set(due_at)

    def _enqueue(self, call: LinkCall, data: bytes) -> None:
        calls = self._calls
        is_idle = not calls
        if call.sent_at >= self._take_from:
            self._take_postponed(call.sent_at)
        self._counters.calls += 1
        # Before the command can be sent, so that the reply always finds its call.
        calls.append(call)
        unsent = self._unsent
        unsent.append(data)
        # Otherwise the writer has been woken already, and sends this with the rest.
        if is_idle or self._parked_writer is not None or len(unsent) >= SEND_EARLY_COUNT:
            self._hand_over(is_idle=is_idle)

    def _enqueue_posted(self, posted: PostedCall, data: bytes, now: float) -> None:
        self._enqueue(LinkCall(self, None, now, self._latency.find(data), posted=posted), data)

    def _take_postponed(self, now: float) -> None:
        postponed, self._postponed = self._postponed, []
        self._take_from = math.inf
        for posted in postponed:
            data = posted.pack()
            # Their deadlines count from now on, so that the queue stays sorted by deadline.
            self._calls.append(LinkCall(self, None, now, self._latency.find(data), posted=posted))
            self._unsent.append(data)
        self._counters.calls += len(postponed)

    def _hand_over(self, *, is_idle: bool) -> None:
        """Send the unsent commands, or have the writer send them; ``is_idle``: there were no calls before them."""
        # With calls in flight, commands gather instead: the callers that the next replies wake up, and those that run
        # in this turn, share one write.
        if is_idle or len(self._unsent) >= SEND_EARLY_COUNT:
            self._send_now()
        # The writer runs after the tasks that are runnable now, so that their commands leave in one write. It is not
        # woken for a command that the kernel has taken already.
        if self._unsent and self._parked_writer is not None:
            trio.lowlevel.reschedule(self._parked_writer)
            self._parked_writer = None
        # While there are calls, the deadline of the first is set, or _keep_deadlines is about to set it.
        if is_idle:
            self._deadline_alarm.set(self._calls[0].sent_at + self._timeout_seconds)

    def cancel(self, call: LinkCall) -> None:
        """Drop the reply of a call, whose caller is cancelled, when it comes, and undo the call."""
        self._counters.cancelled += 1
        self._abandon(call)

    def _abandon(self, call: LinkCall) -> None:
        """Drop the reply of a call when it comes, and undo the call."""
        call.task = None
        undo, call.undo = call.undo, None
        if undo is not None:
            # Redis runs the commands of a connection in order: posted on this link, the undo runs after the call.
            self.post(KeptCall(undo(), self._owner.keep_call))

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
        feed, next_reply, need_data, reschedule = (
            self._replies.feed,
            self._replies.gets,
            NEED_DATA,
            trio.lowlevel.reschedule,
        )
        calls = self._calls
        while True:
            data = await self._receive()
            if not data:
                self.kill("was closed by the server")
                return
            received_at = self._received_at = self._read_clock()
            feed(data)
            while (reply := next_reply()) is not need_data:
                if isinstance(reply, hiredis.PushNotification):
                    continue  # RESP3: not a reply to a command
                if not calls:
                    raise InvalidResponse("a reply without a command")
                call = calls.popleft()
                call.times[isinstance(reply, Exception)].observe((received_at - call.sent_at) * 1000)
                task = call.task
                if task is not None:
                    self._timeouts_in_a_row = 0  # only by replies in time: late ones find no task
                    call.reply = reply
                    reschedule(task, call)
                elif call.posted is not None:
                    self._finish_posted(call.posted, reply)

    def _finish_posted(self, posted: PostedCall, reply: Any) -> None:
        if not isinstance(reply, Exception):
            posted.handle_reply(reply)
        elif isinstance(reply, NoScriptError) and (call := posted.build_call()) is not None:
            self._enqueue_posted(posted, call.pack_eval(), self._read_clock())
        else:
            self._owner.handle_posted_error(self, posted, reply)

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
