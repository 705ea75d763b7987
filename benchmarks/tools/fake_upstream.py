"""The fake upstream in Python. ``fake_upstream.c`` documents options, commands and output.

For machines without a C compiler, or (with ``--cert``) without OpenSSL's headers.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import socket
import ssl
import sys
import time
from typing import ClassVar

import msgspec

from benchmarks.histogram import Histogram
from benchmarks.tools.framing import FramingError, MessageBody, MessageHead, split_head

ID_PREFIX = b"bench-id:"
EVENTS_PREFIX = b"events="
SECOND_PROFILE_FROM = 5_000_000_000
KEPT_BODY = 4096
FLOOD_TURN = 65536  # bytes that one stream of a flood sends before others have their turn
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

CHUNK_START = (
    '{"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1790000000,"model":"gpt-4o","choices":['
)
CHUNK = f'data: {CHUNK_START}{{"index":0,"delta":{{"content":"@%d %d %d~"}},"finish_reason":null}}]}}\n\n'
USAGE = '"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}'
CHUNKS_END = (
    f'data: {CHUNK_START}{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'
    f"data: {CHUNK_START}],{USAGE}}}\n\ndata: [DONE]\n\n"
)
DELTAS_START = (
    'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_benchmark","type":"message",'
    '"role":"assistant","content":[],"model":"claude-3-haiku-20240307","stop_reason":null,"stop_sequence":null,'
    '"usage":{"input_tokens":9,"output_tokens":1}}}\n\nevent: content_block_start\n'
    'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
)
DELTA = (
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    '{"type":"text_delta","text":"@%d %d %d~ and some words to fill it up"}}\n\n'
)
DELTAS_END = (
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\nevent: message_delta\n'
    'data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    '"usage":{"output_tokens":12}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CHAT_JSON = (
    '{"id":"chatcmpl-benchmark","object":"chat.completion","created":1790000000,"model":"gpt-4o",'
    f'{USAGE},"choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"%s"}}}}]}}'
)
MESSAGE_JSON = (
    '{"id":"msg_benchmark","type":"message","role":"assistant","model":"claude-3-haiku-20240307",'
    '"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":9,"output_tokens":12},'
    '"content":[{"type":"text","text":"%s"}]}'
)


class GoneError(Exception):
    """The peer has closed the connection, or does not speak HTTP/1.1."""


class AnswerProfile:
    """Settings of answers. Times are in nanoseconds."""

    NAMES: ClassVar[tuple[str, ...]] = ("stream", "events", "interval", "first", "duration", "burst", "bytes")

    def __init__(self, values: dict[str, int] | None = None) -> None:
        base = {
            "stream": 1,
            "events": 10,
            "interval": 20_000_000,
            "first": 0,
            "duration": 10**9,
            "burst": 16,
            "bytes": 200,
        }
        self.values = base if values is None else values
        self.stream, self.events, self.interval, self.first, self.duration, self.burst, self.bytes = (
            self.values[name] for name in self.NAMES
        )

    def changed(self, words: list[str]) -> AnswerProfile:
        pairs = (word.partition("=") for word in words)
        return AnswerProfile({**self.values, **{name: int(value) for name, _, value in pairs if name in self.NAMES}})


class FakeConnection:
    """One client, from accept to close."""

    def __init__(self, server: FakeUpstream, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.is_shaking_hands = isinstance(sock, ssl.SSLSocket)
        self.input, self.output = bytearray(), bytearray()
        self.head: MessageHead | None = None
        self.body: MessageBody | None = None
        self.start_of_body = bytearray()
        self.profile = server.profiles["a"]
        self.is_answering = self.is_blocked = self.is_closed = False
        self.exchange = self.sequence = self.started = self.due = 0

    # --- input
    def on_readable(self) -> None:
        if self.is_shaking_hands:
            assert isinstance(self.sock, ssl.SSLSocket)
            try:
                self.sock.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            self.is_shaking_hands = False
        while True:
            try:
                got = self.sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not got:
                raise GoneError
            self.input += got
            # While answering, bytes of a next request wait in `input`; `finish` parses them.
            if not self.is_answering:
                self.parse()

    def parse(self) -> None:
        if self.head is None:
            self.head = split_head(self.input)
            if self.head is None:
                return
            self.body = MessageBody(self.head, "none")
            self.start_of_body.clear()
        assert self.body is not None
        for piece in self.body.take(self.input):
            self.start_of_body += piece[: KEPT_BODY - len(self.start_of_body)]
        if self.body.done:
            self.start_answer()

    def start_answer(self) -> None:
        _, prefix, rest = self.start_of_body.partition(ID_PREFIX)
        number, _, rest = rest.partition(b":")
        self.exchange = int(number) if prefix else 0
        self.profile = self.server.profiles["b" if self.exchange >= SECOND_PROFILE_FROM else "a"]
        if rest.startswith(EVENTS_PREFIX):  # the request asks for an answer of its own
            events = int(rest.removeprefix(EVENTS_PREFIX).partition(b":")[0])
            self.profile = self.profile.changed([f"events={events}", f"stream={int(events > 0)}"])
        self.is_answering, self.sequence, self.started = True, 0, time.monotonic_ns()
        self.server.requests += 1
        if self.profile.first:
            self.server.arm(self, self.started + self.profile.first)
        else:
            self.answer(was_blocked=False)

    # --- output
    @property
    def is_messages(self) -> bool:
        return self.head is not None and self.head.start[1].endswith("/messages")

    def flush(self) -> None:
        while self.output:
            try:
                sent = self.sock.send(self.output)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            del self.output[:sent]
        if self.is_blocked != bool(self.output):
            self.is_blocked = bool(self.output)
            self.server.selector.modify(self.sock, READ | WRITE if self.is_blocked else READ, self)

    def append_chunk(self, text: str) -> None:
        self.output += b"%x\r\n%b\r\n" % (len(text), text.encode())

    def append_event(self, stamp: int) -> None:
        if self.sequence == 0:
            self.output += STREAM_HEAD
            if self.is_messages:
                self.append_chunk(DELTAS_START)
        self.append_chunk((DELTA if self.is_messages else CHUNK) % (stamp, self.exchange, self.sequence))
        self.sequence += 1
        self.server.events += 1

    def append_json(self) -> None:
        text = f"@{time.monotonic_ns()} {self.exchange} {self.sequence}~" + "w" * self.profile.bytes
        body = ((MESSAGE_JSON if self.is_messages else CHAT_JSON) % text).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.output += head.encode() + body
        self.server.events += 1

    def answer(self, *, was_blocked: bool) -> None:
        """Send what is due. ``answer`` in ``fake_upstream.c`` explains the timestamps."""
        profile, now = self.profile, time.monotonic_ns()
        if not profile.stream:
            self.append_json()
            self.finish()
        elif profile.interval == 0:
            self.flood(now)
        else:
            due = self.started + profile.first + self.sequence * profile.interval
            # At the next event, not at once: all streams ending in the same instant would be a burst of their own.
            is_over = self.started < self.server.ended_at and due <= now
            while due <= now and self.sequence < profile.events:
                if not was_blocked:
                    now = time.monotonic_ns()
                    self.server.late.append(now - due)
                self.append_event(due if was_blocked else now)
                due += profile.interval
            if self.sequence >= profile.events or is_over:
                self.finish()
                return
            self.flush()
            if not self.is_blocked:
                self.server.arm(self, due)

    def flood(self, now: int) -> None:
        sent = 0
        while sent < FLOOD_TURN:
            if now - self.started >= self.profile.duration or self.started < self.server.ended_at:
                self.finish()
                return
            for _ in range(self.profile.burst):
                self.append_event(now)
            sent += len(self.output)
            self.flush()
            if self.is_blocked:  # `on_writable` continues
                return
            now = time.monotonic_ns()
        self.server.arm(self, now)

    def finish(self) -> None:
        assert self.head is not None
        if self.profile.stream:
            self.append_chunk(DELTAS_END if self.is_messages else CHUNKS_END)
            self.output += b"0\r\n\r\n"
        keeps_alive, self.head, self.is_answering = self.head.keeps_alive, None, False
        self.flush()
        if not keeps_alive and not self.is_blocked:
            raise GoneError
        self.parse()

    def on_writable(self) -> None:
        self.flush()
        if not self.is_blocked and self.is_answering:
            self.answer(was_blocked=True)


class FakeUpstream:
    """The event loop: connections, timers, and commands from standard input."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.selector = selectors.DefaultSelector()
        self.profiles = {"a": AnswerProfile(), "b": AnswerProfile()}
        self.late: list[int] = []
        self.closes: list[tuple[int, int]] = []
        self.requests = self.events = self.ended_at = 0
        self.due: list[tuple[int, int, FakeConnection]] = []
        self.armed = 0
        self.commands = bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, READ)
        self.selector.register(sys.stdin.fileno(), READ)

    def arm(self, connection: FakeConnection, due: int) -> None:
        self.armed += 1
        connection.due = due
        # `armed` breaks ties, as connections cannot be ordered. `fire` ignores entries that no longer apply.
        heapq.heappush(self.due, (due, self.armed, connection))

    def run(self) -> None:
        print(f"port {self.listener.getsockname()[1]}", flush=True)
        while True:
            left = (self.due[0][0] - time.monotonic_ns()) / 1e9 if self.due else 1.0
            ready = self.selector.select(max(left, 0))
            now = time.monotonic_ns()
            for key, mask in ready:
                if isinstance(key.data, FakeConnection):
                    self.step(key.data, now, is_readable=bool(mask & READ), is_writable=bool(mask & WRITE))
                elif key.fileobj is self.listener:
                    self.accept()
                elif not self.read_commands():
                    return
            self.fire()

    def step(
        self, connection: FakeConnection, now: int, *, is_readable: bool = False, is_writable: bool = False
    ) -> None:
        try:
            if is_readable:
                connection.on_readable()
            if is_writable:
                connection.on_writable()
            if not is_readable and not is_writable:
                connection.answer(was_blocked=False)
        except (GoneError, FramingError, OSError):
            self.end(connection, now)

    def fire(self) -> None:
        now = time.monotonic_ns()
        for _ in range(512):  # then sockets and commands have their turn again
            if not self.due or self.due[0][0] > now:
                return
            due, _, connection = heapq.heappop(self.due)
            if connection.is_answering and connection.due == due and not connection.is_closed:
                self.step(connection, now)

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context:
                sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self.selector.register(sock, READ, FakeConnection(self, sock))

    def end(self, connection: FakeConnection, now: int) -> None:
        if connection.is_answering:  # otherwise it was idle, which is no abort
            self.closes.append((connection.exchange, now))
        self.selector.unregister(connection.sock)
        connection.sock.close()
        connection.is_closed = True

    def read_commands(self) -> bool:
        got = os.read(sys.stdin.fileno(), 4096)
        self.commands += got
        while (end := self.commands.find(b"\n")) >= 0:
            words = self.commands[:end].decode().split()
            del self.commands[: end + 1]
            print(self.obey(words), flush=True)
        return bool(got)

    def obey(self, words: list[str]) -> str:
        match words:
            case ["set", name, *settings] if name in self.profiles:
                self.profiles[name] = self.profiles[name].changed(settings)
            case ["end"]:
                self.ended_at = time.monotonic_ns()
            case ["reset"]:
                self.requests = self.events = 0
                self.late.clear()
                self.closes.clear()
            case ["stats"]:
                counts = {"requests": self.requests, "events": self.events}
                return msgspec.json.encode({**counts, "late": Histogram.of(self.late)}).decode()
            case ["closes"]:
                return msgspec.json.encode(self.closes).decode()
            case _:
                return "unknown command"
        return "ok"


def main() -> None:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    context = None
    if "--cert" in options:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options["--cert"], options["--key"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end quietly, without a traceback of KeyboardInterrupt
    FakeUpstream(context).run()


if __name__ == "__main__":
    main()
