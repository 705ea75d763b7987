"""Settings of the BigQuery sink: which table, and how it is reached."""

from __future__ import annotations

import re

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, Kind
from cgw.durations import quote_value


def _name(pattern: str, description: str) -> Kind[str]:
    """Return the kind of a name in BigQuery. Names stand in URLs and SQL, so nothing else may pass."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {description}, not {quote_value(text)}")
        return text

    return Kind(parse)


# Old projects belong to a domain, which stands before a colon: `example.com:project`.
_PROJECT = _name(
    r"([a-z0-9.-]{1,100}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]",
    "the id of a Google Cloud project (6 to 30 lower-case letters, digits, hyphens; not its name or number)",
)
_DATASET = _name(r"[A-Za-z0-9_]{1,1024}", "the name of a dataset (letters, digits, underscores)")
_TABLE = _name(r"[A-Za-z0-9_-]{1,1024}", "the name of a table (letters, digits, underscores, hyphens)")


def _parse_emulator(text: str) -> str:
    # Google's clients disagree: the one for Python wants a URL, the others host and port.
    return API_URL.parse(text if "://" in text else f"http://{text}")


@frozen
class BigQuerySettings:
    """The BigQuery table that usage events are shipped to; [bigquery.md](bigquery.md) says how to set it up."""

    project_id: str | None = setting(
        "CODY_GATEWAY_BIGQUERY_PROJECT_ID",
        _PROJECT,
        None,
        "The Google Cloud project of the table. If it is set, usage events are shipped to BigQuery.",
        default_text="the value of GOOGLE_CLOUD_PROJECT",
        fallback="GOOGLE_CLOUD_PROJECT",
    )
    dataset: str = setting("CODY_GATEWAY_BIGQUERY_DATASET", _DATASET, "cody_gateway", "The dataset of the table.")
    table: str = setting(
        "CODY_GATEWAY_BIGQUERY_TABLE",
        _TABLE,
        "events",
        "The table that usage events are shipped to. `cgw events create-table` creates it.",
    )
    emulator_url: str | None = setting(
        "BIGQUERY_EMULATOR_HOST",
        Kind(_parse_emulator),
        None,
        "The URL, or host and port, of an emulator that is used instead of Google's servers, without credentials.",
    )

    @property
    def table_name(self) -> str:
        """The table's full name, as in SQL: ``project.dataset.table``."""
        return f"{self.project_id}.{self.dataset}.{self.table}"
