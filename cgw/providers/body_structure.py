"""Structures decoded request bodies into attrs classes: a reader that accepts valid bodies, and explains nothing.

:class:`~cgw.providers.request_body.BodyReader` uses it for every body. Where it raises, cattrs structures the body
again, and names all problems; a property test checks that both accept the same bodies with the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import attrs

Convert = Callable[[Any], Any]

MAX_ITEMS = 20_000
"""The most items of a list that are looked at one by one, which takes one or two microseconds each; no other task runs
meanwhile."""


class _Undecided:
    """The exact kind of fields that have none: no decoded value is an instance of it."""


def build_reader(
    cls: type, exact_kinds: Mapping[Any, type], checks: Mapping[Any, Convert], parts: Mapping[Any, Convert]
) -> Convert:
    """Return a function that makes an instance of the attrs class ``cls`` from a decoded object.

    ``checks`` has for each type of a field the function that checks a value and returns the converted one.
    ``exact_kinds`` has, for some types, the class whose instances need no check. ``parts`` has the readers of the attrs
    classes that occur as fields and in lists. An optional field must have the default ``None``.

    The reader raises :exc:`TypeError` or :exc:`ValueError` for an object that is not valid. It looks at the fields that
    are there only, and for most of them that is one comparison, so it takes a third of cattrs' time.
    """
    hints = get_type_hints(cls)
    kinds: dict[str, type] = {}
    converters: dict[str, Convert] = {}
    optional: set[str] = set()
    for attribute in attrs.fields(cls):
        name, hint = attribute.name, hints[attribute.name]
        if attribute.default is None:
            optional.add(name)
            hint = _strip_none(hint)
        kinds[name] = exact_kinds.get(hint, _Undecided)
        converters[name] = _find_converter(hint, checks, parts)

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise TypeError
        found = {}
        for name, item in value.items():
            kind = kinds.get(name)
            if type(item) is kind:
                found[name] = item
            elif kind is not None and (item is not None or name not in optional):
                found[name] = converters[name](item)
        return cls(**found)  # TypeError if a required field is missing

    return read


def _strip_none(hint: Any) -> Any:
    """Return ``X`` of ``X | None``, and any other type as it is."""
    options = get_args(hint)
    return next(option for option in options if option is not NoneType) if NoneType in options else hint


def _find_converter(hint: Any, checks: Mapping[Any, Convert], parts: Mapping[Any, Convert]) -> Convert:
    if hint is Any:
        return _pass
    if hint in parts:
        return parts[hint]
    if get_origin(hint) is list:
        return partial(_read_list, parts[get_args(hint)[0]])
    return checks[hint]


def _pass(value: Any) -> Any:
    return value


def _read_list(read_item: Convert, value: Any) -> list[Any]:
    if type(value) is not list or len(value) > MAX_ITEMS:
        raise TypeError
    return [read_item(item) for item in value]
