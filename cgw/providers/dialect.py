"""The interface between the gateway and a provider's API: one dialect for each route."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec

from cgw.errors import Headers, Refusal
from cgw.model import BodyWindow, Feature, Usage
from cgw.providers.prompts import Prompt
from cgw.wire.messages import RequestHead, ResponseHead, UpstreamRequest

# Structs, because each exchange makes one: no line of Python runs for it.


class Caller(msgspec.Struct, gc=False):
    """The caller, as far as a dialect needs to know it.

    ``identifier`` is ``<actor id>:<X-Sourcegraph-Actor-UID>`` (the second part may be empty). Providers get it as the
    user id, for their abuse handling.
    """

    identifier: str
    feature: Feature


class PreparedRequest(msgspec.Struct, gc=False):
    """A checked request, ready to be sent.

    ``model`` is ``provider/model`` after the dialect's rewrites. ``metadata`` is added to the usage event (``stream``,
    ``max_tokens``). ``prompt_character_count`` is the length of all text of the prompt, in code points.
    ``max_completion_tokens`` is the largest number of tokens of the response, all choices together; ``None`` if the
    request does not limit it. ``other_names`` are names of the model, also with prefix, under any of which it may be
    allowed instead: that of a virtual model, for example, which ``model`` is the choice of. ``prompt`` is what flagging
    examines; ``None`` where the provider's requests are not flagged.
    ``references`` are the ids of objects stored at the provider that the request takes something from: they must be the
    actor's own. ``find_stored_ids`` returns the ids under which the provider has stored the response and its parts, as
    far as the body's window tells them; ``None`` where it stores nothing.
    """

    upstream: UpstreamRequest
    model: str
    is_stream: bool
    prompt_character_count: int
    metadata: Mapping[str, Any]
    max_completion_tokens: int | None = None
    other_names: tuple[str, ...] = ()
    prompt: Prompt | None = None
    references: tuple[str, ...] = ()
    find_stored_ids: Callable[[BodyWindow], Collection[str]] | None = None

    def __repr__(self) -> str:
        # Not all fields: some have the prompt.
        return f"PreparedRequest({self.upstream!r}, {self.model!r}, is_stream={self.is_stream!r})"


class ErrorStyle(Protocol):
    """The error bodies of one API.

    For a refusal with one of the codes :data:`~cgw.errors.MISSING_TOKEN` and :data:`~cgw.errors.UNKNOWN_TOKEN`, an
    API's own style has the API's own words.
    """

    @property
    def is_for_sdks(self) -> bool:
        """True on routes for the API's own SDKs, false on the reference's, whose clients retry in another way."""
        ...

    @property
    def takes_key_in_query(self) -> bool:
        """True where the API's clients may send their key as ``?key=``. It must not reach a log or an upstream."""
        ...

    def render(self, refusal: Refusal, request_id: str | None = None) -> tuple[Headers, bytes]:
        """Return the header fields and the body for ``refusal``, with the request's id where there is one.

        The fields have ``content-type``, but neither ``content-length`` nor ``refusal.headers``: the caller adds those.
        """
        ...


class Dialect(Protocol):
    """One API on one route. Instances are immutable; every method is pure, but for the choice of a virtual model.

    For each request the gateway calls, in this order: :meth:`prepare`; then it checks ``model`` and limits, sends
    ``upstream`` and relays the response; then :meth:`read_usage`.
    """

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
        """The ``provider/model`` names and patterns that this route serves; an actor may be allowed fewer."""
        ...

    @property
    def models_variable(self) -> str:
        """The setting that ``models`` are from, for refusals."""
        ...

    @property
    def retry_after_seconds(self) -> int:
        """The ``retry-after`` of a 503 if the upstream's response had none."""
        ...

    @property
    def final_markers(self) -> tuple[bytes, ...]:
        """The lines, such as ``data: [DONE]``, of which one is in the last event of every complete stream; at most 64
        bytes each. The event is held back until the exchange is recorded. Empty where the API has no last event."""
        ...

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """Check a client's request and build the upstream's request from it.

        Raises :exc:`~cgw.errors.Refusal` (400) whose ``param`` is the path of the wrong part of the body.
        """
        ...

    def read_usage(self, request: PreparedRequest, response: ResponseHead, body: BodyWindow) -> Usage:
        """Return the usage of a request from its response, which may be incomplete. Never raises: figures that cannot
        be read are ``None``."""
        ...
