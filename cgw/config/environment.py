"""Reading settings from environment variables: all problems at once, and warnings about names that are not read.

Every problem and every warning has the form ``variable: what is wrong: what to do``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from attrs import Attribute, frozen

from cgw.config.declare import (
    PLACEHOLDER,
    NamedTemplate,
    Variable,
    build_root,
    fill_template,
    list_group_classes,
    list_variables,
    match_template,
)
from cgw.config.describe import describe_default

T = TypeVar("T")

PREFIX = "CODY_GATEWAY_"
"""Variables with this prefix are meant for cgw: an unknown one is probably misspelt."""

LEAST_SIMILARITY = 0.72
"""Of names without the prefix; below it, a hint would mostly name an unrelated setting."""

LEAST_WORD_SIMILARITY = 0.6
"""Two letters of three that changed places are still the same word."""

_SECRET_WORDS = {"TOKEN", "SECRET", "PASSWORD", "WEBHOOK"}


@frozen
class ExaminedSettings(Generic[T]):
    """Settings, and the problem of each variable that is wrong; ``settings`` have the defaults of those."""

    settings: T
    problems: Mapping[str, str]


def examine_environment(root: type[T], environ: Mapping[str, str]) -> ExaminedSettings[T]:
    """Build an instance of the root class ``root`` from ``environ``, with the problems of all variables.

    A variable that is empty or blank counts as unset, as deployment files often leave it so.
    """
    problems: dict[str, str] = {}

    def read_group(settings_class: type[Any]) -> Any:
        values: dict[str, Any] = {}
        for attribute, variable in list_variables(settings_class):
            found = []
            for name in _choose_names(variable, environ):
                text = environ.get(name, "").strip()
                if not text:
                    continue
                try:
                    found.append(variable.kind.parse(text))
                except ValueError as problem:
                    # Go on: the operator sees the problems of all variables at once.
                    problems[name] = f"{name}: {problem}: {_advise(settings_class, attribute, variable)}"
            # Neither wins: the one that the operator has forgotten may be the one that restricts access.
            if len(found) == 2 and found[0] != found[1]:
                problems[variable.name] = (
                    f"{variable.name}: differs from {variable.alias}, its older name: unset that one"
                )
            elif found:
                values[attribute.name] = found[0]
        return settings_class(**values)

    # A group with problems is built from its other values, so that the problems of all groups are found.
    return ExaminedSettings(build_root(root, read_group, partial(_find_named, environ, problems)), problems)


def _choose_names(variable: Variable, environ: Mapping[str, str]) -> list[str]:
    """Return the names to read: the variable's own and its alias, or the fallback where neither is set."""
    names = list(filter(None, (variable.name, variable.alias)))
    if variable.fallback is not None and not any(environ.get(name, "").strip() for name in names):
        return [variable.fallback]
    return names


def _find_named(
    environ: Mapping[str, str], problems: dict[str, str], template: type[Any], reserved_names: Collection[str]
) -> list[NamedTemplate]:
    """Return what ``environ`` has of a template, once for each name; add the names that are taken to ``problems``."""
    found: dict[str, NamedTemplate] = {}
    for variable_name in sorted(environ):
        for _, variable in list_variables(template):
            name = match_template(variable, variable_name)
            if name is None or not environ[variable_name].strip():
                continue
            filled = fill_template(template, name)  # type: ignore[arg-type]  # mypy takes no class for hashable
            named = NamedTemplate(template, name, filled)
            if named.key in reserved_names:
                problems[variable_name] = f"{variable_name}: the name {named.key} is taken: choose another one"
            else:
                found[named.key] = named
    return list(found.values())


def _advise(settings_class: type[Any], attribute: Attribute[Any], variable: Variable) -> str:
    default = describe_default(variable, getattr(settings_class(), attribute.name))
    return "correct or unset it" + (f" (default: {default})" if default else "")


def find_unknown_variables(
    root: type[Any], environ: Mapping[str, str], not_here: Mapping[str, str] | None = None
) -> list[str]:
    """Return a warning for each variable that looks as if it were meant for cgw, and is not read.

    These are what other tools call a setting of ``root`` that is not set (``OPENAI_API_KEY``), the names in
    ``not_here`` with the advice there, and every other name with :data:`PREFIX`, with the most similar setting.
    """
    known = {variable.name: variable for group in list_group_classes(root) for _, variable in list_variables(group)}
    aliases = {variable.alias for variable in known.values()}
    by_other_name = {other: variable for variable in known.values() for other in variable.other_names}
    templates = [name for name in known if PLACEHOLDER in name]
    warnings = []
    for name in sorted(environ):
        is_known = name in known or name in aliases or any(match_template(known[one], name) for one in templates)
        if is_known or not environ[name].strip():
            continue
        if name in by_other_name:
            meant = by_other_name[name].name
            # A tool of its own may need the name, beside cgw's; with cgw's prefix it is for nobody else.
            if name.startswith(PREFIX) or not environ.get(meant, "").strip():
                warnings.append(f"{name}: is not read by cgw: set {meant} instead")
        elif not_here is not None and name in not_here:
            warnings.append(f"{name}: a setting of Cody Gateway that cgw does not have, ignored: {not_here[name]}")
        elif name.startswith(PREFIX):
            nearest = _find_nearest(name, list(known.values()))
            hint = f"did you mean {nearest}?" if nearest else "correct or remove it; `cgw config` lists all settings"
            warnings.append(f"{name}: is not a setting of this version, and is ignored: {hint}")
    return warnings


def _find_nearest(name: str, known: list[Variable]) -> str | None:
    """Return the name of the setting that ``name`` is probably a misspelling of."""
    wanted = name.removeprefix(PREFIX)
    candidates = {variable.name.removeprefix(PREFIX): variable for variable in known}
    eligible = [candidate for candidate, variable in candidates.items() if _may_be_meant(wanted, candidate, variable)]
    nearest = difflib.get_close_matches(wanted, eligible, n=1, cutoff=LEAST_SIMILARITY)
    return candidates[nearest[0]].name if nearest else None


def _may_be_meant(wanted: str, candidate: str, variable: Variable) -> bool:
    """Return whether a hint may lead from ``wanted`` to ``candidate``, the name of ``variable`` without prefix.

    The first words name a service or a part of cgw. They must be alike; for a secret the same, with nothing but
    misspelt words behind, so that no hint leads from one service's secret to another's.
    """
    words, other_words = wanted.split("_"), candidate.split("_")
    if variable.kind.is_secret:
        return (
            words[0] == other_words[0] and len(words) == len(other_words) and all(map(_are_alike, words, other_words))
        )
    # A key must not be put where values are shown, either.
    return _are_alike(words[0], other_words[0]) and not (_SECRET_WORDS.intersection(words) or words[-1] == "KEY")


def _are_alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one, other).ratio() >= LEAST_WORD_SIMILARITY
