"""Inserting a batch, and finding the events that BigQuery will never take. Blocks; runs in a thread.

``tabledata.insertAll`` inserts all rows of a request or none, and says which of them are to blame::

    insert ──no errors──► done
      │ ▲  └──400, 413──► each half on its own; a half is to blame if the other one was inserted
      │ └─ without the rows to blame ─┐
      └──errors of rows──► is the table to blame? ──no──┘

No event is set aside for what the table, a quota or a server is to blame for: that ends the batch, which is sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from attrs import define

from cgw.events.sinks.bigquery.client import RowErrors, TableClient
from cgw.events.sinks.bigquery.failures import RequestRefused
from cgw.events.sinks.bigquery.table import CREATE_COMMAND, Row, build_rows, describe_problems
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable

MAX_CALLS = 64
"""Of one batch. One bad event among 500 takes 2 where BigQuery blames its row, and 19 where it does not."""

_PERMANENT = {"invalid"}
_NOT_ITS_OWN = "stopped"
# Said of a row, but true of the table: all our rows have the same columns. BigQuery goes on saying so for some minutes
# after a column was added.
_ABOUT_THE_TABLE = ("no such field", "missing required field")


def insert(client: TableClient, lines: Sequence[bytes], is_over: threading.Event) -> list[RejectedEvent]:
    """Insert the events in ``lines``; return those that are rejected, in order. All others are then BigQuery's.

    Raises :exc:`~cgw.events.sinks.sink.SinkUnavailable`: some may be inserted already. Makes no call any more when
    ``is_over`` is set.
    """
    rows, rejected = build_rows(lines)
    if rows:
        rejected += _Insertion(client, is_over).insert(rows)
    return sorted(rejected, key=lambda event: event.index)


@define
class _Insertion:
    client: TableClient
    is_over: threading.Event
    calls_left: int = MAX_CALLS
    is_table_checked: bool = False
    refusal: str = ""
    """The text of the first request that was refused as a whole."""

    def insert(self, rows: Sequence[Row]) -> list[RejectedEvent]:
        """Insert ``rows`` but for those that are returned."""
        if self.is_over.is_set() or self.calls_left == 0:
            # No RequestRefused, for which rows would be blamed that were not tried alone.
            raise SinkUnavailable(
                self.refusal or "BigQuery took too many calls: the batch is sent again later"
            ) from None
        self.calls_left -= 1
        try:
            errors = self.client.insert(rows)
        except RequestRefused as refusal:
            self.refusal = self.refusal or str(refusal)
            if len(rows) == 1:
                raise
            return self._insert_halves(rows)
        if not errors:
            return []
        rejected = self._find_wrong(rows, errors)
        self._require_good_table()
        wrong = {event.index for event in rejected}
        others = [row for row in rows if row.index not in wrong]
        # They were not inserted, either.
        return rejected + (self.insert(others) if others else [])

    def _insert_halves(self, rows: Sequence[Row]) -> list[RejectedEvent]:
        middle = len(rows) // 2
        rejected: list[RejectedEvent] = []
        refusals: list[RequestRefused] = []
        for half in (rows[:middle], rows[middle:]):
            try:
                rejected += self.insert(half)
            except RequestRefused as refusal:
                refusals.append(refusal)
                # Each of its rows was refused alone.
                rejected += [RejectedEvent(row.index, str(refusal)) for row in half]
        if len(refusals) == 2:
            raise refusals[0]  # that everything is refused is no fault of an event
        if refusals:
            self._require_good_table()
        return rejected

    def _find_wrong(self, rows: Sequence[Row], errors: Sequence[RowErrors]) -> list[RejectedEvent]:
        """Return the rows that BigQuery will never take; at least one.

        Raises :exc:`SinkUnavailable` if it refuses one for a reason that may pass.
        """
        wrong: dict[int, RejectedEvent] = {}
        for entry in errors:
            own = [error for error in entry.errors if error.reason != _NOT_ITS_OWN]
            if not own or not 0 <= entry.index < len(rows):
                continue
            text = "; ".join(map(str, own))
            if any(phrase in text.casefold() for phrase in _ABOUT_THE_TABLE):
                raise SinkUnavailable(
                    f"the table {self.client.settings.table_name} does not take events ({text}): run "
                    f"`{CREATE_COMMAND}`; if a column was added just now, wait some minutes"
                )
            if not all(error.reason in _PERMANENT for error in own):
                raise SinkUnavailable(f"BigQuery could not insert all rows ({text}): they are sent again later")
            wrong[entry.index] = RejectedEvent(rows[entry.index].index, text)
        if not wrong:
            raise SinkUnavailable("BigQuery inserted no row, and blames none: they are sent again later")
        return list(wrong.values())

    def _require_good_table(self) -> None:
        """Raise :exc:`SinkUnavailable` if the table is to blame. Asks once for each batch."""
        if self.is_table_checked:
            return
        problems = self.client.find_problems()
        if problems:
            raise SinkUnavailable(describe_problems(self.client.settings, problems))
        self.is_table_checked = True
