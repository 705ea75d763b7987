"""A minimal HTTP/2 client for the load generator in Python, as in ``http2.h``, on the library h2."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Generic, Protocol, TypeVar

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

__all__ = ["Http2Link", "StreamHandler"]

RECEIVE_WINDOW = 16 << 20
DEFAULT_WINDOW = 65535
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

Owner = TypeVar("Owner")
Contravariant = TypeVar("Contravariant", contravariant=True)
Request = tuple[list[tuple[str, str]], bytes]


class StreamHandler(Protocol[Contravariant]):
    """Receives the events of streams, each named by its owner, who may drop the stream within each of them."""

    def on_stream_status(self, owner: Contravariant, status: int) -> None: ...

    def on_stream_data(self, owner: Contravariant, data: bytes, now: int) -> None: ...

    def on_stream_end(self, owner: Contravariant, now: int) -> None: ...

    def on_stream_broken(self, owner: Contravariant, *, is_refused: bool) -> None: ...


class Http2Link(Generic[Owner]):
    """One connection, with many streams. It is not opened again when it was closed or received GOAWAY.

    h2 takes no frames after GOAWAY: unlike the link in C, this one breaks the streams that are still open then.
    """

    def __init__(self, port: int, selector: selectors.BaseSelector, handler: StreamHandler[Owner]) -> None:
        self.selector, self.handler = selector, handler
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.owners: dict[int, Owner] = {}
        self.ids: dict[Owner, int] = {}
        self.waiting: dict[Owner, Request] = {}
        self.output = bytearray()
        self.takes_streams = self.is_open = True
        self.is_reading = self.has_received = self.is_registered_for_output = False
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: RECEIVE_WINDOW,
            },
        )
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(RECEIVE_WINDOW - DEFAULT_WINDOW)
        selector.register(self.sock, READ, self)
        self.flush()

    def request(self, owner: Owner, fields: list[tuple[str, str]], body: bytes) -> bool:
        """Send a request as soon as the connection's window allows; ``False`` if the link takes no new streams."""
        if not self.takes_streams:
            return False
        self.waiting[owner] = fields, body
        self.send_waiting()
        return True

    def send_waiting(self) -> None:
        for owner, (fields, body) in list(self.waiting.items()):
            if len(body) > self.h2.outbound_flow_control_window:
                break
            stream = self.h2.get_next_available_stream_id()
            self.h2.send_headers(stream, fields)
            self.h2.send_data(stream, body, end_stream=True)
            self.owners[stream], self.ids[owner] = owner, stream
            del self.waiting[owner]
        if not self.is_reading:
            self.flush()

    def drop(self, owner: Owner) -> None:
        """Forget a stream, with RST_STREAM if it has not ended."""
        self.waiting.pop(owner, None)
        stream = self.ids.pop(owner, None)
        if stream is None or self.owners.pop(stream, None) is None or not self.takes_streams:
            return
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        if not self.is_reading:
            self.flush()

    def flush(self) -> None:
        self.output += self.h2.data_to_send()
        try:
            while self.output:
                del self.output[: self.sock.send(self.output)]
        except BlockingIOError:
            pass
        except OSError:
            self.output.clear()  # the socket becomes readable, and reading ends the link
        if bool(self.output) != self.is_registered_for_output:
            self.is_registered_for_output = bool(self.output)
            self.selector.modify(self.sock, READ | WRITE if self.output else READ, self)

    def on_ready(self, mask: int) -> None:
        if mask & READ and not self.receive():
            self.close()
        if self.is_open:
            self.flush()

    def receive(self) -> bool:
        """Handle input; ``False`` at its end, or when it is not valid HTTP/2."""
        try:
            got = self.sock.recv(262144)
        except BlockingIOError:
            return True
        except OSError:
            return False
        now = time.monotonic_ns()
        self.has_received = self.has_received or bool(got)
        self.is_reading = True  # output is flushed once, after all events
        try:
            events = self.h2.receive_data(got)
            # h2 has parsed all frames by now: after a GOAWAY among them, it sends nothing for the events before it.
            if any(isinstance(event, h2.events.ConnectionTerminated) for event in events):
                self.takes_streams = False
            for event in events:
                self.handle(event, now)
        except h2.exceptions.ProtocolError:
            return False
        finally:
            self.is_reading = False
        return bool(got)

    def handle(self, event: h2.events.Event, now: int) -> None:
        if isinstance(event, h2.events.WindowUpdated) and self.takes_streams:
            self.send_waiting()
        elif isinstance(event, h2.events.ConnectionTerminated):
            last = event.last_stream_id or 0
            refused = [owner for stream, owner in self.owners.items() if stream > last]
            for owner in (*refused, *self.waiting):
                self.break_stream(owner, is_refused=True)
        elif isinstance(event, h2.events.DataReceived):
            # Acknowledged as it is read, for dropped streams too: their data takes the connection's window.
            if self.takes_streams:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.handle_stream(event, event.stream_id, now)
        elif isinstance(event, h2.events.ResponseReceived | h2.events.StreamEnded | h2.events.StreamReset):
            self.handle_stream(event, event.stream_id, now)

    def handle_stream(self, event: h2.events.Event, stream: int, now: int) -> None:
        owner = self.owners.get(stream)
        if owner is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            status = next((value for name, value in event.headers if name == b":status"), b"0")
            self.handler.on_stream_status(owner, int(status))
        elif isinstance(event, h2.events.DataReceived):
            self.handler.on_stream_data(owner, event.data, now)
        elif isinstance(event, h2.events.StreamEnded):
            del self.owners[stream]
            self.handler.on_stream_end(owner, now)
        else:
            self.break_stream(owner, is_refused=False)

    def break_stream(self, owner: Owner, *, is_refused: bool) -> None:
        self.owners.pop(self.ids.get(owner, 0), None)  # so that `drop` sends no RST_STREAM
        self.handler.on_stream_broken(owner, is_refused=is_refused)

    def close(self) -> None:
        """Close the connection; all of its streams are broken."""
        self.is_open = self.takes_streams = False
        self.selector.unregister(self.sock)
        self.sock.close()
        for owner in (*self.owners.values(), *self.waiting):
            self.break_stream(owner, is_refused=not self.has_received)
