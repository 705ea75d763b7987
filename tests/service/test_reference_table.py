"""The settings of providers, embeddings, flagging and BigQuery against a copy of the reference's table 11.1."""

from __future__ import annotations

import pytest

from cgw.config.describe import describe_settings
from cgw.service.settings import Settings, load_settings

DEFAULTS = {
    "CODY_GATEWAY_BIGQUERY_DATASET": "cody_gateway",
    "CODY_GATEWAY_BIGQUERY_TABLE": "events",
    "CODY_GATEWAY_DOTCOM_FLAGGED_PROMPT_RECORDER_TTL": "1h",
    "CODY_GATEWAY_FIREWORKS_STARCODER_COMMUNITY_SINGLE_TENANT_PERCENT": "0",
    "CODY_GATEWAY_FIREWORKS_STARCODER_ENTERPRISE_SINGLE_TENANT_PERCENT": "100",
}
WITHOUT_DEFAULT = [
    "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN",
    "CODY_GATEWAY_OPENAI_ACCESS_TOKEN",
    "CODY_GATEWAY_OPENAI_ORG_ID",
    "CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN",
    "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN",
    "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN",
    "CODY_GATEWAY_IDENTIFIERS_TO_LOG_FOR",
]
LISTS = [
    "CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS",
    "CODY_GATEWAY_OPENAI_ALLOWED_MODELS",
    "CODY_GATEWAY_FIREWORKS_ALLOWED_MODELS",
    "CODY_GATEWAY_GOOGLE_ALLOWED_MODELS",
    "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS",
    "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL",
]
"""Their defaults are longer than a table; tests of the packages have them."""


@pytest.mark.parametrize("name", [*DEFAULTS, *WITHOUT_DEFAULT, *LISTS])
def test_each_variable_is_a_setting(name: str) -> None:
    """``cgw config`` has it, with the reference's default: put into the environment, that changes nothing."""
    (row,) = (row for row in describe_settings(Settings()) if row.name == name)
    if name in DEFAULTS:
        assert load_settings({name: DEFAULTS[name]}) == Settings()
        assert row.default == DEFAULTS[name]
    if name in WITHOUT_DEFAULT:
        assert row.default in (None, "(not set)", "")
