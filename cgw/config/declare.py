"""Declaring settings as attrs classes: each field has a variable, a kind, a default and a help text.

A *group* is a class of settings that belong together, such as ``ServerSettings``. A *root* class has a field for each
group. :mod:`cgw.config.environment` reads a root class, :mod:`cgw.config.describe` prints it::

    @frozen
    class ServerSettings:
        port: int = setting("PORT", integer(least=0, most=65535), 9992, "The port to serve on.")

    @frozen
    class Settings:
        server: ServerSettings = group(ServerSettings)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from attrs import Attribute, field, fields, frozen

from cgw.config.kinds import Kind

T = TypeVar("T")

# Keys of attrs' metadata, which tell the three kinds of field apart.
_VARIABLE = "variable"
_GROUP = "group"
_NAMED_GROUPS = "named groups"


@frozen
class Variable:
    """The environment variable of one field. ``default_text`` is shown instead of the default where it is set.

    ``alias`` is an older name of the variable that is read, too; ``other_names`` are what other tools call it.
    """

    name: str
    kind: Kind[Any]
    help: str
    default_text: str | None
    alias: str | None = None
    other_names: tuple[str, ...] = ()


def setting(
    name: str,
    kind: Kind[T],
    default: T | None,
    help: str,
    *,
    factory: Callable[[], T] | None = None,
    default_text: str | None = None,
    alias: str | None = None,
    other_names: tuple[str, ...] = (),
) -> T:
    """Declare a field of a group that is read from the environment variable ``name``, or from its ``alias``.

    ``help`` is a sentence for ``cgw config`` and the documentation. ``factory`` computes the default when it is needed,
    instead of ``default``. ``other_names`` are variables of other tools that operators may set by mistake; they are
    never read, only pointed out. Annotate the field ``| None`` where the default is ``None``; the return type is for
    type checkers only, as with :func:`attrs.field`.
    """
    # Always a factory, so that attrs does not compute defaults (a data directory, say) when the module is imported.
    make_default: Callable[[], Any] = factory or (lambda: default)
    variable = Variable(name, kind, help, default_text, alias, other_names)
    made: T = field(factory=make_default, kw_only=True, metadata={_VARIABLE: variable})
    return made


def group(settings_class: type[T]) -> T:
    """Declare a field of a root class that holds one group."""
    made: T = field(factory=settings_class, kw_only=True, metadata={_GROUP: settings_class})
    return made


def named_groups(settings_classes: Mapping[str, type[T]]) -> Mapping[str, T]:
    """Declare a field of a root class that holds several groups by name, such as one for each provider."""

    # Called for each root, so that roots do not share groups.
    def make_default() -> Mapping[str, T]:
        return {name: settings_class() for name, settings_class in settings_classes.items()}

    made: Mapping[str, T] = field(factory=make_default, kw_only=True, metadata={_NAMED_GROUPS: settings_classes})
    return made


def list_group_classes(root: type[Any]) -> list[type[Any]]:
    """Return the classes of all groups of a root class, in the order of declaration."""
    classes: list[type[Any]] = []
    for attribute in fields(root):
        if _GROUP in attribute.metadata:
            classes.append(attribute.metadata[_GROUP])
        elif _NAMED_GROUPS in attribute.metadata:
            classes += attribute.metadata[_NAMED_GROUPS].values()
    return classes


def list_groups(settings: Any) -> list[Any]:
    """Return all groups of an instance of a root class, in the order of :func:`list_group_classes`."""
    groups: list[Any] = []
    for attribute in fields(type(settings)):
        value = getattr(settings, attribute.name)
        if _GROUP in attribute.metadata:
            groups.append(value)
        elif _NAMED_GROUPS in attribute.metadata:
            groups += (value[name] for name in attribute.metadata[_NAMED_GROUPS])
    return groups


def build_root(root: type[T], build_group: Callable[[type[Any]], Any]) -> T:
    """Build an instance of a root class from ``build_group(settings_class)`` of each of its groups."""
    values: dict[str, Any] = {}
    for attribute in fields(root):  # type: ignore[arg-type]  # attrs' bound on its type variable cannot be written here
        if _GROUP in attribute.metadata:
            values[attribute.name] = build_group(attribute.metadata[_GROUP])
        elif _NAMED_GROUPS in attribute.metadata:
            classes = attribute.metadata[_NAMED_GROUPS]
            values[attribute.name] = {name: build_group(settings_class) for name, settings_class in classes.items()}
    return root(**values)


def list_variables(settings_class: type[Any]) -> Iterator[tuple[Attribute[Any], Variable]]:
    """Yield the fields of a group with their variables, in the order of declaration."""
    for attribute in fields(settings_class):
        yield attribute, attribute.metadata[_VARIABLE]
