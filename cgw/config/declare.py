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

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from attrs import Attribute, evolve, field, fields, frozen, make_class

from cgw.config.kinds import Kind

T = TypeVar("T")

PLACEHOLDER = "<NAME>"
"""Stands for the name in the variables of a template, see :func:`named_groups`."""

# Keys of attrs' metadata, which tell the three kinds of field apart.
_VARIABLE = "variable"
_GROUP = "group"
_NAMED_GROUPS = "named groups"


@frozen
class Variable:
    """The environment variable of one field. ``default_text`` is shown instead of the default where it is set.

    ``alias`` is an older name of the variable that is read, too; ``fallback`` is another variable, of a wider meaning,
    that is read where this one is not set; ``other_names`` are what other tools call it.
    """

    name: str
    kind: Kind[Any]
    help: str
    default_text: str | None
    alias: str | None = None
    other_names: tuple[str, ...] = ()
    fallback: str | None = None


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
    fallback: str | None = None,
) -> T:
    """Declare a field of a group that is read from the environment variable ``name``, or from its ``alias``.

    ``fallback`` is a variable that is read where neither is set; it may mean something to other programs, too, and
    several settings may have it. ``help`` is a sentence for ``cgw config`` and the documentation. ``factory`` computes
    the default when it is needed, instead of ``default``. ``other_names`` are variables of other tools that operators
    may set by mistake; they are never read, only pointed out. Annotate the field ``| None`` where the default is
    ``None``; the return type is for type checkers only, as with :func:`attrs.field`.
    """
    # Always a factory, so that attrs does not compute defaults (a data directory, say) when the module is imported.
    make_default: Callable[[], Any] = factory or (lambda: default)
    variable = Variable(name, kind, help, default_text, alias, other_names, fallback)
    made: T = field(factory=make_default, kw_only=True, metadata={_VARIABLE: variable})
    return made


def group(settings_class: type[T]) -> T:
    """Declare a field of a root class that holds one group."""
    made: T = field(factory=settings_class, kw_only=True, metadata={_GROUP: settings_class})
    return made


def named_groups(
    settings_classes: Mapping[str, type[T]],
    templates: Sequence[type[T]] = (),
    reserved_names: Collection[str] = (),
) -> Mapping[str, T]:
    """Declare a field of a root class that holds several groups by name, such as one for each provider.

    ``templates`` are classes of groups whose number and names come from the environment: their variables have
    :data:`PLACEHOLDER` where the name stands, in capitals. ``reserved_names`` are names that none of those may have.
    """

    # Called for each root, so that roots do not share groups.
    def make_default() -> Mapping[str, T]:
        return {name: settings_class() for name, settings_class in settings_classes.items()}

    declared = _NamedGroups(settings_classes, tuple(templates), frozenset(reserved_names))
    made: Mapping[str, T] = field(factory=make_default, kw_only=True, metadata={_NAMED_GROUPS: declared})
    return made


@frozen
class _NamedGroups:
    classes: Mapping[str, type[Any]]
    templates: tuple[type[Any], ...]
    reserved_names: frozenset[str]


@frozen
class NamedTemplate:
    """A group to build: the class that ``template`` is for one name, which is as in the environment."""

    template: type[Any]
    name: str
    settings_class: type[Any]

    @property
    def key(self) -> str:
        """The name in the mapping of groups: in lower case, with hyphens, as in URLs."""
        return self.name.lower().replace("_", "-")


def match_template(variable: Variable, name: str) -> str | None:
    """Return what stands for the placeholder of a template's variable in ``name``; ``None`` for other variables."""
    before, _, after = variable.name.partition(PLACEHOLDER)
    match = re.fullmatch(f"{re.escape(before)}([A-Z][A-Z0-9_]{{0,39}}){re.escape(after)}", name)
    return None if match is None or PLACEHOLDER not in variable.name else match[1]


# Cached, so that groups of one name are of one class, and equal if their values are.
@lru_cache(maxsize=256)
def fill_template(template: type[Any], name: str) -> type[Any]:
    """Return a class of a group like ``template``, with ``name`` in its variables instead of the placeholder."""

    def fill(attribute: Attribute[Any]) -> Any:
        variable: Variable = attribute.metadata[_VARIABLE]
        filled = evolve(variable, name=variable.name.replace(PLACEHOLDER, name))
        return field(default=attribute.default, kw_only=True, metadata={_VARIABLE: filled})

    own = {attribute.name: fill(attribute) for attribute in fields(template)}
    return make_class(template.__name__, own, bases=(template,), frozen=True, slots=True)


def list_group_classes(root: type[Any]) -> list[type[Any]]:
    """Return the classes of all groups of a root class, in the order of declaration, templates included."""
    classes: list[type[Any]] = []
    for attribute in fields(root):
        if _GROUP in attribute.metadata:
            classes.append(attribute.metadata[_GROUP])
        elif _NAMED_GROUPS in attribute.metadata:
            declared: _NamedGroups = attribute.metadata[_NAMED_GROUPS]
            classes += [*declared.classes.values(), *declared.templates]
    return classes


def list_groups(settings: Any) -> list[Any]:
    """Return all groups of an instance of a root class, in the order of :func:`list_group_classes`.

    For a template of which there are no groups, that is one with the defaults, to show its variables.
    """
    groups: list[Any] = []
    for attribute in fields(type(settings)):
        value = getattr(settings, attribute.name)
        if _GROUP in attribute.metadata:
            groups.append(value)
        elif _NAMED_GROUPS in attribute.metadata:
            declared: _NamedGroups = attribute.metadata[_NAMED_GROUPS]
            groups += value.values()
            for template in declared.templates:
                if not any(isinstance(group, template) for group in value.values()):
                    groups.append(template())
    return groups


def build_root(
    root: type[T],
    build_group: Callable[[type[Any]], Any],
    find_named: Callable[[type[Any], Collection[str]], Iterable[NamedTemplate]],
) -> T:
    """Build an instance of a root class from ``build_group(settings_class)`` of each of its groups.

    ``find_named(template, reserved_names)`` returns what there is of a template.
    """
    values: dict[str, Any] = {}
    for attribute in fields(root):  # type: ignore[arg-type]  # attrs' bound on its type variable cannot be written here
        if _GROUP in attribute.metadata:
            values[attribute.name] = build_group(attribute.metadata[_GROUP])
        elif _NAMED_GROUPS in attribute.metadata:
            declared: _NamedGroups = attribute.metadata[_NAMED_GROUPS]
            groups = {name: build_group(settings_class) for name, settings_class in declared.classes.items()}
            for template in declared.templates:
                for named in find_named(template, declared.reserved_names):
                    groups[named.key] = build_group(named.settings_class)
            values[attribute.name] = groups
    return root(**values)


def list_variables(settings_class: type[Any]) -> Iterator[tuple[Attribute[Any], Variable]]:
    """Yield the fields of a group with their variables, in the order of declaration."""
    for attribute in fields(settings_class):
        yield attribute, attribute.metadata[_VARIABLE]
