"""Settings of the provider ``openai``."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, VISIBLE_TEXT, Secret, integer
from cgw.model import MAX_IN_FLIGHT
from cgw.providers.models import BUILT_IN_MODELS, MODELS_HELP
from cgw.providers.pass_patterns import PASS_HELP, PASS_ROUTES, PassPattern


@frozen
class OpenAISettings:
    """The provider ``openai``, which has routes if its access token is set."""

    api_url: str = setting(
        "CODY_GATEWAY_OPENAI_API_URL",
        API_URL,
        "https://api.openai.com",
        "The base URL of OpenAI's API, without /v1.",
        other_names=("CODY_GATEWAY_OPENAI_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE"),
    )
    fallback_api_url: str | None = setting(
        "CODY_GATEWAY_OPENAI_FALLBACK_API_URL",
        API_URL,
        None,
        "A second base URL, for the same key, which is asked once when the first answers 5xx or cannot be reached.",
    )
    access_token: Secret | None = setting(
        "CODY_GATEWAY_OPENAI_ACCESS_TOKEN",
        SECRET,
        None,
        "The key for OpenAI's API; without it, there are no routes to it.",
        other_names=("CODY_GATEWAY_OPENAI_API_KEY", "OPENAI_API_KEY"),
    )
    org_id: str | None = setting(
        "CODY_GATEWAY_OPENAI_ORG_ID",
        VISIBLE_TEXT,
        None,
        "The organisation that OpenAI bills, as org-….",
        other_names=("OPENAI_ORG_ID", "OPENAI_ORGANIZATION"),
    )
    allowed_models: tuple[str, ...] | None = setting(
        "CODY_GATEWAY_OPENAI_ALLOWED_MODELS",
        NAMES,
        None,
        f"The models that the routes serve, as OpenAI names them: {MODELS_HELP}",
        default_text=BUILT_IN_MODELS,
    )
    max_in_flight: int | None = setting(
        "CODY_GATEWAY_OPENAI_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests may be in flight to OpenAI, from all replicas together; unset means no bound.",
    )
    pass_routes: tuple[PassPattern, ...] = setting("CODY_GATEWAY_OPENAI_PASS_ROUTES", PASS_ROUTES, (), PASS_HELP)
