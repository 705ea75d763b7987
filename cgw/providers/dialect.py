"""What the gateway needs of a provider's API, and nothing more: the seam between routes and APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attrs import frozen

from cgw.errors import Headers, Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.wire.messages import RequestHead, ResponseHead, UpstreamRequest


@frozen
class Caller:
    """What a dialect may know of who asks.

    ``identifier`` is ``<actor id>:<X-Sourcegraph-Actor-UID>`` (the second part may be empty): the user id that
    providers get to see for abuse handling.
    """

    identifier: str
    feature: Feature


@frozen
class PreparedRequest:
    """A checked request, ready to be sent.

    ``model`` is ``provider/model`` after the dialect's rewrites. ``metadata`` holds what the dialect adds to the
    usage event (``stream``, ``max_tokens``). ``prompt_character_count`` is the length of all prompt text,
    ``max_completion_tokens`` the most that the answer may hold (all choices together), ``None`` where the request
    does not say.
    """

    upstream: UpstreamRequest
    model: str
    is_stream: bool
    prompt_character_count: int
    metadata: Mapping[str, Any]
    max_completion_tokens: int | None = None


class ErrorStyle(Protocol):
    """How one API tells its callers that something is wrong."""

    def render(self, refusal: Refusal) -> tuple[Headers, bytes]:
        """The header fields (with ``content-type``, without ``content-length``) and the body for ``refusal``."""
        ...


class Dialect(Protocol):
    """One API on one route. Instances are immutable; every method is pure."""

    @property
    def path(self) -> str:
        """The route, e.g. ``/v1/completions/openai``."""
        ...

    @property
    def provider(self) -> str:
        """The provider's name, as in model names: ``anthropic``, ``openai``."""
        ...

    @property
    def errors(self) -> ErrorStyle:
        """The shape of error bodies on this route."""
        ...

    @property
    def default_feature(self) -> Feature | None:
        """The feature of a request without ``X-Sourcegraph-Feature``; ``None`` where the header is required."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """The ``provider/model`` names that the gateway admits on this route at all."""
        ...

    @property
    def retry_after_seconds(self) -> int:
        """What a 503 says when the upstream gave no ``retry-after`` of its own."""
        ...

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """Check a request's body and build the upstream's request from it.

        Raises :exc:`~cgw.errors.Refusal` (400) that names the offending part by its path.
        """
        ...

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """What an answered request came to. Never raises: what can't be read is ``None``."""
        ...
