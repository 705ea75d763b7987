"""Stack traces for logs: the interpreter's form, without what callers sent."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import msgspec
import pytest
import trio

from cgw.errors import StoreUnavailable
from cgw.telemetry.stack_traces import MAX_CHAINED, WITHHELD, describe_error, format_stack_trace, unwrap

PROMPT = "the caller's words"


def catch(fail: Callable[[], object]) -> BaseException:
    """Return the exception that ``fail`` raises."""
    try:
        fail()
    except BaseException as error:  # noqa: BLE001 - any kind
        return error
    raise AssertionError("nothing was raised")


def fail_with_cause() -> None:
    """Raise an exception with a cause and one with a context."""
    try:
        try:
            raise OSError("first")
        except OSError as error:
            raise TypeError("second") from error
    except TypeError:
        raise RuntimeError("third")  # noqa: B904 - the context is the point


@pytest.mark.parametrize("fail", [fail_with_cause, lambda: list[int]()[0], lambda: object().nothing])  # type: ignore[attr-defined]
def test_the_form_is_the_interpreters(fail: Callable[[], object]) -> None:
    """Without data and without a group, the text is that of the traceback module, causes and contexts included."""
    error = catch(fail)
    # The interpreter marks the failing part of a line with a line of its own, which Error Reporting does not need.
    lines = [line for line in "".join(traceback.format_exception(error)).splitlines() if set(line) - set(" ^~")]
    ours = [line for line in format_stack_trace(error).splitlines() if set(line) - set(" ^~")]
    assert [line for line in ours if line] == [line for line in lines if line]


@pytest.mark.parametrize(
    "fail",
    [
        lambda: int(PROMPT),
        lambda: dict[str, str]()[PROMPT],
        lambda: (PROMPT + "\ud800").encode(),
        lambda: msgspec.json.decode(f'"{PROMPT}"', type=int),
        lambda: msgspec.convert(PROMPT, int, strict=False),
        lambda: (_ for _ in ()).throw(Exception(PROMPT)),
        lambda: (_ for _ in ()).throw(ExceptionGroup(PROMPT, [ValueError(PROMPT), KeyError(PROMPT)])),
    ],
)
def test_what_may_quote_a_caller_is_withheld(fail: Callable[[], object]) -> None:
    """Type and place of every exception are there; the text only of those that quote nothing."""
    text = format_stack_trace(catch(fail))
    assert PROMPT not in text
    assert __file__ in text


def test_words_of_cgw_and_of_the_system_are_there() -> None:
    """The texts of cgw's own errors and of the system tell what happened."""
    assert describe_error(StoreUnavailable("no answer")) == "cgw.errors.StoreUnavailable: no answer"
    assert describe_error(OSError(2, "No such file")) == "FileNotFoundError: [Errno 2] No such file"
    assert describe_error(KeyError("a")) == f"KeyError: {WITHHELD}"
    assert describe_error(KeyError()) == "KeyError"


async def test_a_group_of_one_is_its_member() -> None:
    """What a nursery or except* wraps alone begins with Traceback and ends with the exception itself."""

    async def fail() -> None:
        raise TypeError("odd")

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
    text = format_stack_trace(caught.value)
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("\nTypeError: odd")
    assert "Group" not in text.splitlines()[-1]
    assert isinstance(unwrap(ExceptionGroup("", [ExceptionGroup("", [TypeError()])])), TypeError)


def test_members_of_a_group_follow_it() -> None:
    """Each member has a stack trace of its own, up to a bound."""
    members = [catch(lambda: list[int]()[0]) for _ in range(20)]
    assert isinstance(members[0], IndexError)
    group = ExceptionGroup("many", [member for member in members if isinstance(member, Exception)])
    text = format_stack_trace(group)
    assert text.startswith("ExceptionGroup: 20 exceptions\n\nTraceback")
    assert text.count("IndexError: list index out of range") == MAX_CHAINED


def test_endless_chains_end() -> None:
    """A chain that is a circle, or long, is cut."""
    first, second = TypeError("first"), TypeError("second")
    first.__cause__, second.__cause__ = second, first
    assert format_stack_trace(first).count("TypeError") == 2
    error: Exception = TypeError("0")
    for number in range(100):
        following = TypeError(str(number))
        following.__cause__ = error
        error = following
    assert format_stack_trace(error).count("TypeError") == MAX_CHAINED + 1
