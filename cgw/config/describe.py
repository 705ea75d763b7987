"""Describing settings: a row for each, for ``cgw config`` and the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from cgw.config.declare import Variable, list_groups, list_variables
from cgw.config.kinds import Secret


@frozen
class SettingRow:
    """One setting for people. ``value`` and ``default`` are written as in the environment, with secrets masked."""

    name: str
    value: str
    default: str
    help: str
    is_default: bool


def describe_settings(settings: Any) -> list[SettingRow]:
    """Return one row for each setting of an instance of a root class, in the order of declaration."""
    rows = []
    for group in list_groups(settings):
        defaults = type(group)()
        for attribute, variable in list_variables(type(group)):
            value, default = getattr(group, attribute.name), getattr(defaults, attribute.name)
            default_text = variable.default_text or _show(variable, default)
            # A value of None means that the default applies, whose text may say what that is.
            value_text = default_text if value is None else _show(variable, value)
            rows.append(SettingRow(variable.name, value_text, default_text, variable.help, value == default))
    return rows


def _show(variable: Variable, value: object) -> str:
    return "(not set)" if value is None else variable.kind.show(value)


def list_secrets(settings: Any) -> Iterator[str]:
    """Yield the value of every secret that the settings hold, for the log's mask."""
    for group in list_groups(settings):
        for attribute, _ in list_variables(type(group)):
            value = getattr(group, attribute.name)
            if isinstance(value, Secret):
                yield value.reveal()
