"""HTTP servers that stand for a collector or Sentry: they keep what they get, are slow, refuse, or never answer."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field, frozen
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@frozen
class Posted:
    """One request, its body decompressed."""

    path: str
    headers: dict[str, str]
    body: bytes


@define
class Receiver:
    """An open server. ``status`` and ``delay_seconds`` are of its answers; ``headers`` are sent with them.

    Without an end an answer goes on as fast as it is taken; ``sent_bytes`` counts it.
    """

    url: str
    status: int = 200
    delay_seconds: float = 0
    headers: dict[str, str] = field(factory=dict)
    answer: bytes = b""
    posts: list[Posted] = field(factory=list)
    hangs: bool = False
    has_end: bool = True
    sent_bytes: int = 0
    _released: threading.Event = field(factory=threading.Event)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until ``condition`` is true; fail after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the server did not get what was expected"
            time.sleep(0.01)

    def spans(self) -> list[Span]:
        """Return the spans of all OTLP requests."""
        posts = [post for post in self.posts if post.path.endswith("/v1/traces")]
        requests = [ExportTraceServiceRequest.FromString(post.body) for post in posts]
        return [
            span
            for request in requests
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]

    def events(self) -> list[dict[str, Any]]:
        """Return the events of all Sentry envelopes."""
        envelopes = [post.body for post in self.posts if post.path.endswith("/envelope/")]
        return [payload for body in envelopes for kind, payload in parse_envelope(body) if kind == "event"]


def parse_envelope(body: bytes) -> Iterator[tuple[str, Any]]:
    """Yield type and payload of each item of an envelope (https://develop.sentry.dev/sdk/data-model/envelopes/)."""
    _, _, rest = body.partition(b"\n")
    while rest:
        line, _, rest = rest.partition(b"\n")
        if not line:
            continue
        header = json.loads(line)
        length = header["length"]
        yield header["type"], json.loads(rest[:length])
        rest = rest[length:].removeprefix(b"\n")


def read_value(value: AnyValue) -> Any:
    """Return an attribute's value."""
    kind = value.WhichOneof("value")
    assert kind is not None
    return getattr(value, kind)


def read_attributes(attributes: Any) -> dict[str, Any]:
    """Return attributes by name; each may be there once."""
    pairs: list[KeyValue] = list(attributes)
    assert len({pair.key for pair in pairs}) == len(pairs)
    return {pair.key: read_value(pair.value) for pair in pairs}


@contextmanager
def open_receiver() -> Iterator[Receiver]:
    """Serve on a free port of loopback while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.posts.append(Posted(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            if receiver.hangs:
                receiver._released.wait()
                self.close_connection = True
                return
            receiver._released.wait(receiver.delay_seconds)
            with suppress(ConnectionError):  # whoever posted may have ended meanwhile
                self._answer()

        def _answer(self) -> None:
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            if not receiver.has_end:
                self.end_headers()
                self.close_connection = True
                while self.wfile.write(bytes(65536)):
                    receiver.sent_bytes += 65536
            self.send_header("content-length", str(len(receiver.answer)))
            self.end_headers()
            self.wfile.write(receiver.answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver._released.set()
        server.shutdown()
        thread.join()
        server.server_close()
