"""The calls of BigQuery that the sink makes, by Google's client. They block, and run in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import define, field

from cgw.errors import ConfigError
from cgw.events.sinks.bigquery.failures import explain_failures, shorten
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import (
    Row,
    TableProblem,
    build_field,
    build_table_resource,
    find_missing_columns,
    find_table_problems,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, Table, TableReference

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0


def require_client(settings: BigQuerySettings) -> None:
    """Import Google's client, which takes about half a second of CPU. Raises :exc:`~cgw.errors.ConfigError`."""
    try:
        import google.cloud.bigquery  # noqa: F401 - an extra, and too slow to import for other commands
    except ImportError:
        raise ConfigError(
            [
                f"CODY_GATEWAY_BIGQUERY_PROJECT_ID: the project {settings.project_id} is set (here or in "
                "GOOGLE_CLOUD_PROJECT), but Google's client for BigQuery is not installed: "
                "pip install 'cgw[bigquery]', or let CODY_GATEWAY_EVENTS_SINKS name other sinks"
            ]
        ) from None


class RowError(msgspec.Struct):
    """A reason why a row was not inserted."""

    reason: str | None = None
    message: str | None = None
    location: str | None = None

    def __str__(self) -> str:
        text = f": {self.message}" if self.message else ""
        return shorten(f"{self.reason}{text}{f' (in {self.location})' if self.location else ''}")


class RowErrors(msgspec.Struct):
    """BigQuery's reasons for one row of a request that it did not insert; ``index`` is the row's position there."""

    index: int
    errors: list[RowError]


@define
class TableClient:
    """The table of the settings. Its methods block, may be called by several threads at once, and raise
    :exc:`~cgw.events.sinks.sink.SinkUnavailable` for whatever goes wrong.

    One call takes ``connect_seconds`` and ``read_seconds`` at most, each for an attempt at an address and for a silence
    of the server. There are no retries in it: the shipper makes them.
    """

    settings: BigQuerySettings
    connect_seconds: float = CONNECT_SECONDS
    read_seconds: float = READ_SECONDS
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _opened: Client | None = field(default=None, init=False)

    def insert(self, rows: Sequence[Row]) -> list[RowErrors]:
        """Insert all ``rows``, or none of them; return BigQuery's errors if it is none.

        BigQuery drops a row whose event's id it has seen in the last minute or so, as well as it can.
        """
        with explain_failures(self.settings):
            errors = self._client().insert_rows_json(
                self._reference(),
                [row.values for row in rows],
                row_ids=[row.id for row in rows],
                skip_invalid_rows=False,
                **self._options,
            )
            return msgspec.convert(errors, list[RowErrors])

    def find_problems(self) -> list[TableProblem]:
        """Return each reason why the table, as it is now, cannot take events."""
        with explain_failures(self.settings):
            return find_table_problems(self._fetch().to_api_repr())

    def create(self) -> str:
        """Create the table, or add the columns that it lacks; return what was done, as a sentence without subject.

        Raises :exc:`~cgw.errors.ConfigError` for a table that has other problems.
        """
        from google.api_core.exceptions import Conflict, NotFound
        from google.cloud.bigquery import SchemaField, Table

        with explain_failures(self.settings):
            try:
                table = self._fetch()
            except NotFound:
                new = Table.from_api_repr(build_table_resource(self.settings))
                try:
                    self._client().create_table(new, **self._options)
                    return "was created"
                except Conflict:  # somebody else has created it just now
                    table = self._fetch()
            missing = find_missing_columns(table.to_api_repr())
            if missing:
                # Rows that are there have no value for them, so they cannot be required.
                added = [SchemaField.from_api_repr(build_field(column, is_required=False)) for column in missing]
                table.schema = [*table.schema, *added]
                table = self._client().update_table(table, ["schema"], **self._options)
            problems = find_table_problems(table.to_api_repr())
        if problems:
            raise ConfigError([f"the table {self.settings.table_name}: {problem}" for problem in problems])
        names = ", ".join(column.name for column in missing)
        return f"has got the columns that it lacked: {names}" if missing else "is there already, as it should be"

    def close(self) -> None:
        """Close idle connections. Threads that still wait for an answer end at their timeout."""
        # Without the lock, which a thread may hold while it waits for a login.
        opened = self._opened
        if opened is not None:
            opened.close()  # type: ignore[no-untyped-call]

    @property
    def _options(self) -> dict[str, Any]:
        # Without the client's own retries, which go on for ten minutes.
        return {"retry": None, "timeout": (self.connect_seconds, self.read_seconds)}

    def _fetch(self) -> Table:
        return self._client().get_table(self._reference(), **self._options)

    def _client(self) -> Client:
        """Return the client. The first caller opens it, which may ask the machine's metadata server for a login."""
        with self._lock:
            if self._opened is None:
                self._opened = _open_client(self.settings)
            return self._opened

    def _reference(self) -> TableReference:
        from google.cloud.bigquery import DatasetReference

        return DatasetReference(str(self.settings.project_id), self.settings.dataset).table(self.settings.table)


def _open_client(settings: BigQuerySettings) -> Client:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.bigquery import Client

    # It warns three times of each look for a login in vain, which every retry is. SinkUnavailable says it once.
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    if settings.emulator_url is None:
        return Client(project=settings.project_id)  # Application Default Credentials
    # Never a real login: an emulator is whatever listens there.
    nobody = AnonymousCredentials()  # type: ignore[no-untyped-call]
    options = {"api_endpoint": settings.emulator_url}
    return Client(project=settings.project_id, credentials=nobody, client_options=options)
