"""Reading the event log, also while processes write to it.

A reader's place is a cursor in each segment: ``(name, offset)``, the offset after a newline. Several processes write
at once, so that no single cursor could cover them all. Only whole lines are read; damaged ones are skipped, counted,
and reported once per segment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from attrs import frozen

from cgw.errors import EventLogError, explain_os_error
from cgw.events.lines import MAX_LINE_BYTES, EventLine
from cgw.events.segments import SEALED_SUFFIX, Segment, list_segments

T = TypeVar("T")

_CHUNK_BYTES = 2**20

logger = logging.getLogger("cgw.events")


@frozen
class Chunk:
    """Some whole lines of a segment, and the offset after them, from where reading can go on."""

    lines: bytes
    offset: int


def read_chunks(segment: Segment, offset: int = 0) -> Iterator[Chunk]:
    """Yield what stands in ``segment`` after ``offset``, up to its last newline, some 1 MiB at a time.

    ``offset`` is 0 or that of an earlier chunk; both stay valid when the segment is sealed. Of a segment that was
    deleted since it was listed there is nothing. A line longer than any that is written is cut to one NUL byte, so
    that it costs no memory. Raises :exc:`~cgw.errors.EventLogError`.
    """
    try:
        with _open(segment) as file:
            file.seek(offset)
            rest = b""
            position = offset
            while data := file.read(_CHUNK_BYTES):
                position += len(data)
                data = rest + data
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if end:
                    yield Chunk(data[:end], position - len(rest))
                if len(rest) > MAX_LINE_BYTES:
                    rest = b"\0"
    except FileNotFoundError:
        return
    except OSError as error:
        raise EventLogError(f"event segment {segment.path} cannot be read: {explain_os_error(error)}") from error


def _open(segment: Segment) -> BinaryIO:
    try:
        return open(segment.path, "rb", buffering=0)
    except FileNotFoundError:  # sealed since it was listed
        return open(segment.beside(SEALED_SUFFIX), "rb", buffering=0)


def decode_lines(decoder: msgspec.json.Decoder[T], lines: bytes) -> tuple[list[T], int]:
    """Return what the whole ``lines`` hold, and how many are damaged. Blank lines are neither."""
    try:
        found = decoder.decode_lines(lines)  # its errors, and those of invalid UTF-8, are ValueErrors
    except (ValueError, RecursionError):
        return _decode_each(decoder, lines)
    # To msgspec a newline within a value is a blank: two damaged lines may make one value.
    return (found, 0) if len(found) == lines.count(b"\n") else _decode_each(decoder, lines)


def _decode_each(decoder: msgspec.json.Decoder[T], lines: bytes) -> tuple[list[T], int]:
    found, damaged = [], 0
    for line in lines.split(b"\n"):
        if line.strip():
            try:
                found.append(decoder.decode(line))
            except (ValueError, RecursionError):
                damaged += 1
    return found, damaged


def report_damage(segment: Segment, damaged: int) -> None:
    """Log that a segment has lines that cannot be read."""
    logger.error("event segment %s has %d damaged lines; they are skipped", segment.path, damaged)


def list_readable_segments(folder: Path) -> list[Segment]:
    """Return the segments of the event log in ``folder``; none when nothing was recorded there yet.

    Raises :exc:`~cgw.errors.EventLogError` when the data directory that holds the folder is missing or cannot be read.
    """
    try:
        return list_segments(folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and folder.parent.is_dir():
            return []
        missing = folder if folder.parent.is_dir() else folder.parent
        reason = explain_os_error(error)
        raise EventLogError(
            f"usage events cannot be read from {missing}: {reason}; see --data-dir and CODY_GATEWAY_DATA_DIR"
        ) from error


def read_events(folder: Path) -> Iterator[EventLine]:
    """Yield the recorded events, those of one segment in the order in which they were recorded.

    One error per segment is logged if lines of it are damaged. Raises :exc:`~cgw.errors.EventLogError`.
    """
    decoder = msgspec.json.Decoder(EventLine)
    for segment in list_readable_segments(folder):
        damaged = 0
        for chunk in read_chunks(segment):
            events, damaged_here = decode_lines(decoder, chunk.lines)
            damaged += damaged_here
            yield from events
        if damaged:
            report_damage(segment, damaged)
