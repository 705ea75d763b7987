"""How a settings class declares its fields: each knows its variable, kind, default and help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import field, frozen

from cgw.config_values import Kind

T = TypeVar("T")


@frozen
class Variable:
    """How one field is written in the environment."""

    name: str
    kind: Kind[Any]
    help: str
    default_text: str | None


def setting(
    name: str,
    kind: Kind[T],
    default: T | None,
    help: str,
    *,
    factory: Callable[[], T] | None = None,
    default_text: str | None = None,
) -> T:
    """A field of a settings class, read from the environment variable ``name``.

    The return type is a white lie for type checkers (as with :func:`attrs.field`); a field whose default is
    ``None`` is annotated ``| None``. ``factory`` makes the default when it is needed, instead of ``default``.
    """
    make_default: Callable[[], Any] = factory or (lambda: default)
    variable = Variable(name, kind, help, default_text)
    made: T = field(factory=make_default, kw_only=True, metadata={"variable": variable})
    return made


def group(settings_class: type[T]) -> T:
    made: T = field(factory=settings_class, kw_only=True, metadata={"group": settings_class})
    return made
