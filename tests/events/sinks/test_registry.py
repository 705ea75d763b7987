"""Choosing sinks by the settings, and how events are batched for each."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from cgw.errors import ConfigError
from cgw.events.settings import SINK_NAMES
from cgw.events.sinks.registry import SINKS, adjust_for_bigquery, build_options, choose_sinks
from cgw.service.settings import load_settings

URL = {"CODY_GATEWAY_EVENTS_HTTP_URL": "https://events.example.com/x"}


def choose(environ: Mapping[str, str]) -> list[str]:
    return [kind.name for kind in choose_sinks(load_settings(environ))]


def test_without_a_list_those_whose_place_is_set_are_chosen() -> None:
    """None by default: events stay in the log."""
    assert choose({}) == []
    assert choose(URL) == ["http"]


def test_a_list_is_all_there_is(caplog: pytest.LogCaptureFixture) -> None:
    """A sink whose place is set and that is not on it is pointed out."""
    assert choose({"CODY_GATEWAY_EVENTS_SINKS": "HTTP, stdout", **URL}) == ["stdout", "http"]
    assert caplog.text == ""
    caplog.set_level(logging.WARNING)
    assert choose({"CODY_GATEWAY_EVENTS_SINKS": "stdout", **URL}) == ["stdout"]
    assert "CODY_GATEWAY_EVENTS_HTTP_URL is set, but CODY_GATEWAY_EVENTS_SINKS does not name http" in caplog.text


def test_a_sink_without_its_place_is_a_problem() -> None:
    """Which names both variables."""
    with pytest.raises(ConfigError, match="CODY_GATEWAY_EVENTS_SINKS: http also needs CODY_GATEWAY_EVENTS_HTTP_URL"):
        choose({"CODY_GATEWAY_EVENTS_SINKS": "http"})


def test_a_name_that_is_no_sink_is_a_problem() -> None:
    """Which lists the sinks."""
    with pytest.raises(ConfigError, match="must be some of bigquery, http, stdout, separated by commas, not 'kafka'"):
        load_settings({"CODY_GATEWAY_EVENTS_SINKS": "http,kafka"})
    assert {kind.name for kind in SINKS} <= set(SINK_NAMES)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (100, 10)),
        ({"CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE": "5"}, (5, 1)),
        ({"CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_SIZE": "0"}, (1, 1)),
        ({"CODY_GATEWAY_BIGQUERY_EVENT_BUFFER_WORKERS": "3"}, (100, 3)),
    ],
)
def test_bigquery_has_the_settings_of_the_reference(environ: dict[str, str], expected: tuple[int, int]) -> None:
    """Its names, and its rule for the number of workers."""
    settings = load_settings(environ).shipping
    options = adjust_for_bigquery(settings, build_options(SINKS[0], settings))
    assert (options.batch_events, options.max_in_flight) == expected


def test_batches_are_as_set() -> None:
    """One at a time to standard output, whose lines are in order."""
    settings = load_settings({"CODY_GATEWAY_EVENTS_BATCH_SIZE": "7", "CODY_GATEWAY_EVENTS_WORKERS": "3"}).shipping
    by_name = {kind.name: build_options(kind, settings) for kind in SINKS}
    assert (by_name["http"].batch_events, by_name["http"].max_in_flight) == (7, 3)
    assert (by_name["stdout"].batch_events, by_name["stdout"].max_in_flight) == (7, 1)
    assert by_name["http"].age_seconds == 1
