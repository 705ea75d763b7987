"""Write ``docs/settings.md`` from the declarations of all settings: ``python -m docs.generate_settings``."""

from __future__ import annotations

import inspect
from pathlib import Path

import attrs

from cgw.config.declare import list_group_classes
from cgw.config.describe import SettingRow, describe_settings
from cgw.service.settings import Settings

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

Every setting is an environment variable. This page is generated from their declarations by
`python -m docs.generate_settings`, and a test holds it up to date. `cgw config` prints the same list with the values
that are in effect, secrets masked.

A variable that is set to nothing counts as unset. All problems are reported together, each with its variable's name,
and `cgw serve` then exits with status 1; `cgw check` finds them without starting. A `CODY_GATEWAY_*` name that is
none of these is warned about, with the nearest one that is; so are names that other tools have for the same thing.

How values are written:

- **Durations** as in Go: `500ms`, `10s`, `1m30s`, `24h`; a plain number is seconds.
- **Sizes** in bytes, or with a unit: `65536`, `64KiB`, `32MiB`; `1MB` is 10⁶.
- **Yes or no**: `true` or `false`; also `t`, `f`, `1`, `0`, `yes`, `no`, `on`, `off`, in any case.
- **Lists**: separated by commas; blanks around names don't count.
"""


def build_page() -> str:
    """The whole page, in Markdown."""
    rows = iter(describe_settings(Settings()))
    parts = [INTRODUCTION]
    for settings_class in list_group_classes(Settings):
        title = settings_class.__name__.removesuffix("Settings")
        about = inspect.cleandoc(str(settings_class.__doc__)).replace("``", "`")
        parts.append(f"\n## {title}\n\n{about}\n\n| variable | default | meaning |\n|---|---|---|\n")
        parts += [_build_row(next(rows)) for _ in attrs.fields(settings_class)]
    return "".join(parts)


def _build_row(row: SettingRow) -> str:
    default = row.default if " " in row.default else f"`{row.default}`"
    meaning = row.help.replace("|", r"\|")
    return f"| `{row.name}` | {default} | {meaning} |\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), "utf-8")
