"""Settings of the provider ``google``."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, NAMES, SECRET, Secret, integer
from cgw.model import MAX_IN_FLIGHT
from cgw.providers.models import BUILT_IN_MODELS, MODELS_HELP
from cgw.providers.pass_patterns import PASS_HELP, PASS_ROUTES, PassPattern


@frozen
class GoogleSettings:
    """The provider ``google``, which has routes if its access token is set."""

    api_url: str = setting(
        "CODY_GATEWAY_GOOGLE_API_URL",
        API_URL,
        "https://generativelanguage.googleapis.com",
        "The base URL of the Gemini API, without /v1beta.",
        other_names=("CODY_GATEWAY_GOOGLE_BASE_URL", "GOOGLE_GEMINI_BASE_URL"),
    )
    fallback_api_url: str | None = setting(
        "CODY_GATEWAY_GOOGLE_FALLBACK_API_URL",
        API_URL,
        None,
        "A second base URL, for the same key, which is asked once when the first answers 5xx or cannot be reached.",
    )
    access_token: Secret | None = setting(
        "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN",
        SECRET,
        None,
        "The key for the Gemini API; without it, there are no routes to it.",
        other_names=("CODY_GATEWAY_GOOGLE_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"),
    )
    allowed_models: tuple[str, ...] | None = setting(
        "CODY_GATEWAY_GOOGLE_ALLOWED_MODELS",
        NAMES,
        None,
        f"The models that the routes serve, as Google names them: {MODELS_HELP}",
        default_text=BUILT_IN_MODELS,
    )
    max_in_flight: int | None = setting(
        "CODY_GATEWAY_GOOGLE_MAX_IN_FLIGHT",
        integer(least=1, most=MAX_IN_FLIGHT),
        None,
        "How many requests may be in flight to Google, from all replicas together; unset means no bound.",
    )
    pass_routes: tuple[PassPattern, ...] = setting("CODY_GATEWAY_GOOGLE_PASS_ROUTES", PASS_ROUTES, (), PASS_HELP)
