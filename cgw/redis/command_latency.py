"""The latency of Redis commands, by command and by whether the reply was an error: one addition per reply."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from cgw.telemetry.metrics import Distribution, Histogram, MetricReading
from cgw.telemetry.metrics_catalogue import REDIS_LATENCY

HEAD_BYTES = 64
"""The part of a packed command that tells what it is: enough for its first word."""

MAX_HEADS = 1000
"""Heads whose command is known without looking; keys that follow a short command are part of its head."""

MAX_COMMAND_CHARACTERS = 20


ReplyTimes = tuple[Distribution, Distribution]
"""The times of one command's replies, in milliseconds: first of those that are no errors, then of error replies."""


class CommandLatency:
    """Histograms of the time from a command to its reply. Belongs to the Trio thread."""

    def __init__(self) -> None:
        self._histogram = Histogram(REDIS_LATENCY)
        # By head, to save parsing: the scripts of admissions have the same few heads all the time.
        self._known: dict[bytes, ReplyTimes] = {}

    def find(self, data: bytes) -> ReplyTimes:
        """Return the histograms of the replies to a packed command."""
        head = data[:HEAD_BYTES]
        return self._known.get(head) or self._find(head)

    @cached_property
    def of_scripts(self) -> ReplyTimes:
        """The histograms of the replies to scripts that are called by their SHA-1."""
        return self._open("evalsha")

    def read(self) -> Iterator[MetricReading]:
        """Return the readings."""
        return self._histogram.read()

    def _find(self, head: bytes) -> ReplyTimes:
        found = self._open(read_command(head))
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[head] = found
        return found

    def _open(self, command: str) -> ReplyTimes:
        return self._histogram.find(command, "false"), self._histogram.find(command, "true")


def read_command(head: bytes) -> str:
    """Return the first word of a packed command, in lower case: ``*3\\r\\n$3\\r\\nSET…`` is ``set``."""
    words = head.split(b"\r\n", 3)
    if len(words) < 3:
        return "other"
    return words[2][:MAX_COMMAND_CHARACTERS].decode("ascii", "replace").lower()
