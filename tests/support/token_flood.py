"""A flood of random tokens, in a process of its own: ``python -m tests.support.token_flood PORT COUNT RATE``.

Sends ``COUNT`` requests, each with another ``sgd_`` token, at ``RATE`` a second on a few connections; prints how many
got which status, as JSON.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections import Counter

CONNECTIONS = 8
FLOOD_SECONDS = 80.0
"""When the flood ends, however slow the machine is."""

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}'


def build_request(number: int) -> bytes:
    """Return a request with a token that nobody knows."""
    token = "sgd_" + random.Random(number).randbytes(32).hex()
    return (
        f"POST /v1/completions/openai HTTP/1.1\r\nhost: x\r\nx-sourcegraph-feature: chat_completions\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY


def read_answer(stream: socket.socket) -> tuple[int, bool]:
    """Read one answer, which has a content-length; return its status, and whether the connection goes on."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += receive(stream)
    return int(head.split(b" ", 2)[1]), b"connection: close" not in head.lower()


def connect(port: int) -> socket.socket:
    """Open a connection to the gateway."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def receive(stream: socket.socket) -> bytes:
    """Receive something; the end of the connection is an error."""
    data = stream.recv(65536)
    if not data:
        raise ConnectionError("the gateway closed the connection")
    return data


def flood(port: int, count: int, rate: float) -> Counter[int]:
    """Send the requests, evenly, and return the number of answers by status."""
    streams = [connect(port) for _ in range(CONNECTIONS)]
    statuses: Counter[int] = Counter()
    started = time.monotonic()
    for number in range(count):
        now = time.monotonic()
        if now - started > FLOOD_SECONDS:
            break
        time.sleep(max(0.0, started + number / rate - now))
        place = number % CONNECTIONS
        streams[place].sendall(build_request(number))
        status, goes_on = read_answer(streams[place])
        statuses[status] += 1
        if not goes_on:
            streams[place].close()
            streams[place] = connect(port)
    for stream in streams:
        stream.close()
    return statuses


if __name__ == "__main__":
    found = flood(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    sys.stdout.write(json.dumps(found))
