"""The settings of actors against a copy of the reference's table 11.1."""

from __future__ import annotations

import pytest

from cgw.config.declare import list_group_classes, list_variables
from cgw.config.describe import describe_settings
from cgw.config.kinds import BOOLEAN
from cgw.service.settings import Settings, load_settings

TABLE = """\
| CODY_GATEWAY_DIAGNOSTICS_SECRET | required | diagnostics bearer |
| CODY_GATEWAY_DOTCOM_ACCESS_TOKEN | – | enables dotcom-user source and attribution |
| CODY_GATEWAY_DOTCOM_CLIENT_ID | – | X-Sourcegraph-Client-ID |
| CODY_GATEWAY_DOTCOM_API_URL | https://sourcegraph.com/.api/graphql | |
| CODY_GATEWAY_DOTCOM_ACTOR_COOLDOWN_INTERVAL | 300s | |
| CODY_GATEWAY_ENTERPRISE_PORTAL_URL | – | enables product-subscription source |
| CODY_GATEWAY_ALLOW_ANONYMOUS | false | |
| CODY_GATEWAY_SOURCES_SYNC_INTERVAL | 2m | |
| CODY_GATEWAY_SOURCES_CACHE_TTL | 24h | |
| CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_PERCENTAGE | 50 | 0–100 |
| CODY_GATEWAY_ACTOR_CONCURRENCY_LIMIT_INTERVAL | 10s | |
| CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL | – | |
| CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH | false | |
| SAMS_URL | https://accounts.sourcegraph.com | |
| SAMS_API_URL | – | |
| SAMS_CLIENT_ID | – | |
| SAMS_CLIENT_SECRET | – | |
| CODY_GATEWAY_ENVIRONMENT | dev | User-Agent to dotcom |
| REDIS_ENDPOINT | required | |
"""
"""The rows that concern actors. cgw needs neither of the required ones: healthz is open without the secret, and without
a Redis there is an embedded server."""

ROWS = [tuple(cell.strip() for cell in line.strip("| ").split("|")[:2]) for line in TABLE.splitlines()]
UNSET = {"–": "(not set)", "required": None}
PARSED_AS_BOOLEAN = [
    "CODY_GATEWAY_ALLOW_ANONYMOUS",
    "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH",
    "CODY_GATEWAY_DOTCOM_INTERNAL_MODE",
    "CODY_GATEWAY_DOTCOM_DEV_LICENSES_ONLY",
]
"""The variables of actors that the reference reads by Go's ``strconv.ParseBool``."""


@pytest.mark.parametrize(("name", "default"), ROWS)
def test_each_variable_of_the_reference_exists_with_its_default(name: str, default: str) -> None:
    """The name is a setting, and the reference's default, put into the environment, changes nothing."""
    row = next(row for row in describe_settings(Settings()) if row.name == name)
    expected = UNSET.get(default, default)
    if default in UNSET:
        assert expected is None or row.default == expected
    else:
        assert load_settings({name: default}) == Settings()
        assert row.default == {"300s": "5m"}.get(default, default)


@pytest.mark.parametrize("name", PARSED_AS_BOOLEAN)
@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (("1", "t", "T", "TRUE", "true", "True"), True),
        (("0", "f", "F", "FALSE", "false", "False"), False),
    ],
    ids=["true", "false"],
)
def test_truth_values_are_read_as_by_parse_bool(name: str, texts: tuple[str, ...], value: bool) -> None:
    """Each text that Go's ``strconv.ParseBool`` takes has the same meaning here."""
    for text in texts:
        settings = load_settings({name: text})
        read = {
            "CODY_GATEWAY_ALLOW_ANONYMOUS": settings.actors.allow_anonymous,
            "CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": settings.dotcom.attribution,
        }
        assert read.get(name, settings.dotcom.internal_mode) is value


def test_every_other_truth_value_is_read_so_too() -> None:
    """There is one kind of truth value, so that no variable takes other texts than its neighbour."""
    kinds = [variable.kind for group in list_group_classes(Settings) for _, variable in list_variables(group)]
    assert sum(kind is BOOLEAN for kind in kinds) >= len(PARSED_AS_BOOLEAN)
    assert not [kind for kind in kinds if kind is not BOOLEAN and kind.show is BOOLEAN.show]


def test_secrets_of_the_sources_are_masked() -> None:
    """Neither the access token of Sourcegraph.com nor the secret of SAMS is shown."""
    settings = load_settings({"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": "CANARY1", "SAMS_CLIENT_SECRET": "CANARY2"})
    assert "CANARY" not in f"{settings!r} {describe_settings(settings)}"
