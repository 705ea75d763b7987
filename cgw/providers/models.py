"""Which models there are, and who may use which."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.errors import Refusal
from cgw.model import ANY_MODEL

BUILT_IN_MODELS = "the reference's list and today's models"
"""How the documentation shows the default of a list of models."""


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
