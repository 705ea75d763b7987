"""OpenAI's Responses API, as its SDKs, Codex CLI and the agents' SDK call it.

Fields are those of ``openai`` 3.54 for Python (``ResponseCreateParams``). Three things are refused, because all callers
share the gateway's account at OpenAI: responses in the background, whose usage is not known when they are asked for and
so could not be charged, and conversations, and references to stored responses and items that are not the caller's own.
The gateway checks the latter; this module only lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from cgw.errors import Refusal
from cgw.providers.body_structure import MAX_ITEMS
from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.json_body import ClientBody, split_large
from cgw.providers.openai.responses_usage import FINAL_MARKERS, list_ids, read_response, read_response_stream
from cgw.providers.openai.sdk_body import BETAS, set_caller, set_model
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader, JsonObject
from cgw.providers.route import FreeRoute, ReadBody
from cgw.providers.upstream_requests import query_of, select_headers
from cgw.wire.messages import RequestHead, UpstreamRequest

MAX_REFERENCES = 1000
"""The most stored objects that a request may refer to: they are looked up in one call."""


@define
class ResponsesBody:
    """The fields that are checked; all others pass."""

    model: str
    input: Any = None
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    prompt_cache_options: JsonObject | None = None
    background: bool | None = None
    conversation: Any = None


def _build_reader() -> BodyReader[ResponsesBody]:
    return BodyReader(ResponsesBody)


@frozen
class OpenAIResponses(OpenAISdkRoute):
    """``/openai/v1/responses``: the body passes as it came, but for the model's prefix and the caller's identifier."""

    path: str = field(default="/openai/v1/responses", kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[ResponsesBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    final_markers: ClassVar[tuple[bytes, ...]] = FINAL_MARKERS
    read_whole: ClassVar[ReadBody] = read_response
    read_stream: ClassVar[ReadBody] = read_response_stream

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        client_body = split_large(body, "input")
        parsed, raw = self.read(self._reader, client_body, caller)
        _check_supported(parsed)
        options: dict[str, Any] = parsed.prompt_cache_options or {}
        compared = options.get("comparison_response_id")
        references = list_references(parsed.input, parsed.previous_response_id, compared)
        model = parsed.model.removeprefix(self.prefix)
        prepared = self.build_request(
            self._encode(client_body, parsed.model, model, caller),
            model,
            is_stream=parsed.stream is True,
            prompt_character_count=count_input_characters(parsed.instructions, parsed.input),
            max_completion_tokens=parsed.max_output_tokens,
            headers=select_headers(head, BETAS),
            query=query_of(head),
            prompt=Prompt(raw, "instructions", "input"),
        )
        # OpenAI stores a response unless it is asked not to.
        prepared.references = references
        prepared.find_stored_ids = None if parsed.store is False else list_ids
        return prepared

    def _encode(self, body: ClientBody, asked: str, model: str, caller: Caller) -> bytes:
        return set_caller(body, asked, model, caller)

    def build_stored_request(self, head: RequestHead, suffix: str) -> UpstreamRequest:
        """Return the request about a stored response: the client's method at ``suffix`` below the route.

        ``suffix`` begins with a slash and is percent-encoded. A body is not passed on: these requests have none.
        """
        request = self.endpoint.build_request(
            b"",
            is_stream=False,
            suffix=suffix.encode("ascii"),
            query=query_of(head),
            headers=select_headers(head, BETAS),
        )
        # What is encoded already has the method POST.
        return evolve(request, method=head.method, head_start=None)


@frozen
class OpenAICompaction(OpenAIResponses):
    """``/openai/v1/responses/compact``: a conversation in fewer tokens. The API has no field for the caller there."""

    path: str = field(default="/openai/v1/responses/compact", kw_only=True)

    def _encode(self, body: ClientBody, asked: str, model: str, caller: Caller) -> bytes:
        return set_model(body, asked, model)


@define
class CountBody:
    """The fields of a request to count tokens that are checked; all others pass."""

    model: str
    input: Any = None
    previous_response_id: str | None = None
    conversation: Any = None


def _build_count_reader() -> BodyReader[CountBody]:
    return BodyReader(CountBody)


@frozen
class OpenAIInputTokens(OpenAISdkRoute, FreeRoute):
    """``/openai/v1/responses/input_tokens``, which costs nothing."""

    path: str = field(default="/openai/v1/responses/input_tokens", kw_only=True)
    _reader: BodyReader[CountBody] = field(factory=_build_count_reader, init=False, repr=False, eq=False)

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self.read(self._reader, body, caller)
        _refuse_conversation(parsed.conversation)
        model = parsed.model.removeprefix(self.prefix)
        prepared = self.build_free_request(
            set_model(body, parsed.model, model),
            model,
            headers=select_headers(head, BETAS),
            query=query_of(head),
        )
        prepared.references = list_references(parsed.input, parsed.previous_response_id)
        return prepared


def _check_supported(body: ResponsesBody) -> None:
    if body.background:
        text = "background: not supported by this gateway: the usage of a response in the background cannot be charged"
        raise Refusal(400, text, param="background", code="unsupported_parameter")
    _refuse_conversation(body.conversation)


def _refuse_conversation(value: Any) -> None:
    if value is not None:
        text = "conversation: not supported by this gateway, whose callers share an account: send the input instead"
        raise Refusal(400, text, param="conversation", code="unsupported_parameter")


def list_references(items: Any, *others: Any) -> tuple[str, ...]:
    """Return the ids of stored items and responses from which the upstream would take something: ``others`` as well.

    Items that have their content with them (messages, calls and their results) are not looked up there, whatever id
    they have. Raises :exc:`~cgw.errors.Refusal` (400) for more than :data:`MAX_REFERENCES`, and for more items than can
    be looked at.
    """
    if isinstance(items, str) and others.count(None) == len(others):
        return ()  # the usual short prompt
    if isinstance(items, list) and len(items) > MAX_ITEMS:
        raise Refusal(400, f"input: at most {MAX_ITEMS} items are accepted, not {len(items)}", param="input")
    found = [id_ for id_ in (*others, *_list_item_references(items)) if isinstance(id_, str)]
    if len(found) > MAX_REFERENCES:
        text = f"input: at most {MAX_REFERENCES} references to stored items are accepted, not {len(found)}"
        raise Refusal(400, text, param="input")
    return tuple(dict.fromkeys(found))


def _list_item_references(items: Any) -> Iterator[Any]:
    # A single item without its list is no input for OpenAI; another server may take it.
    for item in items if isinstance(items, list) else (items,):
        if not isinstance(item, dict):
            continue
        kind = item.get("type")
        # An item of the model's own that comes without its content: the upstream knows it by the id alone.
        if (
            kind == "item_reference"
            or (kind is None and item.get("role") is None)
            or (kind == "reasoning" and not item.get("encrypted_content"))
            or (kind == "image_generation_call" and not item.get("result"))
        ):
            yield item.get("id")


def count_input_characters(instructions: str | None, items: Any) -> int:
    """Return the length of all text of a prompt, in code points: instructions, messages, and results of tools."""
    count = len(instructions or "")
    if isinstance(items, str):
        return count + len(items)
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            count += _count_content(item.get("content")) + _count_content(item.get("output"))
            count += sum(len(text) for name in ("arguments", "input") if isinstance(text := item.get(name), str))
    return count


def _count_content(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    texts = (part.get("text") for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
    return sum(len(text) for text in texts if isinstance(text, str))
