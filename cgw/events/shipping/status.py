"""The state of shipping, as any process can read it from the folder."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from attrs import frozen

from cgw.errors import EventLogError, explain_os_error
from cgw.events.lines import MAX_LINE_BYTES
from cgw.events.shipping.batches import examine_line
from cgw.events.shipping.cursor import CURSOR_NAME, read_cursor
from cgw.events.shipping.failed import FAILED_NAME, OLD_NAME, list_sink_folders
from cgw.events.shipping.scan import Listed, list_sized

COUNT_BYTES = 2**20


@frozen
class SinkStatus:
    """The state of one sink. Sizes in bytes, ``oldest_age_seconds`` is ``None`` when it has all events.

    ``trouble`` says why the sink takes nothing at present, as its shipper noted it last.
    """

    sink: str
    segments: int
    shipped_bytes: int
    unshipped_segments: int
    unshipped_bytes: int
    unshipped_events: int
    oldest_age_seconds: float | None
    failed_events: int
    trouble: str | None


def read_status(folder: Path) -> list[SinkStatus]:
    """Return the state of each sink that events of ``folder`` were ever shipped to, by name.

    Reads all that is not shipped, and the events that were rejected. Raises :exc:`~cgw.errors.EventLogError`.
    """
    try:
        return [_read_sink(folder, sink_folder) for sink_folder in list_sink_folders(folder)]
    except OSError as error:
        raise EventLogError(f"the state of shipping in {folder} cannot be read: {explain_os_error(error)}") from error


def _read_sink(folder: Path, sink_folder: Path) -> SinkStatus:
    path = sink_folder / CURSOR_NAME
    try:
        state = read_cursor(path)
    except ValueError as error:
        raise EventLogError(
            f"the cursor {path} is damaged ({error}): cgw sets it aside when it starts, and sends all events again"
        ) from error
    listed = [*list_sized(folder), *list_sized(sink_folder)]
    offsets = {item.segment.name: min(state.segments.get(item.segment.name, 0), item.size) for item in listed}
    waiting = [item for item in listed if offsets[item.segment.name] < item.size]
    times = [time for item in waiting if (time := _read_first_time(item, offsets[item.segment.name])) is not None]
    return SinkStatus(
        sink=sink_folder.name,
        segments=len(listed),
        shipped_bytes=sum(offsets.values()),
        unshipped_segments=len(waiting),
        unshipped_bytes=sum(item.size - offsets[item.segment.name] for item in waiting),
        unshipped_events=sum(_count_lines(item.segment.path, offsets[item.segment.name]) for item in waiting),
        oldest_age_seconds=max(0.0, (datetime.now(UTC) - min(times)).total_seconds()) if times else None,
        failed_events=sum(_count_lines(sink_folder / name) for name in (OLD_NAME, FAILED_NAME)),
        trouble=state.trouble,
    )


def _read_first_time(listed: Listed, offset: int) -> datetime | None:
    try:
        with open(listed.segment.path, "rb") as file:
            file.seek(offset)
            for _ in range(100):  # lines in which a time is looked for: the first may be damaged
                line = file.readline(MAX_LINE_BYTES)
                if not line:
                    return None
                if (created_at := examine_line(line)) is not None:
                    return datetime.fromisoformat(created_at)
    except (FileNotFoundError, ValueError):  # sealed or deleted meanwhile; a time that is none
        return None
    return None


def _count_lines(path: Path, offset: int = 0) -> int:
    try:
        return sum(piece.count(b"\n") for piece in _read_pieces(path, offset))
    except FileNotFoundError:
        return 0


def _read_pieces(path: Path, offset: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while piece := file.read(COUNT_BYTES):
            yield piece
