"""The steps that the dialects of all providers share: from a checked body to the request, and to its usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from cgw.errors import Headers
from cgw.model import BodyWindow, Usage
from cgw.providers.dialect import PreparedRequest
from cgw.providers.prompts import Prompt
from cgw.providers.upstream_requests import Endpoint
from cgw.providers.usage_reading import Reading, read_usage
from cgw.wire.messages import ResponseHead

ReadBody = Callable[[BodyWindow], Reading]


@frozen
class Route:
    """The base of every dialect. A subclass adds ``path``, ``errors``, ``default_feature`` and ``prepare``.

    ``models`` are the ``provider/model`` names and patterns that it serves; ``provider`` is their prefix.
    """

    endpoint: Endpoint
    models: tuple[str, ...]
    provider: str = field(kw_only=True)

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

    def strip_prefix(self, model: str) -> str:
        """Return a model's name as the API knows it: clients may send it with the provider's prefix."""
        return model.removeprefix(f"{self.provider}/")

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
            f"{self.provider}/{model}",
            is_stream,
            prompt_character_count,
            {"stream": is_stream, **metadata} if metadata else {"stream": is_stream},
            max_completion_tokens,
            tuple([f"{self.provider}/{name}" for name in other_names]) if other_names else (),
            prompt,
        )

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """See :meth:`cgw.providers.dialect.Dialect.read_usage`."""
        kind = type(self)
        return read_usage(request, response, body, kind.read_whole, kind.read_stream)


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
