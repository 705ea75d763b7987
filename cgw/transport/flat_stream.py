"""One body that the flat relay forwards: its two sockets, its state, and how it ends."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

import trio
from attrs import field, frozen

from cgw.transport.sockets import Scratch
from cgw.wire.framers import Framer, FramerState


class Reader(Protocol):
    """The upstream's side: a :class:`~cgw.transport.sockets.Transport`."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        ...

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """Return a function that reads what is available up to a size; ``b""`` at the end of the stream."""
        ...


class Writer(Protocol):
    """The client's side: a non-blocking socket."""

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        ...

    def send(self, data: bytes, /) -> int:
        """Write what the kernel takes; return how much."""
        ...


class StreamEnd(enum.Enum):
    """The reason for which the flat relay gave a stream back to its exchange."""

    COMPLETE = "complete"
    """The upstream ended the body properly; ``held`` is still to be sent."""
    FINAL = "final"
    """The API's last event has come; it, and what follows, is still to be sent."""
    UNUSUAL = "unusual"
    """The fallback path has to continue, with ``held`` as its next data."""
    BROKEN = "broken"
    """The upstream broke the framing, or the connection ended or failed before the body was complete."""
    SILENT = "silent"
    """The upstream sent nothing for too long."""
    STALLED = "stalled"
    """The client read nothing for too long."""
    CLIENT_GONE = "client_gone"
    """Writing to the client's socket failed."""


@frozen
class StreamOutcome:
    """The end of a stream. ``held`` is data of the upstream's that was not forwarded; ``reason`` is for logs.

    ``at`` is when the last data came, by the clock of the relay's caller, for a body that has not failed.
    """

    end: StreamEnd
    held: bytes
    reason: str = ""
    at: float | None = field(default=None, eq=False)

    @classmethod
    def from_framer(cls, state: FramerState, framer: Framer, at: float) -> StreamOutcome:
        """Build the outcome for a final state of a framer, reached with data that came at time ``at``."""
        if state is FramerState.MALFORMED:
            return cls(StreamEnd.BROKEN, b"", "the upstream broke the framing of its body")
        # No table: hashing a member of an enumeration costs more than all of this.
        if state is FramerState.COMPLETE:
            return cls(StreamEnd.COMPLETE, framer.held, at=at)
        return cls(StreamEnd.FINAL if state is FramerState.FINAL else StreamEnd.UNUSUAL, framer.held, at=at)


class FlatStream:
    """A body that is being forwarded. All fields are guarded by the relay's lock, except as noted.

    Only one of its sockets is registered with epoll at a time, which says what the stream is doing::

        forward() ──> reading (reader_fd) ── the client took less than was read ──> writing (writer_fd)
                         │  ^                                                          │  │
                         │  └──────────────── all of ``unsent`` was taken ─────────────┘  │
                         │                                                                │
                         └── the framer's state is final, an error, a timeout, cancelled ─┴──> ended (none)

    Once it has ended, the task is rescheduled with a :class:`StreamOutcome`, unless it was cancelled.
    """

    # Slots: there are thousands of streams, and attributes are read for each event.
    __slots__ = (
        "active_at",
        "framer",
        "framer_state",
        "on_first_chunk",
        "reader_fd",
        "receive",
        "send",
        "take",
        "task",
        "unsent",
        "writer_fd",
    )

    def __init__(
        self,
        reader: Reader,
        receive: Callable[[int], bytes],
        writer: Writer,
        framer: Framer,
        on_first_chunk: Callable[[float], None] | None,
    ) -> None:
        # epoll reports numbers, and the loop compares them for every event.
        self.reader_fd = reader.fileno()
        self.writer_fd = writer.fileno()
        self.receive = receive
        self.send = writer.send
        self.framer = framer
        self.take = framer.take
        self.on_first_chunk = on_first_chunk
        self.task: trio.lowlevel.Task | None = None  # only used in Trio's thread; None once it was rescheduled
        self.unsent = b""  # while this is not empty, the upstream is not read
        self.framer_state = FramerState.OPEN
        self.active_at = 0.0  # the last time that the side we wait for made progress
