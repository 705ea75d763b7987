"""Descriptions of code by a language model at Fireworks, for the metadata model (the reference's §8.6)."""

from __future__ import annotations

import msgspec
from attrs import frozen

from cgw.errors import Headers
from cgw.providers.embeddings.embedder import broken
from cgw.providers.json_body import encode_object
from cgw.providers.provider import ProviderSettings, reveal_access_token
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.providers.usage_reading import Figure
from cgw.wire.messages import UpstreamRequest

MODEL = "accounts/fireworks/models/llama-v3-8b-instruct"
MAX_TOKENS = 2000

_PROMPT = """\
Write short documentation for each high-level definition (class, function, type, constant) in the code below. For each \
one write its name, then one or two sentences about what it does. Answer with these entries and nothing else.

```
{code}
```
"""


class _Message(msgspec.Struct, gc=False):
    content: str


class _Choice(msgspec.Struct, gc=False):
    message: _Message


class _Usage(msgspec.Struct, gc=False):
    total_tokens: Figure | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: _Usage | None = None


_ANSWERS = msgspec.json.Decoder(_Answer)


@frozen
class FireworksDescriber:
    """Asks Fireworks' chat API about one text at a time."""

    endpoint: Endpoint

    @classmethod
    def build(cls, settings: ProviderSettings) -> FireworksDescriber:
        """Return the describer. Raises :exc:`ValueError` for a URL or key that cannot be used."""
        key = secret_value(reveal_access_token(settings), "Fireworks' access token")
        headers: Headers = ((b"authorization", b"Bearer " + key),)
        return cls(Endpoint.parse(settings.api_url, "/v1/chat/completions", headers))

    def build_request(self, text: str) -> UpstreamRequest:
        """See :meth:`Describer.build_request`."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": _PROMPT.format(code=text)}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "top_p": 1,
        }
        return self.endpoint.build_request(encode_object(body), is_stream=False)

    def read_answer(self, body: bytes) -> tuple[str, int | None]:
        """See :meth:`Describer.read_answer`."""
        try:
            answer = _ANSWERS.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise broken("description") from None
        if not answer.choices:
            raise broken("description")
        return answer.choices[0].message.content, None if answer.usage is None else answer.usage.total_tokens
