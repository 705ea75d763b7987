"""A gateway whose callers are a user of Sourcegraph.com, and an actor of the file, in front of a scripted upstream."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from attrs import define

from cgw.events.lines import EventLine
from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_sourcegraph import ScriptedUser, open_scripted_sourcegraph
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_MODEL, TOKEN
from tests.support.sourcegraph_gateway import open_dotcom_gateway
from tests.support.sources import user_token

KEY = "key-of-every-provider"
USER, USER_ID = user_token("alice"), "7"
MESSAGES_PATH = "/v1/completions/anthropic-messages"


@define
class FlaggingBench:
    """The gateway, its upstream, and a client."""

    gateway: Service
    upstream: ScriptedUpstream
    client: httpx.AsyncClient

    async def ask(
        self,
        prompt: Any,
        *,
        path: str = MESSAGES_PATH,
        token: str = TOKEN,
        feature: str = "chat_completions",
        **fields: Any,
    ) -> httpx.Response:
        """Send a prompt: a message's content for the Messages and chat APIs, another body's in its shape."""
        body: dict[str, Any]
        if path == "/v1/completions/google":
            body = {"model": "gemini-2.5-pro", "contents": [{"role": "user", "parts": [{"text": prompt}]}]}
        elif path == "/v1/completions/anthropic":
            body = {"model": "claude-2", "prompt": prompt}
        else:
            model = ANTHROPIC_MODEL if "anthropic" in path else "gpt-4o"
            if "fireworks" in path:
                model = "accounts/fireworks/models/mixtral-8x7b-instruct"
            body = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
        headers = {
            "authorization": f"Bearer {token}",
            "x-sourcegraph-feature": feature,
            "x-sourcegraph-actor-uid": "u1",
        }
        return await self.client.post(path, json={**body, **fields}, headers=headers)

    def read_events(self) -> list[EventLine]:
        """Return all events so far."""
        return list(read_events(self.gateway.events_folder))


@asynccontextmanager
async def open_flagging_bench(data_dir: Path, settings: Mapping[str, str]) -> AsyncIterator[FlaggingBench]:
    """Run the gateway with ``settings``, whose names lack ``CODY_GATEWAY_`` unless they begin with ``SAMS_``."""
    script = Script(answer="Good day to you.", tokens_per_second=math.inf, api_key=KEY)
    async with open_scripted_upstream(script) as upstream, open_scripted_sourcegraph() as sourcegraph:
        sourcegraph.users[USER] = ScriptedUser(int(USER_ID))
        more = {name if name.startswith("SAMS_") else f"CODY_GATEWAY_{name}": text for name, text in settings.items()}
        for name, base in (("ANTHROPIC", ""), ("OPENAI", ""), ("FIREWORKS", "/inference"), ("GOOGLE", "")):
            more[f"CODY_GATEWAY_{name}_API_URL"] = upstream.url + base
            more[f"CODY_GATEWAY_{name}_ACCESS_TOKEN"] = KEY
        async with (
            open_dotcom_gateway(data_dir, sourcegraph, more) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
        ):
            yield FlaggingBench(gateway, upstream, client)
