"""Tokens of a prompt: counted with a vocabulary where one is set, estimated from characters otherwise."""

from __future__ import annotations

import base64
import binascii
import enum
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import trio
from attrs import frozen

from cgw.errors import ConfigError

VARIABLE = "CODY_GATEWAY_TOKENIZER_FILE"

COUNTED_CHARACTERS = 8 * 1024
"""The tokens of so many characters are a list that Python makes in 0.1 ms; only that holds the GIL."""

INLINE_CHARACTERS = 2 * 1024
"""Up to this length counting takes less time than handing the text to a thread."""

_ASCII_CHARACTERS_PER_TOKEN = 3
_OTHER_BYTES_PER_TOKEN = 2

# That of cl100k_base, the vocabulary which the reference counts by (§11.3). From https://github.com/openai/tiktoken.
SPLIT = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"""
    r"""\s+(?!\S)|\s"""
)

# The end of a text that can be cut off without another count: a space between letters always begins a token.
_CUT = re.compile(r"(?<=[a-zA-Z])(?= [a-zA-Z])")

logger = logging.getLogger("cgw.flagging")


class CountQuality(enum.StrEnum):
    """The reliability of a number of tokens."""

    EXACT = "exact"
    AT_LEAST = "at_least"
    """Counting ended above all limits: what is to be refused should cost no more."""
    ESTIMATED = "estimated"


@frozen
class TokenCount:
    """The number of tokens of a prompt."""

    tokens: int
    quality: CountQuality


CountTokens = Callable[[str], int]


def estimate_tokens(slices: Iterable[str]) -> TokenCount:
    """Estimate the tokens of a text.

    Rather too many than too few, as prompts that are to be blocked must not pass: three characters of ASCII are a token
    (in English text four), and two bytes of UTF-8 of any others (a Chinese character has three bytes, and one or two
    tokens).
    """
    estimate = TokenEstimate()
    for text in slices:
        estimate.add(text)
    return estimate.total


class TokenEstimate:
    """An estimate as of :func:`estimate_tokens`, slice by slice."""

    def __init__(self) -> None:
        self._characters = self._other_bytes = 0

    def add(self, text: str) -> None:
        """Go on with ``text``."""
        own = len(text)
        if not text.isascii():
            own = len(text.encode("ascii", "ignore"))
            self._other_bytes += len(text.encode("utf-8", "replace")) - own
        self._characters += own

    @property
    def total(self) -> TokenCount:
        """The estimate for what was added."""
        tokens = -(-self._characters // _ASCII_CHARACTERS_PER_TOKEN) + -(-self._other_bytes // _OTHER_BYTES_PER_TOKEN)
        return TokenCount(tokens, CountQuality.ESTIMATED)


class Tokenizer:
    """Counts tokens, long texts in a thread, one at a time. ``count`` counts those of a short text."""

    def __init__(self, count: CountTokens) -> None:
        self._count = count
        self._limiter = trio.CapacityLimiter(1)
        self._has_complained = False

    async def count(self, slices: Sequence[str], stop_above: int) -> TokenCount:
        """Count the tokens of a text; stop as soon as there are more than ``stop_above``. Cancel-safe."""
        if sum(map(len, slices)) <= INLINE_CHARACTERS:
            return self._count_all(slices, stop_above, lambda: False)
        is_cancelled = False
        try:
            return await trio.to_thread.run_sync(
                self._count_all,
                slices,
                stop_above,
                lambda: is_cancelled,
                abandon_on_cancel=True,
                limiter=self._limiter,
            )
        finally:
            is_cancelled = True  # the thread ends after the part that it is at

    def _count_all(self, slices: Sequence[str], stop_above: int, is_cancelled: Callable[[], bool]) -> TokenCount:
        total = 0
        try:
            for text in cut_at_words(slices, COUNTED_CHARACTERS):
                total += self._count(text)
                if is_cancelled() or total > stop_above:
                    return TokenCount(total, CountQuality.AT_LEAST)
        except BaseException as error:
            # A panic of its Rust code is no Exception; it must not end the process.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if not self._has_complained:
                self._has_complained = True
                logger.warning("the tokenizer failed (%s): some prompts are estimated", type(error).__name__)
            return estimate_tokens(slices)
        return TokenCount(total, CountQuality.EXACT)


def cut_at_words(slices: Sequence[str], most: int) -> Iterator[str]:
    """Yield a text again, cut between words, so that its parts have as many tokens as the whole.

    ``slices`` are its slices. A part that has no such place is cut after ``2 * most`` characters, which changes the
    count by a token or two.
    """
    carry = ""
    for text in slices:
        window = carry + text
        start = 0
        while len(window) - start > most:
            match = _CUT.search(window, start + most, start + 2 * most)
            if match is None and len(window) - start < 2 * most:
                break  # the next slice may have a place
            end = start + 2 * most if match is None else match.start()
            yield window[start:end]
            start = end
        carry = window[start:]
    if carry:
        yield carry


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of the vocabulary in the file ``path``. Nothing is fetched or cached elsewhere.

    Blocks, half a second or so. Raises :exc:`~cgw.errors.ConfigError` if the file or the library cannot be used.
    """
    try:
        import tiktoken  # an optional extra
    except ImportError:
        raise ConfigError([f"{VARIABLE}: needs tiktoken: install cgw[tokenizer], or unset it"]) from None
    try:
        ranks = _parse_vocabulary(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{VARIABLE}: cannot read {path}: {error.strerror}: correct or unset it"]) from None
    except ValueError as error:
        raise ConfigError(
            [f"{VARIABLE}: {path} is no vocabulary of tiktoken's: {error}: correct or unset it"]
        ) from None
    encoding = tiktoken.Encoding(name="cgw", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    return Tokenizer(lambda text: len(encoding.encode_ordinary(text)))


def _parse_vocabulary(data: bytes) -> dict[bytes, int]:
    """Return the ranks of tokens: each line has a token in Base64, a space and its rank. Raises :exc:`ValueError`."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            if line:
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise ValueError(f"line {number} is not a token in Base64 and its rank") from None
    # Without one of them some text could not be encoded.
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("it lacks a token for some byte")
    if len(set(ranks.values())) != len(ranks):
        raise ValueError("two tokens have one rank")
    return ranks
