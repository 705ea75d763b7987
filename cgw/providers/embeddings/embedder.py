"""The interface between the gateway and the upstream of an embeddings model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import frozen

from cgw.errors import Refusal, UpstreamProtocolError, UpstreamRefusal
from cgw.providers.embeddings.vectors import HollowBody
from cgw.providers.upstream_words import describe_words
from cgw.wire.messages import UpstreamRequest

MAX_SHOWN_BYTES = 1024
"""The part of an upstream's error that clients or the log see, as in the reference."""

MAX_NUMBER_BYTES = 32
"""The most that one number of a vector takes in JSON: it bounds how much of an answer is read."""


@frozen
class RawAnswer:
    """The part of an upstream's answer that is read: the JSON of its numbers, to be split or passed on by ``rows``."""

    rows: Iterator[bytes]
    model: str
    token_count: int | None


class Describer(Protocol):
    """Has a language model describe each text before it is embedded."""

    def build_request(self, text: str) -> UpstreamRequest:
        """Build the request to describe ``text``."""
        ...

    def read_answer(self, body: bytes) -> tuple[str, int | None]:
        """Return the description, and the tokens that it took, ``None`` if not told.

        Raises :exc:`~cgw.errors.UpstreamProtocolError` for a body without a description.
        """
        ...


class Embedder(Protocol):
    """One model: its request, and what the answer means. Immutable; every method is pure."""

    @property
    def name(self) -> str:
        """The model's name, with prefix."""
        ...

    @property
    def provider(self) -> str:
        """The provider's name in events and limits."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of its vectors."""
        ...

    @property
    def attempts(self) -> int:
        """The most times that a request is sent until it succeeds."""
        ...

    @property
    def describer(self) -> Describer | None:
        """Describes texts before they are embedded, if anything does."""
        ...

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """Raise :exc:`~cgw.errors.Refusal` 400 for inputs that the upstream cannot embed."""
        ...

    def build_request(self, inputs: Sequence[str], identifier: str) -> UpstreamRequest:
        """Build the request for ``inputs``, which are not empty. ``identifier`` names the caller."""
        ...

    def read_answer(self, answer: HollowBody) -> RawAnswer:
        """Read the body of a 200. Raises :exc:`~cgw.errors.UpstreamProtocolError`; iterating its rows may, too."""
        ...


def describe_body(body: bytes) -> str:
    """Return the part of an error's body that is shown."""
    return body[:MAX_SHOWN_BYTES].decode("utf-8", "replace").strip()


def explain_status(status: int, body: bytes, provider: str, sent: bytes) -> UpstreamRefusal:
    """Build what the client is told of an answer other than 200 to a request with the body ``sent``.

    In the reference's words where it has some.

    A 400 is the client's to correct; the upstream's own words about anything else are for the log.
    """
    reason = f"the upstream answered {status}: {describe_words(body, sent)}"
    if status == 400:
        return UpstreamRefusal(400, f"bad request: {describe_body(body)}", reason=reason)
    if status in (429, 503, 529):
        return UpstreamRefusal(503, "we're facing too much load at the moment, please retry later", reason=reason)
    return UpstreamRefusal(502, f"the upstream provider {provider} failed with status {status}", reason=reason)


def refuse_empty(inputs: Sequence[str]) -> None:
    """Raise :exc:`~cgw.errors.Refusal` 400 for an empty string."""
    for index, text in enumerate(inputs):
        if not text:
            raise Refusal(400, "cannot generate embeddings for an empty string", param=f"input[{index}]")


def broken(what: str) -> UpstreamProtocolError:
    """Build the error of an answer that cannot be used."""
    return UpstreamProtocolError(f"the upstream's answer has no {what}")
