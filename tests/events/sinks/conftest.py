"""What the tests of sinks share: a stand-in for BigQuery, and a machine without a way to Google."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import build_table_resource
from cgw.testing.scripted_bigquery import ScriptedBigQuery, open_scripted_bigquery

PROJECT = "acme-events"
TABLE = "cody_gateway.events"


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let Google's libraries find no login, no proxy and no metadata server, and no name but loopback's."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    look_up = socket.getaddrinfo

    def look_up_loopback(host: Any, *arguments: Any, **options: Any) -> Any:
        # urllib3 looks up addresses, too, so this is every connection that it makes.
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, f"{host} must not be looked up")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_loopback)


@pytest.fixture
async def bigquery() -> AsyncIterator[ScriptedBigQuery]:
    """A BigQuery with the table of usage events."""
    async with open_scripted_bigquery() as bigquery:
        bigquery.tables[TABLE] = {"type": "TABLE", **build_table_resource(build_settings(bigquery))}
        yield bigquery


def build_settings(bigquery: ScriptedBigQuery) -> BigQuerySettings:
    """Return the settings of the default table in the stand-in."""
    return BigQuerySettings(project_id=PROJECT, emulator_url=bigquery.url)
