"""The HTTP/2 client of both load generators, against a scripted server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest

from benchmarks.binaries import build_tools, python_tools
from benchmarks.machine import pick_cores
from benchmarks.tool_processes import LoadReport, Target, run_load

TOOLS = [
    "python",
    pytest.param("c", marks=pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")),
]
LAST = b"data: [DONE]\n\n"
FRAME_BYTES = 16384
Answer = Callable[["ScriptedServer", int, int], None]
Run = Callable[..., tuple[LoadReport, "ScriptedServer"]]


class ScriptedServer:
    """Serves one connection; ``answer`` is called with the stream and exchange of each request."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.streams: list[int] = []
        self.fields: list[tuple[str, str]] = []
        self.resets: list[int] = []
        self.unsent: dict[int, bytearray] = {}
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        with sock:
            self.h2.initiate_connection()
            sock.sendall(self.h2.data_to_send())
            # After GOAWAY, h2 takes no further frames, such as the RST_STREAM of a stream that was already open.
            with contextlib.suppress(h2.exceptions.ProtocolError):
                while got := sock.recv(65536):
                    for event in self.h2.receive_data(got):
                        self.handle(event)
                    sock.sendall(self.h2.data_to_send())
            # Closing it with unread input would reset the connection, and what was sent could be lost.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                continue

    def handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.fields = [(str(name), str(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.streams.append(event.stream_id)
            self.answer(self, event.stream_id, int(event.data.partition(b"bench-id:")[2].partition(b":")[0]))
        elif isinstance(event, h2.events.StreamReset):
            self.resets.append(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in list(self.unsent):
                self.send_unsent(stream)

    def send_head(self, stream: int, status: int = 200) -> None:
        self.h2.send_headers(stream, [(":status", str(status)), ("content-type", "text/event-stream")])

    def send_unsent(self, stream: int) -> None:
        """Send as much as the windows allow, and the end of the stream after it."""
        while (room := min(self.h2.local_flow_control_window(stream), FRAME_BYTES)) > 0:
            piece = bytes(self.unsent[stream][:room])
            del self.unsent[stream][:room]
            self.h2.send_data(stream, piece, end_stream=not self.unsent[stream])
            if not self.unsent[stream]:
                del self.unsent[stream]
                return


def event(exchange: int, sequence: int = 0) -> bytes:
    return b"data: @%d %d %d~\n\n" % (time.monotonic_ns(), exchange, sequence)


@pytest.fixture(scope="module", params=TOOLS)
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command of the load generator in each language."""
    if request.param == "python":
        return python_tools().load
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CGW_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build_tools("c").load


@pytest.fixture
def run(load: tuple[str, ...], tmp_path: Path) -> Iterator[Run]:
    """A function that runs a load of one connection against a server with the given answers."""
    servers: list[ScriptedServer] = []

    def make(answer: Answer, **settings: int | str) -> tuple[LoadReport, ScriptedServer]:
        server = ScriptedServer(answer)
        servers.append(server)
        server.thread.start()
        target = Target(0, headers=("Authorization: Bearer " + "x" * 200,), http2_port=server.port)
        phases = {"warm-ms": 0, "window-ms": 50, "drain-ms": 5000, "open-limit-ms": 0, "http2": 1}
        options = {**phases, **{name.replace("_", "-"): value for name, value in settings.items()}}
        report = run_load(load, target, options, cores=pick_cores().load, log=tmp_path / "load.log")
        server.thread.join(10)
        return report, server

    yield make
    for server in servers:
        server.listener.close()


def errors_of(report: LoadReport) -> dict[str, int]:
    return {name: count for name, count in report.errors.items() if count}


def test_streams_share_a_connection_and_their_events_are_checked(run: Run) -> None:
    """Answers may come in padded frames of one byte; the request has the fields of HTTP/1.1, a long one included."""

    def answer(server: ScriptedServer, stream: int, exchange: int) -> None:
        server.send_head(stream)
        for byte in event(exchange) + event(exchange, 1):
            server.h2.send_data(stream, bytes([byte]), pad_length=byte % 4)
        server.h2.send_data(stream, LAST)
        server.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)

    report, server = run(answer, slots=3, events=2)
    assert errors_of(report) == {}
    assert (report.finished, report.events) == (3, 6)
    assert server.streams == [1, 3, 5]
    assert (":authority", f"127.0.0.1:{server.port}") in server.fields
    assert ("authorization", "Bearer " + "x" * 200) in server.fields


@pytest.mark.parametrize("status", [200, 401, 404, 503, 799])
def test_every_status_is_read(run: Run, status: int) -> None:
    """Statuses of the static table and those in Huffman code are read; all but 200 are errors."""

    def answer(server: ScriptedServer, stream: int, exchange: int) -> None:
        server.send_head(stream, status)
        server.h2.send_data(stream, event(exchange) + LAST, end_stream=True)

    report, _ = run(answer, slots=1)
    assert errors_of(report) == ({} if status == 200 else {"status": 1})
    assert report.last_status == (0 if status == 200 else status)


def test_broken_streams_are_counted(run: Run) -> None:
    """A reset, an end without the last event, a wrong event and GOAWAY cost only the streams that they concern."""

    def answer(server: ScriptedServer, stream: int, exchange: int) -> None:
        if stream == 9:
            server.h2.close_connection(last_stream_id=7)
            return
        server.send_head(stream)
        server.h2.send_data(stream, event(exchange, 5 if stream == 5 else 0))
        if stream == 1:
            server.h2.reset_stream(stream)
        elif stream != 5:
            server.h2.send_data(stream, b"" if stream == 3 else LAST, end_stream=True)

    report, _ = run(answer, slots=5)
    assert report.finished == 1
    assert errors_of(report) == {"truncated": 2, "corrupt": 1, "refused": 1}


def test_a_cancel_resets_the_stream(run: Run) -> None:
    """A cancelled exchange ends with RST_STREAM, and its connection stays open for the others."""

    def answer(server: ScriptedServer, stream: int, exchange: int) -> None:
        server.send_head(stream)
        server.h2.send_data(stream, event(exchange))

    report, server = run(answer, slots=2, cancel="streaming", cancel_ms=5)
    assert errors_of(report) == {}
    assert len(report.cancels) == 2
    assert sorted(server.resets) == [1, 3]


def test_windows_are_given_back(run: Run) -> None:
    """An answer longer than both windows arrives whole, and requests beyond the server's window are sent later."""

    def answer(server: ScriptedServer, stream: int, exchange: int) -> None:
        server.send_head(stream)
        filler = b"w" * (18 << 20) if stream == 1 else b""
        server.unsent[stream] = bytearray(event(exchange) + filler + event(exchange, 1) + LAST)
        server.send_unsent(stream)

    report, _ = run(answer, slots=8, events=2, body_bytes=12000)
    assert errors_of(report) == {}
    assert report.finished == 8
