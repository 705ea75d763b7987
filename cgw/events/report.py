"""What a spool's completions come to, by day, actor, feature and model: the data and the printing of ``cgw usage``."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from attrs import frozen

from cgw.errors import SpoolError
from cgw.events.database import describe, read_version
from cgw.model import EventName


@frozen
class UsageRow:
    """The completions of one UTC day, actor, feature and model.

    ``requests`` counts all of them, ``errors`` those that were not answered 2xx. The sums are over what is known,
    ``None`` where nothing is. ``actor`` is the id; ``actor_name`` the name that was recorded last, ``""`` for none.
    """

    day: str
    actor: str
    actor_name: str
    source: str
    feature: str
    model: str
    requests: int
    errors: int
    prompt_tokens: int | None
    completion_tokens: int | None
    prompt_characters: int | None
    completion_characters: int | None


# max(seq) makes SQLite take the bare column `actor_name` from the group's last row (a documented rule of its own).
QUERY = """
SELECT
    substr(created_at, 1, 10) AS day,
    identifier,
    coalesce(json_extract(metadata, '$.actor_name'), ''),
    source,
    coalesce(json_extract(metadata, '$.feature'), '') AS feature,
    coalesce(json_extract(metadata, '$.model'), '') AS model,
    count(*),
    sum(NOT coalesce(json_extract(metadata, '$.resolved_status_code') BETWEEN 200 AND 299, 0)),
    sum(json_extract(metadata, '$.prompt_token_count')),
    sum(json_extract(metadata, '$.completion_token_count')),
    sum(json_extract(metadata, '$.prompt_character_count')),
    sum(json_extract(metadata, '$.completion_character_count')),
    max(seq)
FROM events
WHERE name = :name
    AND (:since IS NULL OR created_at >= :since)
    AND (:until IS NULL OR created_at < :until)
    AND (:actor IS NULL OR identifier = :actor)
GROUP BY day, source, identifier, feature, model
ORDER BY day, identifier, source, feature, model
"""


def summarise(
    path: Path, *, since: datetime | None = None, until: datetime | None = None, actor: str | None = None
) -> list[UsageRow]:
    """Sum up the completions in the spool at ``path``, oldest day first; an absent file gives no rows.

    ``since`` is included, ``until`` is not (both aware); ``actor`` is an id. Reads only, and may run while cgw
    processes write. Raises :exc:`~cgw.errors.SpoolError` when the file cannot be read, and
    :exc:`~cgw.errors.ConfigError` when it is no spool or a newer cgw's.
    """
    parameters = {
        "name": EventName.COMPLETIONS_FINISHED.value,
        "since": _stored_form(since),
        "until": _stored_form(until),
        "actor": actor,
    }
    try:
        if not path.exists():
            return []
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=5)
        try:
            if read_version(connection, path) == 0:  # just created, and still empty
                return []
            return [UsageRow(*columns[:-1]) for columns in connection.execute(QUERY, parameters)]
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"the event spool {path} cannot be read: {describe(error)}") from error


def _stored_form(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
