"""The stack trace of an exception for logs and error reports, without the data of callers.

The form is that of :func:`traceback.format_exc`, which Error Reporting parses; a group of one exception, into which
``except*`` and nurseries wrap what they find, is left out, because it cannot parse that.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import trio

from cgw.errors import CgwError

MAX_CHAINED = 8
"""The most exceptions of one chain, or of one group, that are formatted."""

WITHHELD = "(the text is withheld, as it may hold a caller's data)"

# The texts of these are cgw's own or name types, attributes and system errors. Others quote what they were given: the
# key of a KeyError, the number that a ValueError is no number, the bytes that are no UTF-8.
_TEXTS_WITHOUT_DATA: tuple[type[BaseException], ...] = (
    *(CgwError, OSError, MemoryError, RuntimeError, ZeroDivisionError, ImportError),
    *(TypeError, AttributeError, NameError, IndexError, trio.TooSlowError, trio.BrokenResourceError),
    *(trio.ClosedResourceError, trio.BusyResourceError, trio.EndOfChannel, trio.WouldBlock, trio.Cancelled),
    trio.TrioInternalError,
)

_CAUSED = "\n\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\n\nDuring handling of the above exception, another exception occurred:\n\n"


def unwrap(error: BaseException) -> BaseException:
    """Return the exception in groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def may_quote_caller(error: BaseException) -> bool:
    """Return whether the text of ``error`` may hold a caller's data: then it goes into no log and no report."""
    return not isinstance(error, _TEXTS_WITHOUT_DATA)


def describe_error(error: BaseException) -> str:
    """Return type and text, as in the last line of a stack trace; the text only where it holds no caller's data."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        return f"{name}: {len(error.exceptions)} exceptions"
    text = str(error)
    if not text:
        return name
    return f"{name}: {WITHHELD if may_quote_caller(error) else text}"


def format_stack_trace(error: BaseException) -> str:
    """Return the stack traces of ``error``, of what caused it, and of the members of groups, without a line ending."""
    return "\n\n".join(_format_chain(member) for member in _list_members(unwrap(error)))


def _list_members(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    yield error  # where the group was raised
    for member in error.exceptions[:MAX_CHAINED]:
        yield unwrap(member)


def _format_chain(error: BaseException) -> str:
    text, seen = _format_one(error), {id(error)}
    for _ in range(MAX_CHAINED):
        cause, link = error.__cause__, _CAUSED
        if cause is None and not error.__suppress_context__:
            cause, link = error.__context__, _DURING
        if cause is None or id(cause) in seen:
            break
        error = cause
        seen.add(id(error))
        text = _format_one(unwrap(error)) + link + text
    return text


def _format_one(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    head = "Traceback (most recent call last):\n" if frames else ""
    return f"{head}{frames}{describe_error(error)}"
