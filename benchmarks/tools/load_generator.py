"""The load generator in Python. ``load_generator.c`` documents options, phases and output."""

from __future__ import annotations

import errno
import heapq
import re
import selectors
import signal
import socket
import sys
import time
from typing import Literal

import msgspec
from attrs import define, field

from benchmarks.histogram import Histogram
from benchmarks.tool_processes import LoadReport, WindowCounts
from benchmarks.tools.framing import FramingError, MessageBody, MessageHead, split_head
from benchmarks.tools.http2 import Http2Link
from benchmarks.tools.requests import LoadOptions, Requests

MS = 1_000_000
SLOW_FROM = 5_000_000_000  # exchanges from this number on are answered by the upstream's profile b
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
MARK = re.compile(rb"@(\d+) (\d+) (\d+)~")
TAIL = 64  # longer than a mark, so that one that is split between pieces is found
PROBLEMS = ("refused", "status", "truncated", "corrupt", "unfinished", "overflow")
LASTS = (b"[DONE]", b"message_stop")


@define(eq=False)
class LoadConnection:
    """A connection and its current exchange, or with HTTP/2 a stream of ``link``.

    States: free → connecting → sending → head → body → idle → sending (keep-alive); any state → free when it is closed.
    A stream is only free, head or body.
    """

    slow: bool = False
    sock: socket.socket | None = None
    link: Http2Link[LoadConnection] | None = None
    state: Literal["free", "connecting", "sending", "head", "body", "idle"] = "free"
    is_reused: bool = False
    in_window: bool = False
    output: bytes = b""
    buffer: bytearray = field(factory=bytearray)
    text: bytearray = field(factory=bytearray)
    head: MessageHead | None = None
    body: MessageBody | None = None
    exchange: int = 0
    sequence: int = 0
    is_stream: bool = True
    expected: int = 0
    scheduled: int = 0
    due: int = 0


class LoadGenerator:
    """The event loop, its timers and its counts."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.selector = selectors.DefaultSelector()
        limit = options.max_open if options.rate else options.slots
        self.free = [LoadConnection() for _ in range(limit)]
        self.slow = [LoadConnection(slow=True) for _ in range(options.slow)]
        self.idle: list[LoadConnection] = []
        self.timers: list[tuple[int, int, LoadConnection]] = []
        self.armed = self.open = self.arrived = self.first_events = 0
        self.next_id = options.first_id
        self.in_window = self.is_over = False
        self.counts = WindowCounts(0, 0, 0)
        self.window = WindowCounts(0, 0, 0)
        self.errors = dict.fromkeys(PROBLEMS, 0)
        self.cancels: list[tuple[int, int]] = []
        self.latency: list[int] = []
        self.first_event: list[int] = []
        self.duration: list[int] = []
        self.last_status = self.opened = self.closed = 0
        self.requests = Requests(options)
        self.links = [Http2Link(options.port, self.selector, self) for _ in range(options.http2)]
        for number, connection in enumerate(self.free if self.links else ()):
            connection.link = self.links[number % len(self.links)]
        self.began = time.monotonic_ns()

    # --- exchanges
    def count(self, name: str) -> None:
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        if self.in_window:
            setattr(self.window, name, getattr(self.window, name) + 1)

    def arm(self, connection: LoadConnection, due: int) -> None:
        self.armed += 1
        connection.due = due
        # `armed` breaks ties, as connections cannot be ordered. Timers are never removed: one whose time differs from
        # its connection's `due` is stale, and ignored.
        heapq.heappush(self.timers, (due, self.armed, connection))

    def arrive(self, scheduled: int) -> None:
        if self.idle and not self.options.spread:
            self.begin(self.idle.pop(), scheduled)
        elif self.free:
            self.begin(self.free.pop(), scheduled)
        elif self.idle:
            self.begin(self.idle.pop(0), scheduled)
        else:
            self.errors["overflow"] += 1

    def begin(self, connection: LoadConnection, scheduled: int) -> None:
        connection.is_reused = connection.state == "idle"  # `fail` then retries if the server has just closed it
        connection.scheduled, connection.in_window = scheduled, self.in_window
        if connection.slow:
            connection.exchange = SLOW_FROM + self.options.first_id + self.slow.index(connection)
        else:
            connection.exchange, self.next_id = self.next_id, self.next_id + 1
        connection.sequence, connection.head, connection.body, connection.due = 0, None, None, 0
        connection.buffer.clear()
        connection.text.clear()
        kind, connection.expected = self.requests.choose(connection.exchange - self.options.first_id)
        connection.is_stream = kind.is_stream
        body = self.requests.build_body(kind, connection.exchange, connection.expected)
        self.open += 1
        self.count("started")
        if connection.link is not None:
            self.begin_stream(connection, body)
            return
        connection.output = self.requests.build_head(len(body)) + body
        if connection.is_reused:
            connection.state = "sending"
            self.send(connection)
            return
        sock = connection.sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.slow:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )  # the kernel must not read ahead for a slow reader
        connection.state = "connecting"
        self.selector.register(sock, WRITE, connection)
        if sock.connect_ex(("127.0.0.1", self.options.port)) not in (0, errno.EINPROGRESS):
            self.fail(connection, "refused")

    def begin_stream(self, connection: LoadConnection, body: bytes) -> None:
        assert connection.link is not None
        connection.state = "head"
        if self.options.cancel == "waiting":
            self.arm(connection, time.monotonic_ns() + self.options.cancel_ms * MS)
        if not connection.link.request(connection, self.requests.build_http2_fields(len(body)), body):
            self.fail(connection, "refused")

    def send(self, connection: LoadConnection) -> None:
        assert connection.sock is not None
        try:
            sent = connection.sock.send(connection.output)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.fail(connection, "truncated")
            return
        connection.output = connection.output[sent:]
        if connection.output:
            self.selector.modify(connection.sock, READ | WRITE, connection)
            return
        connection.state = "head"
        self.selector.modify(connection.sock, READ, connection)
        if connection.slow:
            self.selector.unregister(connection.sock)
            self.arm(connection, time.monotonic_ns() + self.options.slow_ms * MS)
        elif self.options.cancel == "waiting":
            self.arm(connection, time.monotonic_ns() + self.options.cancel_ms * MS)

    def close(self, connection: LoadConnection) -> None:
        if connection.state == "idle":
            self.idle.remove(connection)
        else:
            self.open -= 1
        if connection.link is not None:
            connection.link.drop(connection)
        else:
            self.close_socket(connection)
        connection.state, connection.due = "free", 0
        if not connection.slow:
            self.free.append(connection)

    def close_socket(self, connection: LoadConnection) -> None:
        assert connection.sock is not None
        # A slow reader is not registered once its request is sent: a timer reads for it.
        if not connection.slow or connection.state in ("connecting", "sending"):
            self.selector.unregister(connection.sock)
        connection.sock.close()

    def fail(self, connection: LoadConnection, problem: str) -> None:
        # The server may close an idle connection just as a request is sent on it: not a failure (RFC 9112 §9.3.1).
        is_retry = connection.is_reused and connection.head is None and not connection.buffer and problem == "truncated"
        again = self.options.repeat and not self.is_over and not connection.slow and problem != "refused"
        scheduled = connection.scheduled
        if is_retry:
            self.counts.started -= 1
        else:
            self.errors[problem] += 1
        self.close(connection)
        if is_retry or again:
            self.arrive(scheduled if is_retry else time.monotonic_ns())

    def finish(self, connection: LoadConnection, now: int) -> None:
        options, is_stream = self.options, connection.is_stream
        is_complete = not is_stream or any(last in connection.text for last in LASTS)
        is_short = is_stream and connection.expected and connection.sequence != connection.expected
        if not is_complete or not connection.sequence or is_short:
            self.fail(connection, "truncated")
            return
        self.count("finished")
        if connection.in_window:
            self.duration.append(now - connection.scheduled)
        if options.keepalive and self.keeps_alive(connection):
            self.open -= 1
            connection.state, connection.due = "idle", 0
            self.idle.append(connection)
        else:
            self.close(connection)
        if options.repeat and not self.is_over:
            self.arrive(now)

    @staticmethod
    def keeps_alive(connection: LoadConnection) -> bool:
        head, body = connection.head, connection.body
        return head is not None and head.keeps_alive and body is not None and body.framing != "until-close"

    # --- answers over HTTP/2
    def on_stream_status(self, connection: LoadConnection, status: int) -> None:
        connection.state = "body"
        if status != 200:
            self.last_status = status
            self.fail(connection, "status")

    def on_stream_data(self, connection: LoadConnection, data: bytes, now: int) -> None:
        try:
            self.scan(connection, data, now)
        except FramingError:
            self.fail(connection, "corrupt")

    def on_stream_end(self, connection: LoadConnection, now: int) -> None:
        self.finish(connection, now)

    def on_stream_broken(self, connection: LoadConnection, *, is_refused: bool) -> None:
        self.fail(connection, "refused" if is_refused else "truncated")

    # --- what comes in
    def on_ready(self, connection: LoadConnection, mask: int) -> None:
        assert connection.sock is not None
        if connection.state == "connecting":
            if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.fail(connection, "refused")
                return
            connection.state = "sending"
        if connection.state == "sending" and mask & WRITE:
            self.send(connection)
        if not mask & READ or connection.state == "free":
            return
        try:
            got = connection.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        now = time.monotonic_ns()
        if connection.state == "idle":  # the server closed it, or sent bytes that belong to no answer
            self.close(connection)
        elif got:
            self.on_bytes(connection, got, now)
        elif connection.body is not None and connection.body.framing == "until-close":
            self.finish(connection, now)
        else:
            self.fail(connection, "truncated")

    def on_bytes(self, connection: LoadConnection, got: bytes, now: int) -> None:
        connection.buffer += got
        try:
            if connection.head is None and not self.take_head(connection):
                return
            assert connection.body is not None
            for piece in connection.body.take(connection.buffer):
                self.scan(connection, piece, now)
        except FramingError:
            self.fail(connection, "corrupt")
            return
        if connection.body.done:
            self.finish(connection, now)

    def take_head(self, connection: LoadConnection) -> bool:
        connection.head = split_head(connection.buffer)
        if connection.head is None:
            return False
        if connection.head.start[1] != "200":
            self.last_status = int(connection.head.start[1])
            self.fail(connection, "status")
            return False
        connection.state, connection.body = "body", MessageBody(connection.head, "until-close")
        return True

    def scan(self, connection: LoadConnection, piece: bytes, now: int) -> None:
        text = connection.text
        text += piece
        end = 0
        for mark in MARK.finditer(text):
            end = mark.end()
            stamp, exchange, sequence = map(int, mark.groups())
            if (exchange, sequence) != (connection.exchange, connection.sequence):
                raise FramingError("an event of another exchange, or out of order")
            self.on_event(connection, now, stamp)
        # Kept: the start of a mark that is split between pieces, and the end of the body, which `finish` checks.
        del text[: max(end, len(text) - TAIL)]

    def on_event(self, connection: LoadConnection, now: int, stamp: int) -> None:
        self.count("events")
        if self.in_window:
            self.latency.append(now - stamp)
        connection.sequence += 1
        if connection.sequence > 1:
            return
        self.first_events += 1
        if connection.in_window:
            self.first_event.append(now - connection.scheduled)
        if self.options.cancel == "streaming":
            self.arm(connection, now + self.options.cancel_ms * MS)

    def on_timer(self, connection: LoadConnection) -> None:
        if not connection.slow:
            self.cancels.append((connection.exchange, time.monotonic_ns()))
            self.close(connection)
            self.count("finished")
            return
        assert connection.sock is not None
        try:
            got = connection.sock.recv(1)
        except BlockingIOError:
            got = b"-"
        except OSError:
            got = b""
        if not got:
            self.close(connection)
            return
        self.arm(connection, time.monotonic_ns() + self.options.slow_ms * MS)

    # --- phases
    def arrivals(self, now: int) -> int | None:
        """Start what is due; returns when the next one is."""
        options = self.options
        while not self.is_over and (options.rate or self.arrived < options.slots):
            # Somewhere in its own part of the ramp (the golden ratio's sequence): starts at even distances would make
            # many streams' events fall on the same instants.
            place = self.arrived + (self.arrived * 2654435769 % 2**32) / 2**32
            offset = self.arrived * 1e9 / options.rate if options.rate else options.ramp_ms * MS * place / options.slots
            due = self.began + int(offset)
            if due > now:
                return due
            self.arrived += 1
            self.arrive(due)
        return None

    def phases(self, now: int) -> int | None:
        """Open and close the window; returns when to look again, ``None`` at the end."""
        options = self.options
        warm = self.began + (options.ramp_ms + options.warm_ms) * MS
        if not self.opened:
            is_ready = options.rate or self.first_events >= options.slots or now >= warm + options.open_limit_ms * MS
            if now < warm or not is_ready:
                return warm if now < warm else now + 5 * MS
            self.opened, self.in_window = now, True
            print("window-open", now, flush=True)
        close_at = self.opened + options.window_ms * MS
        if now < close_at:
            return close_at
        if not self.closed:
            self.closed, self.in_window, self.is_over = now, False, True
            print("window-close", now, flush=True)
        end = self.closed + options.drain_ms * MS
        return None if self.open <= options.slow or now >= end else min(end, now + 10 * MS)

    def run(self) -> LoadReport:
        for connection in self.slow:
            self.begin(connection, self.began)
        while (until := self.phases(time.monotonic_ns())) is not None:
            due = self.arrivals(time.monotonic_ns())
            nearest = min(due or until, until, self.timers[0][0] if self.timers else until)
            for key, mask in self.selector.select(max(nearest - time.monotonic_ns(), 0) / 1e9):
                if isinstance(key.data, Http2Link):
                    key.data.on_ready(mask)
                else:
                    self.on_ready(key.data, mask)
            now = time.monotonic_ns()
            while self.timers and self.timers[0][0] <= now:
                when, _, connection = heapq.heappop(self.timers)
                if connection.due == when:
                    self.on_timer(connection)
        self.errors["unfinished"] = max(self.open - self.options.slow, 0)
        return LoadReport(
            window_ns=self.closed - self.opened,
            started=self.counts.started,
            finished=self.counts.finished,
            events=self.counts.events,
            last_status=self.last_status,
            window=self.window,
            errors=self.errors,
            cancels=self.cancels,
            latency=Histogram.of(self.latency),
            first_event=Histogram.of(self.first_event),
            duration=Histogram.of(self.duration),
        )


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print(msgspec.json.encode(LoadGenerator(LoadOptions.parse(sys.argv[1:])).run()).decode())


if __name__ == "__main__":
    main()
