"""The requests of the load generator in Python: its options, and requests of each kind, as in ``requests.h``."""

from __future__ import annotations

import sys

from attrs import define, field, fields, frozen

__all__ = ["LoadOptions", "RequestKind", "Requests"]

FRAME_LIMIT = 16384
"""Bound on request bodies over HTTP/2: each is sent in one frame."""


@define
class LoadOptions:
    """Options, named as on the command line with ``_`` for ``-``."""

    port: int = 0
    path: str = "/v1/chat/completions"
    header: list[str] = field(factory=list)
    model: str = "gpt-4o"
    stream: int = 1
    body_bytes: int = 0
    slots: int = 0
    repeat: int = 0
    rate: float = 0.0
    keepalive: int = 1
    max_open: int = 4096
    ramp_ms: int = 0
    warm_ms: int = 500
    window_ms: int = 1000
    drain_ms: int = 2000
    open_limit_ms: int = 10000
    events: int = 0
    cancel: str = ""
    cancel_ms: int = 0
    slow: int = 0
    slow_ms: int = 1000
    first_id: int = 0
    http2: int = 0
    mix: str = ""
    spread: int = 0

    @classmethod
    def parse(cls, arguments: list[str]) -> LoadOptions:
        kinds = {attribute.name: type(getattr(cls(), attribute.name)) for attribute in fields(cls)}
        made = cls()
        for name, value in zip(arguments[::2], arguments[1::2], strict=True):
            attribute = name.removeprefix("--").replace("-", "_")
            if attribute not in kinds:
                sys.exit(f"unknown option: {name}")
            if attribute == "header":
                made.header.append(value)
            else:
                setattr(made, attribute, kinds[attribute](value))
        if made.http2 and made.slow:
            sys.exit("--slow is for HTTP/1.1 only")
        return made


@frozen
class RequestKind:
    """A kind of request: its share in percent, the bounds of its number of events, and the parts of its body."""

    share: int
    fewest: int
    most: int
    is_stream: bool
    start: str
    end: str


class Requests:
    """The kinds of requests of a load, and their bytes."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.kinds = [self._build_kind(*map(int, text.split("/"))) for text in options.mix.split(",") if text]
        if not self.kinds:
            self.kinds = [self._build_kind(100, options.events, options.events, options.body_bytes)]

    def _build_kind(self, share: int, fewest: int, most: int, body_bytes: int) -> RequestKind:
        is_stream = most > 0 if self.options.mix else bool(self.options.stream)
        padding = "".join(" " if i % 8 == 7 else chr(97 + i % 23) for i in range(max(body_bytes - 300, 0)))
        start = (
            f'{{"model":"{self.options.model}","max_tokens":1024,"stream":{"true" if is_stream else "false"},'
            f'"messages":[{{"role":"user","content":"'
        )
        if self.options.http2 and len(start) + len(padding) + 64 > FRAME_LIMIT:
            sys.exit(f"--http2 is for heads and bodies up to {FRAME_LIMIT} bytes")
        return RequestKind(share, fewest, most, is_stream, start, padding + '"}]}')

    def choose(self, index: int) -> tuple[RequestKind, int]:
        """Return the kind of an exchange and its number of events. ``requests.h`` explains the choice."""
        place, among = index * 2654435769 % 2**32 / 2**32 * 100, index * 1779033703 % 2**32 / 2**32
        for kind in self.kinds[:-1]:
            if place < kind.share:
                break
            place -= kind.share
        else:
            kind = self.kinds[-1]
        return kind, kind.fewest + int(among * (kind.most - kind.fewest + 1))

    def build_body(self, kind: RequestKind, exchange: int, events: int) -> bytes:
        marks = f"bench-id:{exchange:010d}:" + (f"events={events:04d}:" if self.options.mix else "")
        return (kind.start + marks + kind.end).encode()

    def build_head(self, body_bytes: int) -> bytes:
        """Return a head of HTTP/1.1."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self._build_fields(body_bytes))
        host = f"host: 127.0.0.1:{self.options.port}\r\n"
        return f"POST {self.options.path} HTTP/1.1\r\n{host}{fields}\r\n".encode()

    def build_http2_fields(self, body_bytes: int) -> list[tuple[str, str]]:
        """Return the same fields for HTTP/2."""
        return [
            *((":method", "POST"), (":scheme", "http"), (":path", self.options.path)),
            (":authority", f"127.0.0.1:{self.options.port}"),
            *((name.lower(), value) for name, value in self._build_fields(body_bytes)),
        ]

    def _build_fields(self, body_bytes: int) -> list[tuple[str, str]]:
        own = [(name, value.strip()) for name, _, value in (header.partition(":") for header in self.options.header)]
        return [
            *(("content-type", "application/json"), ("accept", "*/*"), ("user-agent", "cgw-benchmarks")),
            *own,
            ("content-length", str(body_bytes)),
        ]
