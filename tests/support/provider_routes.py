"""Every provider's routes: a gateway with all of them, and a valid request for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from cgw.actors.tokens import hash_token
from cgw.model import Feature
from cgw.service.lifecycle import Service
from tests.support.gateway import TOKEN, open_gateway

KEY = "key-of-every-provider"

ACTOR = f"""
[[actor]]
id = "acme"
token_sha256 = ["{hash_token(TOKEN)}"]
[actor.limits.chat_completions]
limit = 100000
interval = "24h"
concurrent_requests = 100000
[actor.limits.code_completions]
limit = 100000
interval = "24h"
concurrent_requests = 100000
"""

HELLO = "Grüße an alle"
MESSAGES = [{"role": "user", "content": HELLO}]


@frozen
class RouteCase:
    """A route, the upstream's path and model, and a body that is valid there."""

    path: str
    upstream_path: str
    model: str
    body: Mapping[str, Any]
    feature: Feature = Feature.CHAT_COMPLETIONS
    stream_path: str | None = None
    """The upstream's target of streams, if it is another one."""

    def build_body(self, *, stream: bool) -> dict[str, Any]:
        """Return the body of a request."""
        return {**self.body, "stream": stream}

    def build_headers(self) -> dict[str, str]:
        """Return the header fields of a request."""
        return {"authorization": f"Bearer {TOKEN}", "x-sourcegraph-feature": self.feature.value}


_MIXTRAL = "accounts/fireworks/models/mixtral-8x7b-instruct"
_CLAUDE = "claude-sonnet-4-5"

CASES = {
    "anthropic-messages": RouteCase(
        "/v1/completions/anthropic-messages",
        "/v1/messages",
        f"anthropic/{_CLAUDE}",
        {"model": _CLAUDE, "max_tokens": 100, "messages": MESSAGES},
    ),
    "anthropic sdk": RouteCase(
        "/anthropic/v1/messages",
        "/v1/messages",
        f"anthropic/{_CLAUDE}",
        {"model": _CLAUDE, "max_tokens": 100, "messages": MESSAGES},
    ),
    "openai": RouteCase(
        "/v1/completions/openai",
        "/v1/chat/completions",
        "openai/gpt-4o",
        {"model": "gpt-4o", "messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
    "openai sdk": RouteCase(
        "/openai/v1/chat/completions",
        "/v1/chat/completions",
        "openai/gpt-4o",
        {"model": "gpt-4o", "messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
    "openai responses": RouteCase(
        "/openai/v1/responses", "/v1/responses", "openai/gpt-4o", {"model": "gpt-4o", "input": HELLO}
    ),
    "openai compaction": RouteCase(
        "/openai/v1/responses/compact", "/v1/responses/compact", "openai/gpt-4o", {"model": "gpt-4o", "input": MESSAGES}
    ),
    "openai texts": RouteCase(
        "/openai/v1/completions",
        "/v1/completions",
        "openai/gpt-3.5-turbo-instruct",
        {"model": "gpt-3.5-turbo-instruct", "prompt": HELLO, "stream_options": {"include_usage": True}},
    ),
    "fireworks sdk chat": RouteCase(
        "/fireworks/v1/chat/completions",
        "/inference/v1/chat/completions",
        f"fireworks/{_MIXTRAL}",
        {"model": _MIXTRAL, "messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
    "fireworks sdk texts": RouteCase(
        "/fireworks/v1/completions",
        "/inference/v1/completions",
        "fireworks/accounts/sourcegraph/models/starcoder-16b",
        {"model": "fireworks/starcoder", "prompt": HELLO},
        Feature.CODE_COMPLETIONS,
    ),
    "fireworks chat": RouteCase(
        "/v1/completions/fireworks",
        "/inference/v1/chat/completions",
        f"fireworks/{_MIXTRAL}",
        {"model": _MIXTRAL, "messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
    "fireworks code": RouteCase(
        "/v1/completions/fireworks",
        "/inference/v1/completions",
        "fireworks/accounts/sourcegraph/models/starcoder-16b",
        {"model": "starcoder", "prompt": HELLO},
        Feature.CODE_COMPLETIONS,
    ),
    "anthropic text": RouteCase(
        "/v1/completions/anthropic",
        "/v1/complete",
        "anthropic/claude-2",
        {"model": "claude-2", "prompt": HELLO, "max_tokens_to_sample": 100},
    ),
    "google": RouteCase(
        "/v1/completions/google",
        "/v1beta/models/gemini-2.5-pro:generateContent",
        "google/gemini-2.5-pro",
        {"model": "gemini-2.5-pro", "contents": [{"role": "user", "parts": [{"text": HELLO}]}]},
        stream_path="/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
    ),
    "compatible": RouteCase(
        "/v1/completions/my-server",
        "/v1/chat/completions",
        "my-server/org/model-a",
        {"model": "org/model-a", "messages": MESSAGES, "stream_options": {"include_usage": True}},
        Feature.CODE_COMPLETIONS,
    ),
    "compatible responses": RouteCase(
        "/my-server/v1/responses",
        "/v1/responses",
        "my-server/org/model-a",
        {"model": "my-server/org/model-a", "input": MESSAGES},
    ),
    "compatible texts": RouteCase(
        "/my-server/v1/completions",
        "/v1/completions",
        "my-server/org/model-a",
        {"model": "org/model-a", "prompt": HELLO, "stream_options": {"include_usage": True}},
        Feature.CODE_COMPLETIONS,
    ),
    "compatible sdk": RouteCase(
        "/my-server/v1/chat/completions",
        "/v1/chat/completions",
        "my-server/org/model-a",
        {"model": "org/model-a", "messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
}
"""A case for each dialect, and for each API of a dialect that has two."""


@asynccontextmanager
async def open_full_gateway(data_dir: Path, upstream_url: str) -> AsyncIterator[Service]:
    """Run a gateway with the routes of all providers, whose base URLs are below ``upstream_url``."""
    actors = data_dir / "actors-of-all.toml"
    actors.write_text(ACTOR)
    environ = {"CODY_GATEWAY_ACTORS_FILE": str(actors)}
    for name, base in (("ANTHROPIC", ""), ("OPENAI", ""), ("FIREWORKS", "/inference"), ("GOOGLE", "")):
        environ[f"CODY_GATEWAY_{name}_API_URL"] = upstream_url + base
        environ[f"CODY_GATEWAY_{name}_ACCESS_TOKEN"] = KEY
    environ["CODY_GATEWAY_OPENAI_COMPATIBLE_MY_SERVER_API_URL"] = f"{upstream_url}/v1"
    environ["CODY_GATEWAY_OPENAI_COMPATIBLE_MY_SERVER_ACCESS_TOKEN"] = KEY
    environ["CODY_GATEWAY_OPENAI_COMPATIBLE_MY_SERVER_ALLOWED_MODELS"] = "org/*"
    async with open_gateway(data_dir, upstream_url, more=environ) as gateway:
        yield gateway
