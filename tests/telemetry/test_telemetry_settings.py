"""The notation of telemetry's settings: OpenTelemetry's pairs and durations, and Sentry's DSN."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.describe import list_secrets
from cgw.errors import ConfigError
from cgw.service.settings import Settings, load_settings
from cgw.telemetry.settings import OTEL_MILLISECONDS, PAIRS, parse_pairs

NAMES = st.from_regex(r"[A-Za-z0-9._/-]{1,100}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=50)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_pairs_survive_their_notation(pairs: dict[str, str]) -> None:
    """Names and values are read as they were written, percent-encoded."""
    text = ",".join(f"{name}={quote(value, safe='')}" for name, value in pairs.items())
    assert parse_pairs(text) == pairs
    assert dict(PAIRS.parse(PAIRS.show(tuple(pairs.items())))) == pairs


@given(st.text())
def test_any_text_is_pairs_or_refused_without_being_repeated(text: str) -> None:
    """Whatever stands there, the result is pairs or a problem that does not show the text: it may be a key."""
    try:
        assert all(name and value.isprintable() for name, value in parse_pairs(text).items())
    except ValueError as error:
        assert str(error) == "must be pairs such as name=value, separated by commas and percent-encoded"


@pytest.mark.parametrize(("text", "seconds"), [("10000", 10.0), ("500", 0.5), ("10s", 10.0), ("1500ms", 1.5)])
def test_a_timeout_without_a_unit_is_in_milliseconds(text: str, seconds: float) -> None:
    """As OpenTelemetry specifies it; cgw's own durations are read, too."""
    assert OTEL_MILLISECONDS.parse(text) == seconds


def test_keys_of_collectors_and_sentry_are_secret() -> None:
    """They are masked where they are shown, and known to the log's mask."""
    settings = load_settings(
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20CANARYCANARY",
            "SENTRY_DSN": "https://canarykey0123@sentry.example.com/42",
        }
    )
    assert "CANARY" not in repr(settings)
    assert "canarykey" not in repr(settings)
    assert str(settings.sentry.dsn) == "https://****@sentry.example.com/42"
    assert "https://canarykey0123@sentry.example.com/42" in list(list_secrets(settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SENTRY_DSN", "https://sentry.example.com/42"),
        ("SENTRY_DSN", "https://canarykey@sentry.example.com/project"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "canarykey"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=canary%0Ab"),
        ("CODY_GATEWAY_TRACE_POLICY", "some"),
    ],
)
def test_a_wrong_value_is_one_problem_with_its_name(name: str, value: str) -> None:
    """The problem begins with the variable, and does not show a key."""
    with pytest.raises(ConfigError) as caught:
        load_settings({name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: must be ")
    assert "canary" not in problem


def test_nothing_is_sent_anywhere_by_default() -> None:
    """Without settings there is no collector, no project and no DSN."""
    settings = Settings()
    assert settings.traces.policy == "all"
    assert (settings.otlp.endpoint, settings.traces.gcp_project_id, settings.sentry.dsn) == (None, None, None)
    assert not settings.traces.propagates
