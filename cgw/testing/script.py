"""What a scripted upstream is to answer, and when: plain records without I/O."""

from __future__ import annotations

import enum
import math
import re

from attrs import field, frozen
from attrs.validators import ge

from cgw.errors import Headers

DEFAULT_ANSWER = (
    "Hello from the scripted upstream. No model is thinking here: these words were written beforehand, and they "
    "leave one by one, about as fast as a real model would send them. On their way to you they pass through cgw. "
    "It looked at your token, checked that your limit still has room, put the provider's own key in the place of "
    "yours, and now hands on every chunk the moment it comes in, byte for byte. When the last one has passed, the "
    "gateway writes down who asked and what it came to. Should you leave early, it hangs up at once, "
    "so that nobody pays for words that are never read."
)
"""About a hundred words, so a good three seconds at the default rate."""

EVERY_MODEL = "*"
"""The key of the script that answers for every model without one of its own."""


class Breakage(enum.Enum):
    """How an answer breaks off."""

    RESET = "reset"
    """The connection is reset (TCP RST)."""
    CLOSE = "close"
    """The connection is closed (TCP FIN) in the middle of the body, outside any chunk."""
    END = "end"
    """The body ends as HTTP wants it, but too early: the API's own final marker is missing."""


@frozen
class Script:
    """How the upstream answers requests for one model.

    ``answer`` is cut into tokens: a word with the blanks before it. They leave at ``tokens_per_second``, at once if
    that is ``0`` or ``math.inf``. The response head comes ``head_delay_seconds`` after the whole request, the first
    token ``first_token_delay_seconds`` after the head; an answer that is not streamed keeps its head back until its
    last token would have been due.

    A ``status`` other than 200 is answered with ``error_message`` in the API's own shape, and ``error_headers``
    (``retry-after`` and the like). ``break_after_events`` breaks an answer off, by ``breakage``, after so many events
    of a stream (0: right after the head), or in the middle of a body that is not streamed.
    ``use_content_length`` sends even a stream with a ``content-length`` instead of chunked.
    """

    answer: str = DEFAULT_ANSWER
    tokens_per_second: float = field(default=30.0, validator=ge(0))
    head_delay_seconds: float = field(default=0.0, validator=ge(0))
    first_token_delay_seconds: float = field(default=0.0, validator=ge(0))
    api_key: str = field(default="scripted-upstream-key", repr=False)
    status: int = 200
    error_message: str = "This error was scripted."
    error_headers: tuple[tuple[str, str], ...] = ()
    break_after_events: int | None = None
    breakage: Breakage = Breakage.RESET
    use_content_length: bool = False

    def token_at_seconds(self, index: int) -> float:
        """When token ``index`` (from 0) of an answer is due, in seconds after the request."""
        if self.tokens_per_second == 0 or math.isinf(self.tokens_per_second):
            pace = 0.0
        else:
            pace = index / self.tokens_per_second
        return self.head_delay_seconds + self.first_token_delay_seconds + pace


def split_tokens(text: str) -> tuple[str, ...]:
    """Cut ``text`` into words, each with the blanks before it; together they are ``text`` again."""
    tokens = re.findall(r"\s*\S+", text)
    rest = text[sum(map(len, tokens)) :]
    return (*tokens, rest) if rest else tuple(tokens)


@frozen
class BodyPiece:
    """Bytes of a body that leave together, ``at_seconds`` after the request."""

    at_seconds: float
    data: bytes


@frozen
class ScriptedAnswer:
    """A whole response with its timetable. ``headers`` hold no framing; ``has_length`` asks for a content-length."""

    status: int
    headers: Headers
    pieces: tuple[BodyPiece, ...]
    head_at_seconds: float = 0.0
    has_length: bool = True
    breakage: Breakage | None = None
    break_after_pieces: int = 0

    @property
    def body_bytes(self) -> int:
        """The size of the whole body."""
        return sum(len(piece.data) for piece in self.pieces)
