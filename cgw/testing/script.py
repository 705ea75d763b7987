"""Scripts for the scripted upstream, and the answers made from them: plain records without I/O."""

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
"""112 words: almost four seconds at the default rate."""

EVERY_MODEL = "*"
"""The key of the script for all models that have no script of their own."""


class Breakage(enum.Enum):
    """Ways in which an answer can break off."""

    RESET = "reset"
    """The connection is reset (TCP RST)."""
    CLOSE = "close"
    """The connection is closed (TCP FIN) in the middle of the body, outside any chunk."""
    END = "end"
    """The body ends correctly for HTTP, but too early: the API's own final event is missing."""


@frozen
class ScriptedCall:
    """A call of a tool: its name, and its arguments in JSON."""

    name: str
    arguments: str


@frozen
class Script:
    """The behaviour of the scripted upstream for one model.

    ``answer`` is split into tokens: words, each with the blanks before it. They are sent at ``tokens_per_second``, all
    at once if that is ``0`` or ``math.inf``. The response head is sent ``head_delay_seconds`` after the request's end,
    the first token ``first_token_delay_seconds`` after the head. An answer that is not streamed is sent as a whole
    when its last token is due.

    With a ``status`` other than 200, the answer is ``error_message`` in the API's own format, with ``error_headers``
    (``retry-after``, for example). ``break_after_events`` breaks a stream off, in the way of ``breakage``, after that
    many events (0: right after the head), and a body that is not streamed in its middle. ``use_content_length`` sends
    a stream with ``content-length`` instead of chunked.

    ``calls`` are the turns of an agent's loop before the answer, each with the calls of tools that are made at once.
    Where the request offers tools, the turn is the first one whose results it does not have.
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
    calls: tuple[tuple[ScriptedCall, ...], ...] = ()

    def choose_calls(self, result_count: int, *, has_tools: bool) -> tuple[ScriptedCall, ...]:
        """Return the calls that are due in a conversation with ``result_count`` results of calls."""
        for turn in self.calls if has_tools else ():
            if result_count <= 0:
                return turn
            result_count -= len(turn)
        return ()

    def token_at_seconds(self, index: int) -> float:
        """Return when token ``index`` (from 0) is due, in seconds after the request."""
        # Both mean "without pacing"; 0 can't be divided by.
        if self.tokens_per_second == 0 or math.isinf(self.tokens_per_second):
            pace = 0.0
        else:
            pace = index / self.tokens_per_second
        # Counted from the request, not from the token before: a token that is late does not delay the others.
        return self.head_delay_seconds + self.first_token_delay_seconds + pace


def split_tokens(text: str) -> tuple[str, ...]:
    """Split ``text`` into words, each with the blanks before it, so that joining them gives ``text`` again."""
    tokens = re.findall(r"\s*\S+", text)
    # Blanks at the end of the text belong to no word.
    rest = text[sum(map(len, tokens)) :]
    return (*tokens, rest) if rest else tuple(tokens)


@frozen
class BodyPiece:
    """Bytes of a body that are sent together, ``at_seconds`` after the request."""

    at_seconds: float
    data: bytes


@frozen
class ScriptedAnswer:
    """A whole response with the times at which its parts are sent, in seconds after the request.

    ``headers`` are without framing: ``has_length`` adds ``content-length``, otherwise the body is chunked.
    """

    status: int
    headers: Headers
    pieces: tuple[BodyPiece, ...]
    head_at_seconds: float = 0.0
    has_length: bool = True
    breakage: Breakage | None = None
    break_after_pieces: int = 0

    @property
    def body_bytes(self) -> int:
        return sum(len(piece.data) for piece in self.pieces)
