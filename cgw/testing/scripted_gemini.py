"""Google's Gemini API: ``POST /v1beta/models/<model>:generateContent`` and ``:streamGenerateContent?alt=sse``.

Pure, as :mod:`cgw.testing.scripted_dialects`. The format is that of https://ai.google.dev/api/generate-content: lines
of streams end in CRLF, every chunk has the usage so far, and no marker ends a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from attrs import frozen

from cgw.errors import Headers
from cgw.testing.script import BodyPiece, Script, ScriptedAnswer
from cgw.testing.scripted_dialects import RequestError, build_json, build_stream, build_whole, cut_answer, encode_data

_PATH = re.compile(r"/v1beta/models/([^/:]+):(generateContent|streamGenerateContent)")
_STATUSES = {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}


@frozen
class ScriptedGemini:
    """The key is read from ``x-goog-api-key`` only."""

    def matches(self, path: str) -> bool:
        return _PATH.fullmatch(path) is not None

    def complete_body(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match = _PATH.fullmatch(path)
        if match is None or body.keys() & {"model", "stream"}:
            raise RequestError("model and stream are in the URL, not in the body")
        return {**body, "model": unquote(match[1]), "stream": match[2] == "streamGenerateContent"}

    def read_key(self, headers: Mapping[bytes, bytes]) -> str:
        return headers.get(b"x-goog-api-key", b"").decode("latin-1")

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("contents"), list) or not body["contents"]:
            raise RequestError("* GenerateContentRequest.contents: contents is not specified", "contents")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        most = body.get("generationConfig", {}).get("maxOutputTokens")
        tokens, is_cut = cut_answer(script, most if isinstance(most, int) else None)
        reason = "MAX_TOKENS" if is_cut else "STOP"
        texts = [part.get("text", "") for turn in body["contents"] for part in turn.get("parts", ())]
        prompt_tokens = sum(len(text.split()) for text in texts)
        frame = {"modelVersion": body["model"], "responseId": f"scripted{serial:06d}"}
        if body["stream"]:
            pieces = tuple(_list_chunks(script, frame, reason, tokens, prompt_tokens))
            return build_stream(script, self._headers(), pieces)
        candidate = _build_candidate("".join(tokens), reason)
        whole = {"candidates": [candidate], "usageMetadata": _count(prompt_tokens, len(tokens))} | frame
        return build_whole(script, self._headers(), whole, len(tokens))

    def render_error(
        self, status: int, message: str, serial: int, *, code: str | None = None, param: str | None = None
    ) -> ScriptedAnswer:
        error = {"code": status, "message": message, "status": _STATUSES.get(status, "INVALID_ARGUMENT")}
        return build_json(status, self._headers(), {"error": error})

    def _headers(self) -> Headers:
        return ((b"server", b"scaffolding on HTTPServer2"), (b"vary", b"Origin"))


def _list_chunks(
    script: Script, frame: dict[str, Any], reason: str, tokens: tuple[str, ...], prompt_tokens: int
) -> Iterator[BodyPiece]:
    for index, token in enumerate(tokens or ("",)):
        is_last = index >= len(tokens) - 1
        candidate = _build_candidate(token, reason if is_last else None)
        usage = _count(prompt_tokens, index + 1 if tokens else 0)
        chunk = {"candidates": [candidate], "usageMetadata": usage} | frame
        yield BodyPiece(script.token_at_seconds(index), encode_data(chunk, b"\r\n"))


def _build_candidate(text: str, reason: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    return candidate if reason is None else candidate | {"finishReason": reason}


def _count(prompt: int, candidates: int) -> dict[str, Any]:
    return {
        "promptTokenCount": prompt,
        "candidatesTokenCount": candidates,
        "totalTokenCount": prompt + candidates,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }
