"""Sourcegraph's own model, behind the KServe v2 inference protocol, and its variant with descriptions (§8.5, §8.6).

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import msgspec
from attrs import field, frozen

from cgw.errors import Headers
from cgw.providers.embeddings.embedder import Describer, RawAnswer, broken
from cgw.providers.embeddings.models import MODELS, SOURCEGRAPH_MODEL
from cgw.providers.embeddings.vectors import HollowBody, Span, build_row_splitter
from cgw.providers.json_body import encode_object
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.wire.messages import UpstreamRequest

DIMENSIONS = MODELS[SOURCEGRAPH_MODEL]


class _Output(msgspec.Struct, gc=False):
    data: list[str]  # a marker, see HollowBody


class _Answer(msgspec.Struct, gc=False):
    outputs: list[_Output]


_ANSWERS = msgspec.json.Decoder(_Answer)


def build_kserve_endpoint(url: str, token: str) -> Endpoint:
    """Return the endpoint. Raises :exc:`ValueError` for a URL or token that cannot be used."""
    value = secret_value(token, "the token of Sourcegraph's embeddings")
    headers: Headers = ((b"sourcegraph-smega-inference-auth", value),)
    return Endpoint.parse(url, "", headers)


@frozen
class KServeEmbedder:
    """A model of which the server answers all vectors as one flat list of numbers, and no token count."""

    endpoint: Endpoint
    name: str = SOURCEGRAPH_MODEL
    describer: Describer | None = None
    _split: Callable[[bytes, Span], Iterator[bytes]] = field(
        factory=lambda: build_row_splitter(DIMENSIONS), init=False, repr=False, eq=False
    )

    provider: ClassVar[str] = "sourcegraph"
    dimensions: ClassVar[int] = DIMENSIONS
    # Pods that shut down answer 404 (the reference's §8.5).
    attempts: ClassVar[int] = 3

    def check_inputs(self, inputs: Sequence[str]) -> None:
        """See :meth:`Embedder.check_inputs`: this model takes any text."""

    def build_request(self, inputs: Sequence[str], identifier: str) -> UpstreamRequest:
        """See :meth:`Embedder.build_request`."""
        tensor = {"name": "TEXT", "shape": [len(inputs)], "datatype": "BYTES", "data": inputs}
        body = {"id": str(uuid.uuid4()), "inputs": [tensor]}
        return self.endpoint.build_request(encode_object(body), is_stream=False)

    def read_answer(self, answer: HollowBody) -> RawAnswer:
        """See :meth:`Embedder.read_answer`. The model's name is the one that was asked for."""
        try:
            outputs = _ANSWERS.decode(answer.skeleton).outputs
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise broken("outputs") from None
        if not outputs:
            raise broken("outputs")
        return RawAnswer(self._split(answer.body, answer.find(outputs[0].data)), self.name, None)
