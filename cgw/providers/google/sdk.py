"""Google's Gemini API for its SDKs and ``gemini-cli`` with only base URL and key changed.

``/google/v1beta/models/<model>:<method>``, and the same below ``/google/v1``. Bodies pass as they came: the model and
whether to stream are in the URL, and the API has no field for a user's id.
"""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

from attrs import define, field, frozen

from cgw.errors import Refusal
from cgw.model import Feature
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.google.errors import GoogleErrors
from cgw.providers.google.generate import PROVIDER, GenerationConfig, Part, Turn, build_suffix, count_text, normalise
from cgw.providers.google.usage import read_response, read_response_array, read_response_stream
from cgw.providers.json_body import change_fields, decode_object, split_large
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader
from cgw.providers.route import FreeRoute, ReadBody, Route, multiply_choices
from cgw.providers.upstream_requests import query_of
from cgw.wire.messages import RequestHead

VERSIONS = ("v1beta", "v1")
"""The versions of the API that SDKs use: ``google-genai`` 3 has ``v1`` by default, ``gemini-cli`` ``v1beta``."""


@define
class SdkBody:
    """The fields that are read of a request. All of the body passes, with those that are not read."""

    contents: list[Turn] | None = None
    systemInstruction: Turn | None = None
    generationConfig: GenerationConfig | None = None


def _build_reader() -> BodyReader[SdkBody]:
    return BodyReader(SdkBody, Part, Turn, GenerationConfig)


@frozen
class GoogleSdkRoute(Route):
    """The steps that the routes of all methods share. ``version`` is that of the API."""

    provider: str = field(default=PROVIDER, kw_only=True)
    version: str = field(default=VERSIONS[0], kw_only=True)

    method: ClassVar[str]
    errors: ClassVar[ErrorStyle] = GoogleErrors()
    default_feature: ClassVar[Feature | None] = Feature.CHAT_COMPLETIONS
    retry_after_seconds: ClassVar[int] = 3

    @property
    def path(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.path`; the last segment stands for any model."""
        return f"/google/{self.version}/models/{{model}}:{self.method}"

    def read_model(self, head: RequestHead) -> str:
        """Return the model in the path, without prefix. Raises :exc:`~cgw.errors.Refusal` 400 for none."""
        segment = head.path.rpartition(b"/")[2].rpartition(b":")[0]
        if b"%" in segment:
            segment = unquote_to_bytes(segment)
        model = segment.decode("utf-8", "replace").removeprefix(self.prefix)
        if not model:
            raise Refusal(400, "the path names no model", param="model")
        return model

    def build_suffix(self, model: str) -> bytes:
        """Return what follows the endpoint's path."""
        return build_suffix(model, self.method)


def check_same_model(value: Any, model: str, path: str) -> None:
    """Raise :exc:`~cgw.errors.Refusal` 400 if ``value``, the field at ``path``, names another model than the URL."""
    if value is None:
        return
    if not isinstance(value, str) or value.removeprefix("models/").removeprefix(f"{PROVIDER}/") != model:
        raise Refusal(400, f"{path}: must be the model of the path, which is the one that is checked", param=path)


def read_generation(reader: BodyReader[SdkBody], raw: dict[str, Any], model: str, path: str = "") -> SdkBody:
    """Check a request to generate; ``path`` is what the paths of its fields begin with.

    Raises :exc:`~cgw.errors.Refusal` 400. ``cachedContent`` is refused: it is stored under the gateway's key, so any
    caller could name another's.
    """
    check_same_model(raw.get("model"), model, f"{path}model")
    for name in ("cachedContent", "cached_content"):
        if raw.get(name) is not None:
            text = "stored contexts are not supported by this gateway, whose callers share one account"
            raise Refusal(400, f"{path}{name}: {text}", param=f"{path}{name}")
    return reader.read_object(raw)


@frozen
class _GoogleSdkGeneration(GoogleSdkRoute):
    _reader: BodyReader[SdkBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    def _prepare(self, head: RequestHead, body: bytes, *, is_stream: bool, alt: bytes = b"") -> PreparedRequest:
        client_body = split_large(body, "contents")
        model, raw = self.read_model(head), normalise(decode_object(client_body))
        parsed = read_generation(self._reader, raw, model)
        if not parsed.contents:
            raise Refusal(400, 'request body must contain "contents" field', param="contents")
        config = parsed.generationConfig or GenerationConfig()
        turns = [*parsed.contents, *([parsed.systemInstruction] if parsed.systemInstruction else ())]
        return self.build_request(
            change_fields(client_body, {}),  # refuses fields that are there twice: the API might take the other one
            model,
            suffix=self.build_suffix(model),
            query=b"alt=" + alt if alt else b"",
            is_stream=is_stream and alt == b"sse",
            prompt_character_count=count_text(turns),
            max_completion_tokens=multiply_choices(config.maxOutputTokens, config.candidateCount),
            metadata={"stream": is_stream},
            prompt=Prompt(raw, "systemInstruction", "contents", "parts"),
        )


@frozen
class GoogleSdkGenerate(_GoogleSdkGeneration):
    """``:generateContent``."""

    method: ClassVar[str] = "generateContent"
    read_whole: ClassVar[ReadBody] = read_response
    read_stream: ClassVar[ReadBody] = read_response_stream

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        return self._prepare(head, body, is_stream=False)


@frozen
class GoogleSdkStream(_GoogleSdkGeneration):
    """``:streamGenerateContent``: server-sent events with ``alt=sse``, otherwise a JSON array that grows."""

    method: ClassVar[str] = "streamGenerateContent"
    read_whole: ClassVar[ReadBody] = read_response_array
    read_stream: ClassVar[ReadBody] = read_response_stream

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        return self._prepare(head, body, is_stream=True, alt=_read_alt(head))


def _read_alt(head: RequestHead) -> bytes:
    """Return the representation that the query asks for; empty for the default.

    No other parameter is passed on: ``key`` is for cgw, and ``fields`` could leave the usage out of the response.
    """
    for pair in query_of(head).split(b"&"):
        name, _, value = pair.partition(b"=")
        if name in (b"alt", b"$alt", b"%24alt"):
            if value not in (b"json", b"sse"):
                raise Refusal(400, "alt: must be sse or json", param="alt")
            return value
    return b""


@frozen
class GoogleSdkCountTokens(GoogleSdkRoute, FreeRoute):
    """``:countTokens``, of ``contents`` or of a whole ``generateContentRequest``."""

    _reader: BodyReader[SdkBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    method: ClassVar[str] = "countTokens"

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        model, raw = self.read_model(head), decode_object(body)
        read_generation(self._reader, normalise(raw), model)
        for name in ("generateContentRequest", "generate_content_request"):
            inner = raw.get(name)
            if isinstance(inner, dict):
                read_generation(self._reader, normalise(inner), model, f"{name}.")
            elif inner is not None:
                raise Refusal(400, f"{name}: expected an object", param=name)
        return self.build_free_request(
            change_fields(body, {}),  # refuses fields that are there twice: the API might take the other one
            model,
            suffix=self.build_suffix(model),
        )
