"""The older completion APIs, which take a prompt instead of messages: Anthropic's, and OpenAI's as Fireworks has it.

Pure, as :mod:`cgw.testing.scripted_dialects`. Formats are those of https://docs.claude.com/en/api/complete (version
2023-01-01, whose streams repeat the text so far in each event) and
https://docs.fireworks.ai/api-reference/post-completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from cgw.testing.script import BodyPiece, Script, ScriptedAnswer
from cgw.testing.scripted_dialects import (
    RequestError,
    ScriptedChat,
    ScriptedMessages,
    build_stream,
    build_whole,
    cut_answer,
    encode_data,
)


@frozen
class ScriptedComplete(ScriptedMessages):
    """``POST /v1/complete``: streams end in ``[DONE]``, lines in CRLF, and there are no token counts."""

    path: str = "/v1/complete"

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if b"anthropic-version" not in headers:
            raise RequestError("anthropic-version: header is required")
        if not isinstance(body.get("prompt"), str):
            raise RequestError("prompt: Field required")
        if not isinstance(body.get("max_tokens_to_sample"), int):
            raise RequestError("max_tokens_to_sample: Field required")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        tokens, is_cut = cut_answer(script, body["max_tokens_to_sample"])
        reason = "max_tokens" if is_cut else "stop_sequence"
        frame = {"type": "completion", "id": f"compl_scripted_{serial:06d}", "model": body["model"]}
        headers = self._headers(serial)
        if body.get("stream") is True:
            return build_stream(script, headers, tuple(_list_events(script, frame, reason, tokens)))
        whole = frame | {"completion": "".join(tokens), "stop_reason": reason}
        return build_whole(script, headers, whole, len(tokens))


def _list_events(script: Script, frame: dict[str, Any], reason: str, tokens: tuple[str, ...]) -> Iterator[BodyPiece]:
    text = ""
    for index, token in enumerate(tokens):
        text += token
        is_last = index == len(tokens) - 1
        event = frame | {"completion": text, "stop_reason": reason if is_last else None}
        yield BodyPiece(script.token_at_seconds(index), encode_data(event, b"\r\n"))
    end = script.token_at_seconds(max(0, len(tokens) - 1))
    yield BodyPiece(end, b"data: [DONE]\r\n\r\n")


@frozen
class ScriptedText(ScriptedChat):
    """``POST …/v1/completions``: chunks have a text.

    With ``has_usage`` the last one has the usage, as at Fireworks. Otherwise it has a chunk of its own, as at OpenAI,
    if the request asks for it.
    """

    path: str = "/v1/completions"
    has_usage: bool = True

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("prompt"), str | list):
            raise RequestError("Missing required parameter: 'prompt'.", "prompt")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        max_tokens = body.get("max_tokens")
        tokens, is_cut = cut_answer(script, max_tokens if isinstance(max_tokens, int) else None)
        frame = {
            "id": f"cmpl-scripted{serial:06d}",
            "object": "text_completion",
            "created": 1_750_000_000 + serial,
            "model": body["model"],
        }
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        prompt_tokens = sum(len(prompt.split()) for prompt in prompts if isinstance(prompt, str))
        usage = {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + len(tokens),
            "completion_tokens": len(tokens),
        }
        reason, headers = "length" if is_cut else "stop", self._headers(serial)

        def chunk(text: str, reason: str | None, usage: Mapping[str, Any] | None) -> dict[str, Any]:
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
            return frame | {"choices": [choice], "usage": usage}

        if body.get("stream") is not True:
            return build_whole(script, headers, chunk("".join(tokens), reason, usage), len(tokens))
        end = script.token_at_seconds(max(0, len(tokens) - 1))
        pieces = [
            BodyPiece(script.token_at_seconds(index), encode_data(chunk(token, None, None)))
            for index, token in enumerate(tokens)
        ]
        pieces.append(BodyPiece(end, encode_data(chunk("", reason, usage if self.has_usage else None))))
        options = body.get("stream_options")
        if not self.has_usage and isinstance(options, dict) and options.get("include_usage") is True:
            pieces.append(BodyPiece(end, encode_data(frame | {"choices": [], "usage": usage})))
        pieces.append(BodyPiece(end, b"data: [DONE]\n\n"))
        return build_stream(script, headers, tuple(pieces))
