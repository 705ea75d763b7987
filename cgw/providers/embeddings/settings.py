"""Settings of embeddings. Those of OpenAI and Fireworks are the providers' own."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, Secret
from cgw.providers.embeddings.models import MODELS, SDK_MODELS


@frozen
class EmbeddingsSettings:
    """The embeddings routes, which exist if one of their models has its keys."""

    allowed_models: tuple[str, ...] = setting(
        "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS",
        NAMES,
        (*MODELS, *SDK_MODELS),
        "The models that /v1/embeddings and /openai/v1/embeddings serve, with prefix, separated by commas.",
    )
    sourcegraph_api_url: str = setting(
        "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL",
        API_URL,
        "https://embeddings.sourcegraph.com/v2/models/st-multi-qa-mpnet-base-dot-v1/infer",
        "The inference endpoint (KServe v2) of Sourcegraph's own model, with its whole path.",
    )
    sourcegraph_api_token: Secret | None = setting(
        "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN",
        SECRET,
        None,
        "The key for it; without it, there are no embeddings by Sourcegraph's models.",
    )
