"""The steps that the dialects of all providers share: from a checked body to the request, and to its usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from cgw.errors import Headers
from cgw.model import BodyWindow, Usage, UsageQuality
from cgw.providers.dialect import PreparedRequest
from cgw.providers.prompts import Prompt
from cgw.providers.upstream_requests import Endpoint
from cgw.providers.usage_reading import Reading
from cgw.wire.messages import ResponseHead

_IDENTITY = (b"", b"identity")
_JSON = b"application/json"  # the usual content type, which needs no parsing

ReadBody = Callable[[BodyWindow], Reading]


@frozen
class Route:
    """The base of every dialect. A subclass adds ``path``, ``errors``, ``default_feature`` and ``prepare``.

    ``models`` are the ``provider/model`` names and patterns that it serves; ``provider`` is their prefix.
    """

    endpoint: Endpoint
    models: tuple[str, ...]
    provider: str = field(kw_only=True)
    prefix: str = field(init=False, repr=False, eq=False)
    """What the provider's model names begin with, inside cgw; clients may leave it out."""

    final_markers: ClassVar[tuple[bytes, ...]] = ()
    """See :meth:`cgw.providers.dialect.Dialect.final_markers`; empty where only HTTP's end ends a stream."""
    read_whole: ClassVar[ReadBody]
    """Reads a response that is not streamed."""
    read_stream: ClassVar[ReadBody]
    """Reads a streamed response."""

    @property
    def models_variable(self) -> str:
        """See :meth:`cgw.providers.dialect.Dialect.models_variable`."""
        return f"CODY_GATEWAY_{self.provider.upper()}_ALLOWED_MODELS"

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "prefix", f"{self.provider}/")  # once, not for each request

    def build_request(
        self,
        encoded: bytes,
        model: str,
        *,
        is_stream: bool,
        prompt_character_count: int,
        max_completion_tokens: int | None,
        metadata: Mapping[str, Any] | None = None,
        endpoint: Endpoint | None = None,
        suffix: bytes = b"",
        query: bytes = b"",
        headers: Headers = (),
        other_names: tuple[str, ...] = (),
        prompt: Prompt | None = None,
    ) -> PreparedRequest:
        """Return the request to send.

        ``encoded`` is the upstream's body, ``model`` its model without prefix, so that both spellings are checked and
        recorded as one. ``other_names`` are names of the model, without prefix, under which it may be allowed as well.
        ``suffix`` continues the path of ``endpoint``, which is the route's own if it is not given.
        """
        return PreparedRequest(
            (endpoint or self.endpoint).build_request(
                encoded, is_stream=is_stream, suffix=suffix, query=query, headers=headers
            ),
            self.prefix + model,
            is_stream,
            prompt_character_count,
            {"stream": is_stream, **metadata} if metadata else {"stream": is_stream},
            max_completion_tokens,
            tuple([self.prefix + name for name in other_names]) if other_names else (),
            prompt,
        )

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        encoding, content_type = response.header(b"content-encoding"), response.header(b"content-type")
        if not 200 <= response.status < 300 or not (encoding is None or encoding.strip().lower() in _IDENTITY):
            # An error, or in a coding that cgw never asks for: only the prompt's length is known.
            return Usage(prompt_character_count=request.prompt_character_count)
        # An API may answer a streaming request with JSON, so the response decides, if it says anything.
        if content_type is None:
            is_stream = request.is_stream
        else:
            is_stream = content_type != _JSON and content_type.strip().lower().startswith(b"text/event-stream")
        kind = type(self)
        reading = kind.read_stream(body) if is_stream else kind.read_whole(body)
        prompt, completion = reading.prompt_token_count, reading.completion_token_count
        # Of an incomplete response the figures may have been lost, so it counts as partial. An API may also end a
        # stream by an error: HTTP's end is there then, and the API's own end marker is not.
        quality = UsageQuality.PARTIAL
        if body.is_complete:
            if prompt is not None and completion is not None:
                if reading.is_final:
                    quality = UsageQuality.EXACT
            elif prompt is None and completion is None:
                quality = UsageQuality.ESTIMATED
        return Usage(
            prompt,
            completion,
            request.prompt_character_count,
            reading.completion_character_count,
            quality,
            reading.cache_read_token_count,
            reading.cache_write_token_count,
            reading.prompt_quota_token_count,
            reading.reasoning_token_count,
        )


@frozen
class FreeRoute(Route):
    """The base of dialects whose requests cost nothing upstream, such as counting tokens.

    They count on the actor's rate of such requests instead of its quota, and leave no usage event.
    """

    read_whole: ClassVar[ReadBody] = lambda body: Reading()
    read_stream: ClassVar[ReadBody] = lambda body: Reading()

    def build_free_request(
        self, encoded: bytes, model: str, *, suffix: bytes = b"", query: bytes = b"", headers: Headers = ()
    ) -> PreparedRequest:
        """Return the request to send, as :meth:`build_request` does: one answer, and nothing to charge."""
        return self.build_request(
            encoded,
            model,
            is_stream=False,
            prompt_character_count=0,
            max_completion_tokens=0,
            suffix=suffix,
            query=query,
            headers=headers,
        )


def multiply_choices(most: int | None, choices: int | None) -> int | None:
    """Return the largest number of tokens of all choices together; ``None`` if one of them is not limited.

    Providers refuse numbers below 1; here they are safe.
    """
    return None if most is None else max(0, most) * max(1, choices or 1)
