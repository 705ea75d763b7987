"""Fixtures of the tests of whole exchanges."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, open_gateway


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream that answers at once, and checks the provider's keys."""
    scripts = {
        ANTHROPIC_MODEL: Script(answer="Good day to you.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY),
        OPENAI_MODEL: Script(answer="Good day to you.", tokens_per_second=math.inf, api_key=OPENAI_KEY),
    }
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


@pytest.fixture
async def gateway(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """The complete gateway, in front of ``upstream``."""
    async with open_gateway(tmp_path, upstream.url) as service:
        yield service
