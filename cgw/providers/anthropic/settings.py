"""Settings of the provider ``anthropic``."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, Secret, integer
from cgw.model import MAX_IN_FLIGHT
from cgw.providers.models import BUILT_IN_MODELS, MODELS_HELP
from cgw.providers.pass_patterns import PASS_HELP, PASS_ROUTES, PassPattern


@frozen
class AnthropicSettings:
    """The provider ``anthropic``, which has routes if its access token is set."""

    api_url: str = setting(
        "CODY_GATEWAY_ANTHROPIC_API_URL",
        API_URL,
        "https://api.anthropic.com",
        "The base URL of Anthropic's API, without /v1.",
        other_names=("CODY_GATEWAY_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"),
    )
    fallback_api_url: str | None = setting(
        "CODY_GATEWAY_ANTHROPIC_FALLBACK_API_URL",
        API_URL,
        None,
        "A second base URL, for the same key, which is asked once when the first answers 5xx or cannot be reached.",
    )
    access_token: Secret | None = setting(
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN",
        SECRET,
        None,
        "The key for Anthropic's API; without it, there are no routes to it.",
        other_names=("CODY_GATEWAY_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
    )
    allowed_models: tuple[str, ...] | None = setting(
        "CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS",
        NAMES,
        None,
        f"The models that the routes serve, as Anthropic names them: {MODELS_HELP}",
        default_text=BUILT_IN_MODELS,
    )
    max_tokens_to_sample: int = setting(
        "CODY_GATEWAY_ANTHROPIC_MAX_TOKENS_TO_SAMPLE",
        integer(least=1, most=10_000_000),
        4000,
        "The largest max_tokens that a request may ask for on the reference's routes; more gets 400.",
    )
    max_in_flight: int | None = setting(
        "CODY_GATEWAY_ANTHROPIC_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests may be in flight to Anthropic, from all replicas together; unset means no bound.",
    )
    pass_routes: tuple[PassPattern, ...] = setting("CODY_GATEWAY_ANTHROPIC_PASS_ROUTES", PASS_ROUTES, (), PASS_HELP)
