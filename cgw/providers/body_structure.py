"""Structures decoded request bodies: one call of msgspec checks and converts all known fields, and explains nothing.

:class:`~cgw.providers.request_body.BodyReader` uses it for every body. Where it raises, cattrs structures the body
again, and names all problems; a property test checks that both accept the same bodies with the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs
import msgspec

Convert = Callable[[Any], Any]

MAX_ITEMS = 20_000
"""The most items of a list that are structured one by one."""


def build_converter(cls: type, parts: tuple[type, ...], types: Mapping[Any, Any]) -> Convert:
    """Return a function that structures a decoded object into a struct with the attributes of the attrs class ``cls``.

    ``parts`` are the attrs classes that occur in its fields and lists, innermost first. ``types`` has for the types of
    all other fields those that msgspec checks. An optional field must have the default ``None``.

    The function raises :exc:`msgspec.ValidationError` for an object that is not valid. Unlike a constructor in Python,
    it takes no time for fields that are not there.
    """
    known = dict(types)
    for part in (*parts, cls):
        known[part] = _build_struct(part, known)
    return partial(msgspec.convert, type=known[cls])


def _build_struct(cls: type, types: Mapping[Any, Any]) -> type[msgspec.Struct]:
    hints = get_type_hints(cls)
    fields: list[Any] = []
    for attribute in attrs.fields(cls):
        kind: Any = _find_type(_strip_none(hints[attribute.name]), types)
        fields.append((attribute.name, kind | None, None) if attribute.default is None else (attribute.name, kind))
    # Without gc: what was decoded from JSON has no cycles.
    return msgspec.defstruct(cls.__name__, fields, gc=False)


def _strip_none(hint: Any) -> Any:
    """Return ``X`` of ``X | None``, and any other type as it is."""
    options = get_args(hint)
    return next(option for option in options if option is not NoneType) if NoneType in options else hint


def _find_type(hint: Any, types: Mapping[Any, Any]) -> Any:
    if get_origin(hint) is list:
        item: Any = types[get_args(hint)[0]]
        return Annotated[list[item], msgspec.Meta(max_length=MAX_ITEMS)]
    return Any if hint is Any else types[hint]
