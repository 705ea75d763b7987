"""Fireworks' Chat Completions and Completions APIs for SDKs: bodies pass as they came, but for the model's name.

As on the reference's route, Fireworks is told nothing about callers: cgw adds no ``user``. Virtual models are resolved
as there.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.fireworks.completions import GENIE, PROVIDER
from cgw.providers.fireworks.models import VirtualModels, list_other_names
from cgw.providers.json_body import ClientBody, split_large
from cgw.providers.openai.chat import ChatMessage, count_characters
from cgw.providers.openai.sdk_body import set_model
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.openai.texts import TextBody, count_inputs, join_inputs
from cgw.providers.openai.usage import DONE_MARKER, read_completion, read_completion_stream
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader
from cgw.providers.route import ReadBody, multiply_choices
from cgw.providers.upstream_requests import query_of
from cgw.wire.messages import RequestHead


@define
class _ChatBody:
    model: str
    messages: list[ChatMessage] | None = None
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def _build_chat_reader() -> BodyReader[_ChatBody]:
    return BodyReader(_ChatBody, ChatMessage, count=count_characters)


def _build_text_reader() -> BodyReader[TextBody]:
    return BodyReader(TextBody)


@frozen
class _FireworksSdkRoute(OpenAISdkRoute):
    """The steps that both routes share."""

    provider: str = field(default=PROVIDER, kw_only=True)
    takes_code: bool = field(default=True, kw_only=True)
    virtual_models: VirtualModels = field(factory=VirtualModels, kw_only=True)

    final_markers: ClassVar[tuple[bytes, ...]] = (DONE_MARKER,)
    read_whole: ClassVar[ReadBody] = read_completion
    read_stream: ClassVar[ReadBody] = read_completion_stream

    def _build(
        self,
        head: RequestHead,
        body: ClientBody,
        asked: str,
        *,
        is_stream: bool,
        characters: int,
        most: int | None,
        prompt: Prompt,
    ) -> PreparedRequest:
        name = asked.removeprefix(self.prefix)
        model = self.virtual_models.resolve(name, None)
        headers: Headers = GENIE if head.header(b"x-fireworks-genie") == b"true" else ()
        return self.build_request(
            set_model(body, asked, model),
            model,
            is_stream=is_stream,
            prompt_character_count=characters,
            max_completion_tokens=most,
            headers=headers,
            query=query_of(head),
            other_names=list_other_names(name, model),
            prompt=prompt,
        )


@frozen
class FireworksSdkChat(_FireworksSdkRoute):
    """``/fireworks/v1/chat/completions``."""

    path: str = field(default="/fireworks/v1/chat/completions", kw_only=True)
    _reader: BodyReader[_ChatBody] = field(factory=_build_chat_reader, init=False, repr=False, eq=False)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        client_body = split_large(body, "messages")
        parsed, raw, characters = self.read_counted(self._reader, client_body, caller)
        if not parsed.messages:
            raise Refusal(400, 'request body must contain "messages" field', param="messages")
        most = parsed.max_tokens if parsed.max_completion_tokens is None else parsed.max_completion_tokens
        return self._build(
            head,
            client_body,
            parsed.model,
            is_stream=parsed.stream is True,
            characters=characters,
            most=multiply_choices(most, parsed.n),
            prompt=Prompt(raw, "system", "messages"),
        )


@frozen
class FireworksSdkTexts(_FireworksSdkRoute):
    """``/fireworks/v1/completions``."""

    path: str = field(default="/fireworks/v1/completions", kw_only=True)
    _reader: BodyReader[TextBody] = field(factory=_build_text_reader, init=False, repr=False, eq=False)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self.read(self._reader, body, caller)
        characters, prompts = count_inputs(parsed.prompt)
        return self._build(
            head,
            body,
            parsed.model,
            is_stream=parsed.stream is True,
            characters=characters,
            most=multiply_choices(parsed.max_tokens, prompts * max(parsed.n or 1, parsed.best_of or 1, 1)),
            prompt=Prompt({"prompt": join_inputs(parsed.prompt)}, "prompt", "messages"),
        )
