"""Recorded events compared with the declarations of their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cgw.events.kinds import KINDS, list_keys
from cgw.events.reading import read_events

DECLARATIONS = {kind.name.value: kind.metadata for kind in KINDS}


def check_metadata(name: str, metadata: Mapping[str, Any]) -> None:
    """Assert that ``metadata`` has the declared keys of an event called ``name``, with values of their types."""
    declaration = DECLARATIONS[name]
    keys = list_keys(declaration)
    assert metadata.keys() <= keys.keys(), f"{name} has keys that are not declared: {metadata.keys() - keys.keys()}"
    missing = {key for key, (_, meaning) in keys.items() if not meaning.absent} - metadata.keys()
    assert not missing, f"{name} lacks {missing}"
    msgspec.convert(metadata, declaration)  # raises for a value of another type


def check_recorded_events(folder: Path) -> None:
    """Assert the same of every event that was recorded in ``folder``."""
    for event in read_events(folder):
        check_metadata(event.name, event.metadata)
