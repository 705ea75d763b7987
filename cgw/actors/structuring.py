"""Structuring JSON answers into attrs classes: a value of another type is named by its path, not converted."""

from __future__ import annotations

import re
from typing import Any, NewType, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

T = TypeVar("T")

BigInt = NewType("BigInt", int)
"""A whole number that may come as a string of digits, as GraphQL's BigInt and Protobuf's int64 do in JSON."""

_DIGITS = re.compile("-?[0-9]{1,30}")
_MAX_PROBLEMS = 5


class AnswerProblem(ValueError):
    """An answer does not have the expected shape. The text names each field by its path; no value is in it."""


def build_converter() -> cattrs.Converter:
    """Return a converter for answers: fields in camel case, unknown ones ignored, defaults for missing ones."""
    converter = cattrs.Converter(detailed_validation=True)
    for scalar in (str, bool, int):
        converter.register_structure_hook(scalar, _take_exactly)
    converter.register_structure_hook(BigInt, _take_big_int)

    def build_hook(cls: type[Any]) -> Any:
        renames: dict[str, Any] = {name: override(rename=_to_camel(name)) for name in attrs.fields_dict(cls)}
        return make_dict_structure_fn(cls, converter, **renames)

    converter.register_structure_hook_factory(attrs.has, build_hook)
    return converter


def structure(converter: cattrs.Converter, value: Any, cls: type[T]) -> T:
    """Return ``value`` as ``cls``. Raises :exc:`AnswerProblem` with every problem, at most a few."""
    if not isinstance(value, dict):
        raise AnswerProblem(f"is {_name_type(value)} instead of an object")
    try:
        return converter.structure(value, cls)
    except cattrs.BaseValidationError as error:
        found = cattrs.transform_error(error, path="$", format_exception=_format_problem)
        # The paths have the names of attributes; answers have them in camel case.
        problems = [f"{problem} @ {_to_camel(path)}" for problem, _, path in (text.rpartition(" @ ") for text in found)]
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise AnswerProblem("; ".join(problems[:_MAX_PROBLEMS]) + more) from None


def _format_problem(error: BaseException, cls: type[Any] | None) -> str:
    if isinstance(error, KeyError):
        return f"lacks {error.args[0]!r}"
    if isinstance(error, _WrongType):
        return str(error)
    return f"is not what it should be ({type(error).__name__})"


class _WrongType(ValueError):
    pass


def _take_exactly(value: Any, cls: type[Any]) -> Any:
    if type(value) is not cls:  # not isinstance: `True` is an int
        raise _WrongType(f"is {_name_type(value)} instead of {_NAMES[cls]}")
    return value


def _take_big_int(value: Any, _: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    raise _WrongType(f"is {_name_type(value)} instead of a whole number")


_NAMES = {str: "a string", int: "a whole number", bool: "true or false", float: "a number", dict: "an object"}


def _name_type(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), "a list" if isinstance(value, list) else "another type")


def _to_camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
