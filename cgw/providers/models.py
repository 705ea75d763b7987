"""Names of models, and the check whether an actor may use one."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.errors import Refusal
from cgw.model import ANY_MODEL
from cgw.providers.model_patterns import select_models

BUILT_IN_MODELS = "the reference's list and today's models"
"""The default of a list of models, as the documentation shows it."""


def add_prefix(provider: str, model: str) -> str:
    """Return ``provider/model``; a name with a slash is taken to have its prefix already."""
    return model if "/" in model else f"{provider}/{model}"


def add_prefixes(provider: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return ``models`` with :func:`add_prefix` for each."""
    return tuple(add_prefix(provider, model) for model in models)


def evaluate_allowed_models(
    actor_models: Sequence[str], master: Sequence[str], provider: str | None = None
) -> tuple[str, ...]:
    """Return the ``provider/model`` names that an actor may use, in the order of ``master``, the gateway's own list.

    Exactly ``["*"]`` means all of ``master``. Otherwise the result is the intersection, in which a lone ``*`` has no
    meaning, and ``anthropic/claude-*`` means all models of ``master`` that begin so.
    A name without a slash gets the prefix of ``provider``; without a ``provider``, it means that model of every
    provider in ``master`` (as in the reference, for actors from before model names were prefixed).
    """
    if len(actor_models) == 1 and actor_models[0] == ANY_MODEL:
        return tuple(master)
    if provider is None:
        short = set(actor_models)
        return tuple(model for model in master if model in short or model.partition("/")[2] in short)
    # A `*` beside other names has no meaning (the reference's §1.2).
    named = tuple(add_prefix(provider, model) for model in actor_models if model != ANY_MODEL)
    return select_models(named, tuple(master))


def check_model(model: str, allowed: Sequence[str]) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (400) unless ``model`` (``provider/model``) is allowed, ignoring case."""
    if model in allowed:  # the usual case, without lower() for each name
        return
    # Ignoring case, as in the reference (§9.1).
    folded = model.lower()
    if any(folded == name.lower() for name in allowed):
        return
    text = f'model "{model}" is not allowed, allowed: [{", ".join(allowed)}]'
    raise Refusal(400, text, param="model", code="model_not_found")
