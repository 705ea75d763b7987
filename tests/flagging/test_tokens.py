"""Counting and estimating the tokens of prompts."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import ConfigError
from cgw.flagging.slices import slice_text
from cgw.flagging.tokens import (
    INLINE_CHARACTERS,
    SPLIT,
    CountQuality,
    TokenCount,
    Tokenizer,
    cut_at_words,
    estimate_tokens,
    load_tokenizer,
)
from tests.support.vocabulary import MERGES, write_vocabulary


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_vocabulary(tmp_path / "small.tiktoken"))


async def test_s11_3_tokens_are_counted_with_the_file(tokenizer: Tokenizer) -> None:
    """By the merges of the vocabulary, without special tokens."""
    count = await tokenizer.count(["the hat and"], 100)
    # the, then a space, h, a and t, then a space and "and".
    assert count == TokenCount(1 + 4 + 2, CountQuality.EXACT)
    assert await tokenizer.count(["<|endoftext|>"], 100) == TokenCount(13, CountQuality.EXACT)
    assert await tokenizer.count([], 100) == TokenCount(0, CountQuality.EXACT)


@given(words=st.lists(st.sampled_from(["the", "hat", "and", "in", "x1", "é", "\n", "  ", "a"]), max_size=60))
def test_cutting_at_words_changes_no_count(words: list[str]) -> None:
    """The parts of a text have as many tokens as the whole where it has words."""
    tokens = [bytes([byte]) for byte in range(256)] + MERGES
    encoding = tiktoken.Encoding(
        name="test",
        pat_str=SPLIT,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )
    text = " ".join(words)
    parts = list(cut_at_words(list(slice_text([text], 7)), 64))
    assert "".join(parts) == text
    assert sum(len(encoding.encode_ordinary(part)) for part in parts) == len(encoding.encode_ordinary(text))


@given(texts=st.lists(st.text(alphabet="ab é\n", max_size=50), max_size=20), most=st.integers(1, 30))
def test_parts_are_bounded(texts: list[str], most: int) -> None:
    """No part is longer than twice what is asked for, also without a place to cut at."""
    parts = list(cut_at_words(texts, most))
    assert "".join(parts) == "".join(texts)
    assert all(len(part) <= 2 * most + 1 for part in parts)


async def test_counting_ends_above_all_limits(tokenizer: Tokenizer) -> None:
    """A large prompt that is to be refused costs no more than the limit."""
    count = await tokenizer.count(["x " * 500_000], 20_000)
    assert count.quality is CountQuality.AT_LEAST
    assert 20_000 < count.tokens < 50_000


async def test_large_prompts_are_counted_in_a_thread() -> None:
    """Short ones are not, and the Trio thread goes on meanwhile."""
    threads: set[int] = set()
    go_on = threading.Event()

    def count(text: str) -> int:
        threads.add(threading.get_ident())
        go_on.wait(10)
        return len(text)

    tokenizer = Tokenizer(count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizer.count, ["x" * (INLINE_CHARACTERS + 1)], 10**9)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert trio.lowlevel.current_task() is not None
    assert threading.get_ident() not in threads
    await tokenizer.count(["x"], 10**9)
    assert threading.get_ident() in threads


async def test_a_cancelled_count_ends_its_thread() -> None:
    """After the part that it is at, so that clients who leave do not keep the only thread."""
    calls = 0
    started, go_on = threading.Event(), threading.Event()

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        started.set()
        go_on.wait(10)
        return 1

    tokenizer = Tokenizer(count)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tokenizer.count, ["word " * 100_000], 10**9)
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel()
    go_on.set()
    # The limiter has one slot: this waits for the first thread's end.
    assert await tokenizer.count(["y" * 5000], 10**9) == TokenCount(1, CountQuality.EXACT)
    assert calls == 2


class PanicException(BaseException):
    """Named as that of PyO3, which no module exports."""


def _fail(error: BaseException) -> Callable[[str], int]:
    def count(text: str) -> int:
        raise error

    return count


@pytest.mark.parametrize("error", [PanicException("x"), ValueError("x")], ids=["panic", "error"])
async def test_s9_2_a_failing_tokenizer_leaves_an_estimate(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The request goes on, by an estimate rather than unexamined; the log says so once."""
    tokenizer = Tokenizer(_fail(error))
    for text in ("x" * 30, "x" * 30_000):
        assert await tokenizer.count([text], 100) == TokenCount(len(text) // 3, CountQuality.ESTIMATED)
    assert [record.getMessage() for record in caplog.records] == [
        f"the tokenizer failed ({type(error).__name__}): some prompts are estimated"
    ]


@pytest.mark.parametrize(("text", "tokens"), [("abc" * 10, 10), ("世界", 3), ("ab é", 2), ("", 0), ("\ud800", 1)])
def test_s9_2_an_estimate_is_rather_too_high(text: str, tokens: int) -> None:
    """Three characters of ASCII, or two bytes of others, are a token."""
    assert estimate_tokens([text]) == TokenCount(tokens, CountQuality.ESTIMATED)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read"),
        (b"", "it lacks a token for some byte"),
        (b"!! 1\n", "line 1 is not a token in Base64 and its rank"),
        (b"YQ== x\n", "line 1 is not a token in Base64 and its rank"),
        (b"".join(b"%s 1\n" % base64.b64encode(bytes([byte])) for byte in range(256)), "two tokens have one rank"),
    ],
    ids=["missing", "empty", "no base64", "no rank", "one rank"],
)
def test_a_wrong_vocabulary_is_refused_at_the_start(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """With what is wrong with the file, whose contents are not repeated."""
    path = tmp_path / "x.tiktoken"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(path)
    (text,) = caught.value.problems
    assert text.startswith("CODY_GATEWAY_TOKENIZER_FILE: ")
    assert problem in text
    assert text.endswith(": correct or unset it")
