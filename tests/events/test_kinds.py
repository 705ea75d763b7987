"""The declared kinds of event agree with what is recorded. Every test of a whole gateway checks its events so, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from msgspec import ValidationError, structs

from cgw.events.kinds import KINDS, CompletionsFinished, Exchanged, list_keys
from cgw.events.lines import EventLine, render_line
from cgw.events.records import _FIGURES, ExchangeFigures, _Completion
from cgw.model import EventName, UsageEvent
from docs.generate_events import PAGE, build_examples, build_page
from tests.events.conftest import build_event, read_metadata
from tests.events.test_report import record
from tests.support.event_kinds import check_metadata, check_recorded_events


def test_every_kind_is_declared_once() -> None:
    """Each name of an event is declared, in the order in which examples are built."""
    assert [kind.name for kind in KINDS] == list(EventName) == [example.name for example in build_examples()]


@pytest.mark.parametrize("example", build_examples(), ids=lambda example: example.name)
def test_builders_write_what_is_declared(example: UsageEvent) -> None:
    """An event of each kind has the declared keys and types, as it is stored."""
    stored = json.loads(render_line(example))
    check_metadata(stored["name"], stored["metadata"])
    assert stored.keys() == list_keys(EventLine).keys()


def test_completions_are_built_of_what_is_declared() -> None:
    """The Struct of completions has the declared keys, with their types, those of the exchange last."""
    declared = {name: key_type | None for name, (key_type, _) in list_keys(CompletionsFinished).items()}
    hints = get_type_hints(_Completion)
    assert {field.encode_name: hints[field.name] for field in structs.fields(_Completion)} == declared
    assert set(_FIGURES) == list_keys(Exchanged).keys()
    assert tuple(hints[name] for name in _FIGURES) == get_args(ExchangeFigures)


async def test_deviations_are_found(folder: Path) -> None:
    """A key that is not declared, a missing one and a value of another type fail the check of recorded events."""
    complete = read_metadata(build_examples()[0])
    check_metadata("CompletionsFinished", complete)
    with pytest.raises(AssertionError, match=r"not declared: \{'tokens'\}"):
        check_metadata("CompletionsFinished", complete | {"tokens": 1})
    with pytest.raises(AssertionError, match=r"lacks \{'model'\}"):
        check_metadata("CompletionsFinished", {key: value for key, value in complete.items() if key != "model"})
    with pytest.raises(ValidationError, match="Expected `int`, got `str`"):
        check_metadata("CompletionsFinished", complete | {"prompt_token_count": "12"})
    await record(folder, build_event(tokens=1))
    with pytest.raises(AssertionError, match="not declared"):
        check_recorded_events(folder)


def test_the_page_of_events_is_up_to_date() -> None:
    """``docs/events.md`` matches the declared kinds; ``python -m docs.generate_events`` rewrites it."""
    assert PAGE.read_text("utf-8") == build_page(), "run: python -m docs.generate_events"
