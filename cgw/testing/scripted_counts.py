"""Counting tokens: Anthropic's ``POST /v1/messages/count_tokens``, and Google's ``:countTokens``.

Pure, as :mod:`cgw.testing.scripted_dialects`; tokens are words, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from cgw.testing.script import Script, ScriptedAnswer
from cgw.testing.scripted_dialects import RequestError, ScriptedMessages, build_json, count_prompt_tokens


@frozen
class ScriptedMessageCount(ScriptedMessages):
    """As the Messages API, but nothing is generated. Unknown fields are refused, as there."""

    path: str = "/v1/messages/count_tokens"

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        for name in ("max_tokens", "metadata", "stream"):
            if name in body:
                raise RequestError(f"{name}: Extra inputs are not permitted")
        super().check(headers, {"max_tokens": 1, **body})

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        return build_json(200, self._headers(serial), {"input_tokens": count_prompt_tokens(body)})
