"""Settings of the provider ``fireworks``."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, Secret, integer
from cgw.model import MAX_IN_FLIGHT
from cgw.providers.models import BUILT_IN_MODELS, MODELS_HELP
from cgw.providers.pass_patterns import PASS_HELP, PASS_ROUTES, PassPattern


@frozen
class FireworksSettings:
    """The provider ``fireworks``, which has routes if its access token is set."""

    api_url: str = setting(
        "CODY_GATEWAY_FIREWORKS_API_URL",
        API_URL,
        "https://api.fireworks.ai/inference",
        "The base URL of Fireworks' API, without /v1.",
        other_names=("CODY_GATEWAY_FIREWORKS_BASE_URL", "FIREWORKS_BASE_URL", "FIREWORKS_API_BASE"),
    )
    fallback_api_url: str | None = setting(
        "CODY_GATEWAY_FIREWORKS_FALLBACK_API_URL",
        API_URL,
        None,
        "A second base URL, for the same key, which is asked once when the first answers 5xx or cannot be reached.",
    )
    access_token: Secret | None = setting(
        "CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN",
        SECRET,
        None,
        "The key for Fireworks' API; without it, there are no routes to it.",
        other_names=("CODY_GATEWAY_FIREWORKS_API_KEY", "FIREWORKS_API_KEY"),
    )
    allowed_models: tuple[str, ...] | None = setting(
        "CODY_GATEWAY_FIREWORKS_ALLOWED_MODELS",
        NAMES,
        None,
        f"The models that the routes serve, as Fireworks names them, and virtual ones: {MODELS_HELP}",
        default_text=BUILT_IN_MODELS,
    )
    community_percent: int = setting(
        "CODY_GATEWAY_FIREWORKS_STARCODER_COMMUNITY_SINGLE_TENANT_PERCENT",
        integer(least=0, most=100),
        0,
        "How many of a hundred requests for starcoder-16b and starcoder-7b go to the single-tenant deployment.",
    )
    enterprise_percent: int = setting(
        "CODY_GATEWAY_FIREWORKS_STARCODER_ENTERPRISE_SINGLE_TENANT_PERCENT",
        integer(least=0, most=100),
        100,
        "How many of a hundred requests for starcoder go to the single-tenant deployment.",
    )
    max_in_flight: int | None = setting(
        "CODY_GATEWAY_FIREWORKS_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests may be in flight to Fireworks, from all replicas together; unset means no bound.",
    )
    pass_routes: tuple[PassPattern, ...] = setting("CODY_GATEWAY_FIREWORKS_PASS_ROUTES", PASS_ROUTES, (), PASS_HELP)
