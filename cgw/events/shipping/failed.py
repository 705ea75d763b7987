"""Events that a sink will never take as they are: set aside in a file of the sink, with the reason, to be sent again.

``<events>/shipping/<sink>/failed.jsonl``, and ``failed.old.jsonl``, which it becomes when it is full::

    {"failed_at": "<UTC>", "reason": "…", "event": {<the line of the event log>}}
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cgw.errors import EventLogError, explain_os_error
from cgw.events.lines import EventLine, encode
from cgw.events.reading import decode_lines
from cgw.events.segments import create_segment
from cgw.events.shipping.cursor import LOCK_NAME, LOCK_SECONDS, SHIPPING_NAME
from cgw.file_lock import hold_file_lock

FAILED_NAME = "failed.jsonl"
OLD_NAME = "failed.old.jsonl"

MAX_BYTES = 32 * 2**20
"""The size of each of the two files. With the older one, events are discarded; the event log still has them."""

MAX_REASON_CHARACTERS = 1000

logger = logging.getLogger("cgw.events")


class FailedEvent(msgspec.Struct):
    """An event that a sink rejected, the time in UTC, and the sink's reason."""

    failed_at: str
    reason: str
    event: EventLine


_decoder = msgspec.json.Decoder(FailedEvent)


def set_aside(sink_folder: Path, rejected: Iterable[tuple[bytes, str]]) -> None:
    """Append rejected events, each its line and the reason. Blocks on the disk; raises :exc:`OSError`."""
    moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    data = b"".join(_render(line, reason, moment) for line, reason in rejected)
    sink_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with hold_file_lock(sink_folder / LOCK_NAME, timeout_seconds=LOCK_SECONDS):
        path = sink_folder / FAILED_NAME
        with suppress(FileNotFoundError):
            if path.stat().st_size + len(data) > MAX_BYTES:
                _rotate(path)
        with open(path, "ab", buffering=0, opener=_open_private) as file:
            length = file.tell()
            if file.write(data) != len(data):
                file.truncate(length)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _rotate(path: Path) -> None:
    old = path.with_name(OLD_NAME)
    if old.exists():
        logger.error(
            "%s is full: the oldest events that %s rejected are discarded, and stay in the event log only; look at "
            "`cgw events failed`",
            path,
            path.parent.name,
        )
    os.replace(path, old)


def _render(line: bytes, reason: str, moment: str) -> bytes:
    # The event's own bytes, which were checked when they were read.
    head = msgspec.json.encode({"failed_at": moment, "reason": reason[:MAX_REASON_CHARACTERS]})
    return head[:-1] + b',"event":' + line.rstrip(b"\n") + b"}\n"


def list_sink_folders(folder: Path, sink_name: str | None = None) -> list[Path]:
    """Return the folders of the sinks that events in ``folder`` were shipped to, or of one of them.

    Raises :exc:`~cgw.errors.EventLogError` when that one is none.
    """
    shipping = folder / SHIPPING_NAME
    found = sorted(path for path in shipping.iterdir() if path.is_dir()) if shipping.is_dir() else []
    if sink_name is None:
        return found
    chosen = [path for path in found if path.name == sink_name]
    if not chosen:
        names = ", ".join(path.name for path in found) or "none"
        raise EventLogError(f"nothing was ever shipped to {sink_name} from {folder}; the sinks are: {names}")
    return chosen


def read_failed(sink_folder: Path) -> Iterator[FailedEvent]:
    """Yield the events that were set aside, the oldest first. Raises :exc:`~cgw.errors.EventLogError`."""
    for name in (OLD_NAME, FAILED_NAME):
        try:
            lines = (sink_folder / name).read_bytes()  # bounded by MAX_BYTES
        except FileNotFoundError:
            continue
        except OSError as error:
            raise EventLogError(f"{sink_folder / name} cannot be read: {explain_os_error(error)}") from error
        failed, damaged = decode_lines(_decoder, lines)
        if damaged:
            logger.error("%s has %d damaged lines; they are skipped", sink_folder / name, damaged)
        yield from failed


def retry_failed(sink_folder: Path) -> int:
    """Put the events that were set aside into a segment of the sink's own, which is shipped next; return how many.

    An interruption may leave them in both places; they are then sent twice, with the same ids. Raises
    :exc:`~cgw.errors.EventLogError`.
    """
    try:
        with hold_file_lock(sink_folder / LOCK_NAME, timeout_seconds=LOCK_SECONDS):
            count, lines = 0, []
            for failed in read_failed(sink_folder):
                count += 1
                lines.append(encode(failed.event) + b"\n")
            if lines:
                segment = create_segment(sink_folder, has_sync=True)
                try:
                    segment.append(b"".join(lines))
                finally:
                    segment.seal()
            for name in (OLD_NAME, FAILED_NAME):
                with suppress(FileNotFoundError):
                    (sink_folder / name).unlink()
    except OSError as error:
        raise EventLogError(f"events of {sink_folder} cannot be sent again: {explain_os_error(error)}") from error
    return count
