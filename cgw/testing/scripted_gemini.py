"""Google's Gemini API: ``POST /v1beta/models/<model>:generateContent``, and its other methods.

Pure, as :mod:`cgw.testing.scripted_dialects`. The format is that of https://ai.google.dev/api/generate-content: lines
of streams end in CRLF, every chunk has the usage so far, and no marker ends a stream. Without ``alt=sse`` a stream is a
JSON array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from attrs import evolve, frozen

from cgw.errors import Headers
from cgw.testing.script import BodyPiece, Script, ScriptedAnswer
from cgw.testing.scripted_calls import build_function_calls, count_call_tokens, count_function_responses
from cgw.testing.scripted_dialects import (
    JSON_TYPE,
    RequestError,
    build_json,
    build_stream,
    build_whole,
    cut_answer,
    encode_data,
)

_PATH = re.compile(r"/v1(?:beta)?/models/([^/:]+):(\w+)")
_METHODS = frozenset({"generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents"})
_STATUSES = {401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}


@frozen
class ScriptedGemini:
    """The key is read from ``x-goog-api-key`` only."""

    def matches(self, path: str) -> bool:
        match = _PATH.fullmatch(path)
        return match is not None and match[2] in _METHODS

    def complete_body(self, target: str, body: dict[str, Any]) -> dict[str, Any]:
        path, _, query = target.partition("?")
        match = _PATH.fullmatch(path)
        if match is None or body.keys() & {"stream"} or ("model" in body and match[2] != "embedContent"):
            raise RequestError("model and stream are in the URL, not in the body")
        if query not in ("", "alt=sse", "alt=json"):
            raise RequestError("unknown parameters in the URL")
        return {**body, "model": unquote(match[1]), "method": match[2], "is_sse": query == "alt=sse"}

    def read_key(self, headers: Mapping[bytes, bytes]) -> str:
        return headers.get(b"x-goog-api-key", b"").decode("latin-1")

    def check(self, headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> None:
        if body["method"] in ("embedContent", "batchEmbedContents") or "generateContentRequest" in body:
            return
        if not isinstance(body.get("contents"), list) or not body["contents"]:
            raise RequestError("* GenerateContentRequest.contents: contents is not specified", "contents")

    def render_answer(self, script: Script, body: Mapping[str, Any], serial: int) -> ScriptedAnswer:
        if body["method"] == "countTokens":
            asked = body.get("generateContentRequest", body)
            return build_json(200, self._headers(), {"totalTokens": _count_words(asked)})
        if body["method"] in ("embedContent", "batchEmbedContents"):
            return build_json(200, self._headers(), _embed(body))
        most = body.get("generationConfig", {}).get("maxOutputTokens")
        tokens, is_cut = cut_answer(script, most if isinstance(most, int) else None)
        calls = script.choose_calls(count_function_responses(body), has_tools=bool(body.get("tools")))
        reason = "MAX_TOKENS" if is_cut else "STOP"
        prompt_tokens = _count_words(body)
        frame = {"modelVersion": body["model"], "responseId": f"scripted{serial:06d}"}
        if calls:
            candidate = {"content": {"parts": build_function_calls(calls), "role": "model"}, "index": 0}
            usage = _count(prompt_tokens, count_call_tokens(calls))
            whole = {"candidates": [candidate | {"finishReason": "STOP"}], "usageMetadata": usage} | frame
            if body["method"] == "streamGenerateContent" and body["is_sse"]:
                return build_stream(script, self._headers(), (BodyPiece(0.0, encode_data(whole, b"\r\n")),))
            return build_json(200, self._headers(), whole)
        if body["method"] == "streamGenerateContent":
            pieces = tuple(_list_chunks(script, frame, reason, tokens, prompt_tokens, is_sse=body["is_sse"]))
            stream = build_stream(script, self._headers(), pieces)
            return stream if body["is_sse"] else evolve(stream, headers=(JSON_TYPE, *self._headers()))
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
    script: Script, frame: dict[str, Any], reason: str, tokens: tuple[str, ...], prompt_tokens: int, *, is_sse: bool
) -> Iterator[BodyPiece]:
    for index, token in enumerate(tokens or ("",)):
        is_last = index >= len(tokens) - 1
        candidate = _build_candidate(token, reason if is_last else None)
        usage = _count(prompt_tokens, index + 1 if tokens else 0)
        chunk = {"candidates": [candidate], "usageMetadata": usage} | frame
        data = encode_data(chunk, b"\r\n")
        if not is_sse:
            # As the API does: an array, over lines, whose separators come with the next chunk.
            text = json.dumps(chunk, indent=2, ensure_ascii=False).encode()
            data = (b",\r\n" if index else b"[") + text + (b"\n]" if is_last else b"\n")
        yield BodyPiece(script.token_at_seconds(index), data)


def _embed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a vector of two numbers for each text."""
    requests = body.get("requests") or [body]
    words = [sum(len(part["text"].split()) for part in request["content"]["parts"]) for request in requests]
    vectors = [{"values": [float(count), 0.5]} for count in words]
    usage = {"usageMetadata": {"promptTokenCount": sum(words)}}
    return ({"embeddings": vectors} if "requests" in body else {"embedding": vectors[0]}) | usage


def _count_words(body: Mapping[str, Any]) -> int:
    texts = [part.get("text", "") for turn in body["contents"] for part in turn.get("parts", ())]
    return sum(len(text.split()) for text in texts)


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
