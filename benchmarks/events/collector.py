"""A receiver of the sink ``http``: ``python -m benchmarks.events.collector``.

It prints ``port N``, and for each line that it is sent, ``N M``: the events that have come, and how many of them are
different.
"""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ID_START = len(b'{"id":"')
ID_END = ID_START + 36

__all__ = ["main"]


class Collector(ThreadingHTTPServer):
    """Counts events. One thread for each connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events = 0
        self.ids: set[bytes] = set()


class Handler(BaseHTTPRequestHandler):
    """One connection, which is kept open."""

    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        lines = gzip.decompress(body).splitlines()
        # One step of the interpreter each, so no lock is needed for the set; the count is for people.
        self.server.ids.update(line[ID_START:ID_END] for line in lines)
        self.server.events += len(lines)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def main() -> None:
    """Serve until standard input ends."""
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("port", server.server_address[1], flush=True)
    for _ in sys.stdin:
        print(server.events, len(server.ids), flush=True)


if __name__ == "__main__":
    main()
