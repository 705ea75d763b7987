"""Building the embeddings route from the settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from cgw.errors import ConfigError
from cgw.providers.dialect import Dialect
from cgw.providers.embeddings.descriptions import FireworksDescriber
from cgw.providers.embeddings.embedder import Embedder
from cgw.providers.embeddings.kserve import KServeEmbedder, build_kserve_endpoint
from cgw.providers.embeddings.models import METADATA_MODEL, MODELS, SDK_MODELS
from cgw.providers.embeddings.openai import OpenAIEmbedder
from cgw.providers.embeddings.route import EmbeddingsRoute
from cgw.providers.embeddings.sdk import SdkEmbeddings
from cgw.providers.embeddings.settings import EmbeddingsSettings
from cgw.providers.openai.chat import PROVIDER, build_endpoint
from cgw.providers.openai.settings import OpenAISettings
from cgw.providers.provider import ProviderSettings, reveal_access_token


def build_embeddings_route(
    settings: EmbeddingsSettings, providers: Mapping[str, ProviderSettings]
) -> EmbeddingsRoute | None:
    """Return the route; ``None`` if no model has its keys.

    Each model needs the settings of its own upstreams only, unlike in the reference, where all need OpenAI's key.
    Raises :exc:`~cgw.errors.ConfigError` for a token or URL that cannot be used.
    """
    embedders: dict[str, Embedder] = {}
    openai = cast(OpenAISettings, providers["openai"])
    if openai.access_token is not None:
        with suppress(ValueError):  # the provider's own routes report it, with the variable's name
            _add(embedders, OpenAIEmbedder.build(openai))
    if settings.sourcegraph_api_token is not None:
        try:
            endpoint = build_kserve_endpoint(settings.sourcegraph_api_url, settings.sourcegraph_api_token.reveal())
            _add(embedders, KServeEmbedder(endpoint))
            fireworks = providers.get("fireworks")
            if fireworks is not None and fireworks.access_token is not None:
                _add(embedders, KServeEmbedder(endpoint, METADATA_MODEL, FireworksDescriber.build(fireworks)))
        except ValueError as error:
            problem = f"CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN: cannot be used: {error}"
            raise ConfigError([problem]) from None
    if not embedders:
        return None
    # A name that is allowed and has no keys cannot be served; one that is not known at all gets the reference's text.
    elsewhere = {*MODELS, *SDK_MODELS} - embedders.keys()
    allowed = [name for name in settings.allowed_models if name not in elsewhere]
    return EmbeddingsRoute(embedders, tuple(allowed))


def build_sdk_embeddings(settings: EmbeddingsSettings, providers: Mapping[str, ProviderSettings]) -> list[Dialect]:
    """Return the routes for SDKs: none without OpenAI's key, or if none of OpenAI's models is to be served."""
    openai = cast(OpenAISettings, providers["openai"])
    models = tuple(name for name in settings.allowed_models if name.startswith(f"{PROVIDER}/"))
    if openai.access_token is None or not models:
        return []
    with suppress(ValueError):  # as above
        token = reveal_access_token(openai)
        return [SdkEmbeddings(build_endpoint(openai.api_url, token, openai.org_id, "/v1/embeddings"), models)]
    return []


def _add(embedders: dict[str, Embedder], embedder: Embedder) -> None:
    embedders[embedder.name] = embedder
