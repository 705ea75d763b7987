"""The cursor of a sink: how far it has each segment, in a file that all processes of a data directory share.

``<events>/shipping/<sink>/cursor.json``::

    {"segments": {"<name>": <offset after the last event that the sink has>, …}, "trouble": "…" or null}

A process changes the entries of the segments that it has claimed (:mod:`cgw.events.shipping.claims`), and leaves the
others as they are: the file is read, changed and replaced under a lock. It is not synced: after a power cut it may be
old or garbage, and then events are sent again, which sinks deduplicate by their ids.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cgw.file_lock import hold_file_lock

SHIPPING_NAME = "shipping"
CURSOR_NAME = "cursor.json"
LOCK_NAME = "lock"
LOCK_SECONDS = 5.0

logger = logging.getLogger("cgw.events")


class CursorState(msgspec.Struct):
    """The contents of a cursor file.

    ``segments`` has the offset of each segment that was begun. ``trouble`` says why the sink takes nothing at present,
    and since when; it is for ``cgw events status``.
    """

    segments: dict[str, int] = {}
    trouble: str | None = None


_decode = msgspec.json.Decoder(CursorState).decode


def get_sink_folder(folder: Path, sink_name: str) -> Path:
    """Return where the files of a sink are, beside the segments in ``folder``."""
    return folder / SHIPPING_NAME / sink_name


class CursorFile:
    """The cursor file in a sink's folder. Every method blocks on the disk, and raises :exc:`OSError`."""

    def __init__(self, sink_folder: Path) -> None:
        self.folder = sink_folder
        self.path = sink_folder / CURSOR_NAME

    def read(self) -> CursorState:
        """Return the state; an empty one when there is no file yet.

        A file that is not a cursor is set aside with an error in the log, and reading begins at the first event.
        """
        try:
            return read_cursor(self.path)
        except ValueError as error:
            # Another process may be about to do the same: only one of the renames succeeds.
            aside = self.path.with_name(f"{CURSOR_NAME}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
            with suppress(FileNotFoundError):
                os.rename(self.path, aside)
                logger.error(
                    "the cursor %s is damaged (%s): it is set aside as %s, and all events are sent again; the sink "
                    "removes duplicates by their ids",
                    self.path,
                    error,
                    aside.name,
                )
            return CursorState()

    def advance(self, offsets: Mapping[str, int], trouble: str | None = None) -> None:
        """Set the offsets of some segments, and why the sink takes nothing at present."""

        def advance(state: CursorState) -> None:
            state.segments.update(offsets)
            state.trouble = trouble

        self._change(advance)

    def forget(self, names: Collection[str]) -> None:
        """Remove the entries of segments."""

        def forget(state: CursorState) -> None:
            for name in names:
                state.segments.pop(name, None)

        if names:
            self._change(forget)

    def _change(self, change: Callable[[CursorState], None]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hold_file_lock(self.folder / LOCK_NAME, timeout_seconds=LOCK_SECONDS):
            state = self.read()
            change(state)
            new = self.path.with_name(f".{CURSOR_NAME}.{secrets.token_hex(4)}")
            try:
                new.write_bytes(msgspec.json.encode(state))
                os.replace(new, self.path)
            except OSError:
                with suppress(OSError):
                    new.unlink()  # of a full disk there may be an empty one
                raise


def read_cursor(path: Path) -> CursorState:
    """Return the state in a cursor file; an empty one when there is no file.

    Raises :exc:`ValueError` for a file that is not a cursor, and :exc:`OSError`. Changes nothing.
    """
    try:
        state = _decode(path.read_bytes())  # its errors are ValueErrors
    except FileNotFoundError:
        return CursorState()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if any(offset < 0 for offset in state.segments.values()):
        raise ValueError("it has a negative offset")
    return state
