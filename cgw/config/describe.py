"""Describing settings: a row for each, for ``cgw config`` and the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from cgw.config.declare import Variable, list_groups, list_variables
from cgw.config.kinds import Secret

_NOT_SET = "(not set)"


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
        # Computed here, because some defaults depend on the process (the data directory).
        defaults = type(group)()
        for attribute, variable in list_variables(type(group)):
            value, default = getattr(group, attribute.name), getattr(defaults, attribute.name)
            default_text = describe_default(variable, default) or _NOT_SET
            # A value of None means that the default applies, whose text may say what that is.
            value_text = default_text if value is None else _show(variable, value)
            rows.append(SettingRow(variable.name, value_text, default_text, variable.help, value == default))
    return rows


def describe_default(variable: Variable, default: object) -> str:
    """Return the default for people; ``""`` where there is none."""
    return variable.default_text or ("" if default is None else variable.kind.show(default))


def _show(variable: Variable, value: object) -> str:
    return (value is not None and variable.kind.show(value)) or _NOT_SET


def list_secrets(settings: Any) -> Iterator[str]:
    """Yield the value of every secret that the settings hold, for the log's mask."""
    for group in list_groups(settings):
        for attribute, _ in list_variables(type(group)):
            value = getattr(group, attribute.name)
            # By the value's type: REDIS_ENDPOINT and the webhook are secrets, too, with kinds of their own.
            if isinstance(value, Secret):
                yield value.reveal()
