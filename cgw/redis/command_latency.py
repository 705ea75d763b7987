"""The latency of Redis commands, by command and by whether the reply was an error: one addition per reply."""

from __future__ import annotations

from collections.abc import Iterator

from cgw.telemetry.metrics import Distribution, Histogram, MetricReading
from cgw.telemetry.metrics_catalogue import REDIS_LATENCY

HEAD_BYTES = 64
"""The part of a packed command that a call keeps: enough for its first word."""

MAX_HEADS = 1000
"""Heads whose command is known without looking; keys that follow a short command are part of its head."""

MAX_COMMAND_CHARACTERS = 20


class CommandLatency:
    """Histograms of the time from a command to its reply. Belongs to the Trio thread."""

    def __init__(self) -> None:
        self._histogram = Histogram(REDIS_LATENCY)
        # By head, to save parsing: the scripts of admissions have the same few heads all the time.
        self._known: dict[bytes, tuple[Distribution, Distribution]] = {}

    def note(self, head: bytes, seconds: float, is_error: bool) -> None:
        """Count a reply to the packed command that begins with ``head``."""
        known = self._known.get(head) or self._find(head)
        known[is_error].observe(seconds * 1000)

    def read(self) -> Iterator[MetricReading]:
        """Return the readings."""
        return self._histogram.read()

    def _find(self, head: bytes) -> tuple[Distribution, Distribution]:
        command = read_command(head)
        found = self._histogram.find(command, "false"), self._histogram.find(command, "true")
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[head] = found
        return found


def read_command(head: bytes) -> str:
    """Return the first word of a packed command, in lower case: ``*3\\r\\n$3\\r\\nSET…`` is ``set``."""
    words = head.split(b"\r\n", 3)
    if len(words) < 3:
        return "other"
    return words[2][:MAX_COMMAND_CHARACTERS].decode("ascii", "replace").lower()
