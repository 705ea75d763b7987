"""Which models there are, and who may use which."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.errors import Refusal
from cgw.model import ANY_MODEL

ANTHROPIC_MODELS = (
    # The reference's list.
    "claude-v1", "claude-v1-100k", "claude-v1.0", "claude-v1.2", "claude-v1.3", "claude-v1.3-100k", "claude-2",
    "claude-2.0", "claude-2.1", "claude-2-100k", "claude-instant-v1", "claude-instant-1", "claude-instant-v1-100k",
    "claude-instant-v1.0", "claude-instant-v1.1", "claude-instant-v1.1-100k", "claude-instant-v1.2",
    "claude-instant-1.2", "claude-instant-1.2-cyan", "claude-3-haiku-20240307", "claude-3-sonnet-20240229",
    "claude-3-5-sonnet-20240620", "claude-3-opus-20240229",
    # What anthropic 2.12 for Python names, deprecated ones included.
    "claude-3-5-haiku-20241022", "claude-3-5-haiku-latest", "claude-3-7-sonnet-20250219", "claude-3-7-sonnet-latest",
    "claude-opus-4-0", "claude-opus-4-20250514", "claude-sonnet-4-0", "claude-sonnet-4-20250514", "claude-haiku-4-5",
    "claude-haiku-4-5-20251001", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-opus-4-5",
    "claude-opus-4-5-20251101", "claude-sonnet-4-6", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8",
    "claude-sonnet-5", "claude-opus-5", "claude-fable-5", "claude-fable-5-1", "claude-fable-5-2", "claude-sonnet-5-5",
    "claude-haiku-5-5", "claude-opus-5-5",
)  # fmt: skip
"""The default list for Anthropic, without the provider's prefix. Models by invitation (mythos) are not in it."""

OPENAI_MODELS = (
    # The reference's list.
    "gpt-4", "gpt-3.5-turbo", "gpt-4o", "gpt-4-turbo", "gpt-4-turbo-preview",
    # What openai 3.54 for Python names for chat completions, without dated, audio and search variants.
    "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "o1", "o3", "o3-mini", "o4-mini", "gpt-5", "gpt-5-mini",
    "gpt-5-nano", "gpt-5-chat-latest", "gpt-5.1", "gpt-5.1-chat-latest", "gpt-5.1-codex", "gpt-5.2",
    "gpt-5.2-chat-latest", "gpt-5.2-pro", "gpt-5.3-chat-latest", "gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano", "gpt-5.5",
    "gpt-5.6-luna", "gpt-5.6-sol", "gpt-5.6-terra", "gpt-6-astra", "gpt-6-luna", "gpt-6-sol", "gpt-6.1-sol",
    "gpt-6.1-terra", "gpt-6.2-astra", "gpt-6.2-sol",
)  # fmt: skip
"""The default list for OpenAI, without the provider's prefix."""


def add_prefix(provider: str, model: str) -> str:
    """``provider/model``; a name that holds a slash is taken to be prefixed already."""
    return model if "/" in model else f"{provider}/{model}"


def evaluate_allowed_models(
    actor_models: Sequence[str], master: Sequence[str], provider: str | None = None
) -> tuple[str, ...]:
    """The ``provider/model`` names that an actor may use, in the order of ``master``, the gateway's own list.

    Exactly ``["*"]`` stands for all of ``master``; otherwise it is the intersection, in which ``*`` has no meaning.
    A legacy name without a slash gets the prefix of ``provider``, or, without one, stands for that model of any
    provider in ``master`` (the reference system: actors written before model names were prefixed).
    """
    if len(actor_models) == 1 and actor_models[0] == ANY_MODEL:
        return tuple(master)
    if provider is None:
        named = set(actor_models)
        return tuple(model for model in master if model in named or model.partition("/")[2] in named)
    named = {add_prefix(provider, model) for model in actor_models if model != ANY_MODEL}
    return tuple(model for model in master if model in named)


def check_model(model: str, allowed: Sequence[str]) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (400) unless ``model`` (``provider/model``) is allowed, in whatever case."""
    if model in allowed:
        return
    folded = model.lower()
    if any(folded == name.lower() for name in allowed):
        return
    text = f'model "{model}" is not allowed, allowed: [{", ".join(allowed)}]'
    raise Refusal(400, text, param="model", code="model_not_found")
