"""The complete gateway in front of a scripted Sourcegraph.com, without providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cgw.service.lifecycle import Service, open_service
from cgw.service.settings import load_settings
from cgw.testing.scripted_sourcegraph import SERVICE_TOKEN, ScriptedSourcegraph
from tests.support.gateway import build_actors

SECRET = "diagnostics-canary"


def build_dotcom_environ(
    data_dir: Path, sourcegraph: ScriptedSourcegraph, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a gateway whose sources are an actors file in ``data_dir`` and ``sourcegraph``.

    A variable of ``more`` that is empty counts as unset.
    """
    actors = data_dir / "actors.toml"
    actors.write_text(build_actors())
    return {
        "PORT": "0",
        "CODY_GATEWAY_DATA_DIR": str(data_dir),
        "CODY_GATEWAY_ACTORS_FILE": str(actors),
        "CODY_GATEWAY_DIAGNOSTICS_SECRET": SECRET,
        "CODY_GATEWAY_DOTCOM_API_URL": sourcegraph.url,
        "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": SERVICE_TOKEN,
        "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": "true",
        "CODY_GATEWAY_SHED_TARGET": "0",
        "CODY_GATEWAY_REDIS_TIMEOUT": "2s",
        **(more or {}),
    }


@asynccontextmanager
async def open_dotcom_gateway(
    data_dir: Path, sourcegraph: ScriptedSourcegraph, more: Mapping[str, str] | None = None
) -> AsyncIterator[Service]:
    """Run such a gateway in this process for the length of the block, with its embedded server."""
    async with open_service(load_settings(build_dotcom_environ(data_dir, sourcegraph, more))) as service:
        yield service
