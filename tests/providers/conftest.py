"""Dialects with test settings, and preparing a request on one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cgw.config.kinds import Secret
from cgw.errors import Headers
from cgw.model import Feature
from cgw.providers.anthropic.settings import AnthropicSettings
from cgw.providers.dialect import Caller, Dialect, PreparedRequest
from cgw.providers.fireworks.settings import FireworksSettings
from cgw.providers.google.settings import GoogleSettings
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.registry import build_dialects
from cgw.wire.messages import RequestHead

Prepare = Callable[..., PreparedRequest]


@pytest.fixture(scope="session")
def dialects() -> dict[str, Dialect]:
    """All dialects by their path, with recognisable keys; one base URL has a path."""
    built = build_dialects(
        {
            "anthropic": AnthropicSettings(
                api_url="https://anthropic.test/base/",
                access_token=Secret("KEY-anthropic"),
                allowed_models=("claude-a", "anthropic/claude-b"),
            ),
            "openai": OpenAISettings(
                api_url="http://127.0.0.1:8080",
                access_token=Secret("KEY-openai"),
                allowed_models=("gpt-a",),
                org_id="org-1",
            ),
            "fireworks": FireworksSettings(
                api_url="https://fireworks.test/inference",
                access_token=Secret("KEY-fireworks"),
                community_percent=30,
            ),
            "google": GoogleSettings(
                api_url="https://google.test", access_token=Secret("KEY-google"), allowed_models=("gemini-a",)
            ),
        }
    )
    return {dialect.path: dialect for dialect in built}


@pytest.fixture(scope="session")
def prepare(dialects: dict[str, Dialect]) -> Prepare:
    """``prepare(path, body, …)`` prepares a body (bytes, or a value for JSON) with the dialect at ``path``."""

    def prepare_on(
        path: str,
        body: Any,
        *,
        target: str | None = None,
        headers: Headers = (),
        feature: Feature = Feature.CHAT_COMPLETIONS,
    ) -> PreparedRequest:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = RequestHead(b"POST", (target or path).encode(), headers)
        return dialects[path].prepare(head, data, Caller("acme:7", feature))

    return prepare_on
