"""OpenAI's Embeddings and Moderations APIs, as far as scripts need them.

Formats are those of https://platform.openai.com/docs/api-reference/embeddings and ``moderations``. Vectors are made
from the text, so that equal texts have equal ones.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from cgw.testing.script import Script, ScriptedAnswer
from cgw.testing.scripted_dialects import RequestError, ScriptedChat, build_whole

DIMENSIONS = 8
_CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")


@frozen
class ScriptedEmbeddings(ScriptedChat):
    """``POST /v1/embeddings``."""

    path: str = "/v1/embeddings"

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if not body.get("input"):
            raise RequestError("Missing required parameter: 'input'.", "input")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        value = body["input"]
        texts = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
        tokens = sum(len(text.split()) if isinstance(text, str) else len(text) for text in texts)
        count = body.get("dimensions", DIMENSIONS)
        is_encoded = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": build_vector(text, count, is_encoded=is_encoded)}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
        return build_whole(script, self._headers(serial), answer, 0)


def build_vector(text: Any, count: int, *, is_encoded: bool) -> list[float] | str:
    """Return ``count`` numbers from −1 to 1, or the base64 of them as floats of 32 bits."""
    seed = hashlib.shake_256(repr(text).encode()).digest(count)
    numbers = [byte / 128 - 1 for byte in seed]
    return base64.b64encode(struct.pack(f"<{count}f", *numbers)).decode() if is_encoded else numbers


@frozen
class ScriptedModerations(ScriptedChat):
    """``POST /v1/moderations``: nothing is ever flagged."""

    path: str = "/v1/moderations"

    def complete_body(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"model": "omni-moderation-latest", **body}

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if not body.get("input"):
            raise RequestError("Missing required parameter: 'input'.", "input")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        result = {
            "flagged": False,
            "categories": dict.fromkeys(_CATEGORIES, False),
            "category_scores": dict.fromkeys(_CATEGORIES, 0.0001),
            "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
        }
        answer = {"id": f"modr-scripted{serial:06d}", "model": body["model"], "results": [result]}
        return build_whole(script, self._headers(serial), answer, 0)
