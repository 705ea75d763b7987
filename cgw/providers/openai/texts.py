"""OpenAI's older Completions API, which takes a prompt instead of messages, for SDKs.

Fields are those of ``openai`` 3.54 for Python (``CompletionCreateParams``); Fireworks has the same API.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import define, field, frozen

from cgw.providers.dialect import Caller, PreparedRequest
from cgw.providers.openai.sdk_body import BETAS, set_caller
from cgw.providers.openai.sdk_route import OpenAISdkRoute
from cgw.providers.openai.usage import DONE_MARKER, read_completion, read_completion_stream
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader
from cgw.providers.route import ReadBody, multiply_choices
from cgw.providers.upstream_requests import query_of, select_headers
from cgw.wire.messages import RequestHead

CHARACTERS_PER_TOKEN = 4
"""For prompts that are sent as tokens: the providers' rule of thumb for English text."""


@define
class TextBody:
    """The fields that are checked; all others pass."""

    model: str
    prompt: Any = None
    stream: bool | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None


def _build_reader() -> BodyReader[TextBody]:
    return BodyReader(TextBody)


@frozen
class OpenAISdkTexts(OpenAISdkRoute):
    """``/openai/v1/completions``."""

    path: str = field(default="/openai/v1/completions", kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[TextBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    final_markers: ClassVar[tuple[bytes, ...]] = (DONE_MARKER,)
    read_whole: ClassVar[ReadBody] = read_completion
    read_stream: ClassVar[ReadBody] = read_completion_stream

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`."""
        parsed, _ = self.read(self._reader, body, caller)
        model = parsed.model.removeprefix(self.prefix)
        characters, prompts = count_inputs(parsed.prompt)
        choices = prompts * max(parsed.n or 1, parsed.best_of or 1, 1)
        return self.build_request(
            set_caller(body, parsed.model, model, caller),
            model,
            is_stream=parsed.stream is True,
            prompt_character_count=characters,
            max_completion_tokens=multiply_choices(parsed.max_tokens, choices),
            headers=select_headers(head, BETAS),
            query=query_of(head),
            prompt=Prompt({"prompt": join_inputs(parsed.prompt)}, "prompt", "messages"),
        )


def count_inputs(value: Any) -> tuple[int, int]:
    """Return the characters of one or several texts, and how many there are. Texts may be lists of tokens."""
    if isinstance(value, str):
        return len(value), 1
    if not isinstance(value, list):
        return 0, 1
    if all(isinstance(item, int) for item in value):
        return len(value) * CHARACTERS_PER_TOKEN, 1
    # The API has no lists any deeper, which may be as deep as JSON can be: they are not looked into.
    return sum(_count_text(item) for item in value), len(value)


def _count_text(text: Any) -> int:
    if isinstance(text, str):
        return len(text)
    return len(text) * CHARACTERS_PER_TOKEN if isinstance(text, list) else 0


def join_inputs(value: Any) -> str:
    """Return the texts of a prompt, a line each; those that are lists of tokens cannot be read."""
    if isinstance(value, str):
        return value
    return "\n".join(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))
