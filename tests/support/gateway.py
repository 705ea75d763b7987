"""The complete gateway, in this process, in front of an upstream on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cgw.actors.tokens import hash_token
from cgw.service.lifecycle import Service, open_service
from cgw.service.settings import load_settings
from tests.support.event_kinds import check_recorded_events

TOKEN = "cgw_test-token-of-acme"
DISABLED_TOKEN = "cgw_test-token-of-initech"
ANTHROPIC_KEY = "sk-ant-canary-of-the-tests"
OPENAI_KEY = "sk-canary-of-the-tests"
ANTHROPIC_MODEL = "claude-3-haiku-20240307"
OPENAI_MODEL = "gpt-4o"

ACTORS = """
[[actor]]
id = "acme"
name = "Acme Inc."
token_sha256 = ["{token}"]
[actor.limits.chat_completions]
limit = {limit}
interval = "24h"
concurrent_requests = {concurrent_requests}
{chat_lines}
[actor.limits.code_completions]
limit = 1000
interval = "24h"
allowed_models = ["anthropic/claude-3-haiku-20240307"]
concurrent_requests = 1000

[[actor]]
id = "initech"
name = "Initech"
token_sha256 = ["{disabled}"]
access_enabled = false
"""


def build_environ(
    data_dir: Path,
    upstream_url: str,
    *,
    limit: int = 1000,
    concurrent_requests: int = 1000,
    chat_lines: str = "",
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of a gateway with two actors, whose data and actors file are in ``data_dir``.

    ``chat_lines`` are more lines for the limits of acme's chat completions.
    """
    actors = data_dir / "actors.toml"
    actors.write_text(build_actors(limit, concurrent_requests, chat_lines))
    return {
        "PORT": "0",
        "CODY_GATEWAY_DATA_DIR": str(data_dir),
        "CODY_GATEWAY_ACTORS_FILE": str(actors),
        "CODY_GATEWAY_ANTHROPIC_API_URL": upstream_url,
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": ANTHROPIC_KEY,
        "CODY_GATEWAY_OPENAI_API_URL": upstream_url,
        "CODY_GATEWAY_OPENAI_ACCESS_TOKEN": OPENAI_KEY,
        # A test machine that is busy with other tests must not look like overload: only tests of shedding want it.
        "CODY_GATEWAY_SHED_TARGET": "0",
        # Tests of faults play one after the other: only tests of unavailable models want them to add up.
        "CODY_GATEWAY_MODEL_UNAVAILABLE_AFTER": "0",
        **(more or {}),
    }


def build_actors(limit: int = 1000, concurrent_requests: int = 1000, chat_lines: str = "") -> str:
    """Return the contents of the actors file."""
    return ACTORS.format(
        token=hash_token(TOKEN),
        disabled=hash_token(DISABLED_TOKEN),
        limit=limit,
        concurrent_requests=concurrent_requests,
        chat_lines=chat_lines,
    )


@asynccontextmanager
async def open_gateway(
    data_dir: Path,
    upstream_url: str,
    *,
    limit: int = 1000,
    concurrent_requests: int = 1000,
    chat_lines: str = "",
    more: Mapping[str, str] | None = None,
) -> AsyncIterator[Service]:
    """Run a gateway for the length of the block, with its embedded server unless ``more`` names another one.

    At its end, every recorded event has to be as its kind is declared.
    """
    environ = build_environ(
        data_dir,
        upstream_url,
        limit=limit,
        concurrent_requests=concurrent_requests,
        chat_lines=chat_lines,
        more=more,
    )
    async with open_service(load_settings(environ)) as service:
        yield service
    if (data_dir / "events").is_dir():  # some tests put a file in its place
        check_recorded_events(data_dir / "events")
