"""The cost of a large body on a route for SDKs, in what does not vary: the memory that preparing it takes."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from cgw.config.kinds import Secret
from cgw.model import Feature
from cgw.providers.dialect import Caller
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.registry import build_dialects
from cgw.wire.messages import RequestHead

SIZE = 1_000_000
DIALECTS = {dialect.path: dialect for dialect in build_dialects({"openai": OpenAISettings(access_token=Secret("k"))})}
BODIES: dict[str, dict[str, Any]] = {
    "/openai/v1/chat/completions": {"messages": [{"role": "user", "content": "x" * SIZE}]},
    "/openai/v1/responses": {"input": [{"role": "user", "content": "x" * SIZE}]},
    "/openai/v1/completions": {"prompt": "x" * SIZE},
}


@pytest.mark.parametrize("path", BODIES)
def test_a_large_body_is_decoded_and_copied_once(path: str) -> None:
    """One megabyte of text is held as the decoded text and as the body to send, and never as a third copy."""
    body = json.dumps({"model": "openai/gpt-4o", **BODIES[path]}).encode()
    caller, head = Caller("acme:", Feature.CHAT_COMPLETIONS), RequestHead(b"POST", path.encode(), ())
    DIALECTS[path].prepare(head, body, caller)  # what is allocated once and kept
    tracemalloc.start()
    try:
        prepared = DIALECTS[path].prepare(head, body, caller)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(prepared.upstream.body) > SIZE
    assert 2 * SIZE < peak < 2.2 * SIZE
