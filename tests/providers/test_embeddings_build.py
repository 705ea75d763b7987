"""The embeddings route from the settings: which models it has, and what cannot be used."""

from __future__ import annotations

import pytest

from cgw.config.kinds import Secret
from cgw.errors import ConfigError
from cgw.providers.embeddings.build import build_embeddings_route
from cgw.providers.embeddings.models import METADATA_MODEL, OPENAI_MODEL, SOURCEGRAPH_MODEL
from cgw.providers.embeddings.settings import EmbeddingsSettings
from cgw.service.network_checks import list_targets
from cgw.service.settings import load_settings

OPENAI = {"CODY_GATEWAY_OPENAI_ACCESS_TOKEN": "sk-openai"}
SOURCEGRAPH = {"CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN": "smega-token"}
FIREWORKS = {"CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN": "fw-key"}


@pytest.mark.parametrize(
    ("environ", "models"),
    [
        ({}, None),
        (FIREWORKS, None),
        (OPENAI, [OPENAI_MODEL]),
        (SOURCEGRAPH, [SOURCEGRAPH_MODEL]),
        (SOURCEGRAPH | FIREWORKS, [SOURCEGRAPH_MODEL, METADATA_MODEL]),
        (OPENAI | SOURCEGRAPH | FIREWORKS, [OPENAI_MODEL, SOURCEGRAPH_MODEL, METADATA_MODEL]),
    ],
)
def test_models_by_keys(environ: dict[str, str], models: list[str] | None) -> None:
    """Each model is there if the keys of its own upstreams are."""
    settings = load_settings(environ)
    route = build_embeddings_route(settings.embeddings, settings.providers)
    assert (None if route is None else list(route.embedders)) == models
    assert (None if route is None else list(route.models)) == models


def test_token_that_cannot_be_sent_is_named() -> None:
    """A token that is no header's value is a problem of its variable, and is not repeated."""
    own = EmbeddingsSettings(sourcegraph_api_token=Secret("tökén-of-smega"))
    with pytest.raises(ConfigError, match=r"^CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN: cannot be used") as caught:
        build_embeddings_route(own, load_settings({}).providers)
    assert "tökén" not in str(caught.value)


def test_the_host_is_checked() -> None:
    """``cgw check`` looks at the embeddings' host if its token is set."""
    variable = "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL"
    assert variable not in [target.variable for target in list_targets(load_settings({}))]
    assert variable in [target.variable for target in list_targets(load_settings(SOURCEGRAPH))]
