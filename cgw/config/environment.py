"""Reading settings from environment variables: all problems at once, and warnings about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from cgw.config.declare import build_root, list_group_classes, list_variables
from cgw.errors import ConfigError

T = TypeVar("T")

PREFIX = "CODY_GATEWAY_"
"""Variables with this prefix are meant for cgw: an unknown one is probably misspelt."""


def read_settings(root: type[T], environ: Mapping[str, str]) -> T:
    """Build an instance of the root class ``root`` from ``environ``.

    A variable that is empty or blank counts as unset, as deployment files often leave it so. Raises
    :exc:`~cgw.errors.ConfigError` with every problem, each beginning with the variable's name.
    """
    problems: list[str] = []

    def read_group(settings_class: type[Any]) -> Any:
        values: dict[str, Any] = {}
        for attribute, variable in list_variables(settings_class):
            found = []
            for name in filter(None, (variable.name, variable.alias)):
                text = environ.get(name, "").strip()
                if not text:
                    continue
                try:
                    found.append(variable.kind.parse(text))
                except ValueError as problem:
                    # Go on: the operator sees the problems of all variables at once.
                    problems.append(f"{name}: {problem}")
            # Neither wins: the one that the operator has forgotten may be the one that restricts access.
            if len(found) == 2 and found[0] != found[1]:
                problems.append(
                    f"{variable.name}: must not differ from {variable.alias}, its older name; unset that one"
                )
            if found:
                values[attribute.name] = found[0]
        return settings_class(**values)

    # A group with problems is built from its other values, so that the problems of all groups are found.
    settings = build_root(root, read_group)
    if problems:
        raise ConfigError(problems)
    return settings


def find_unknown_variables(root: type[Any], environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each unknown ``CODY_GATEWAY_*`` name, with the most similar setting of ``root``."""
    variables = [variable for group in list_group_classes(root) for _, variable in list_variables(group)]
    known = [variable.name for variable in variables]
    aliases = {variable.alias for variable in variables}
    warnings = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in aliases:
            # Below this similarity, a hint would mostly name an unrelated setting.
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            warnings.append(f"{name} is not a setting of this version, and is ignored{hint}")
    return warnings
