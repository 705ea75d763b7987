"""Names of models, and the check whether an actor may use one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from cgw.errors import Refusal
from cgw.model import ANY_MODEL
from cgw.providers.model_patterns import select_models

NEAREST = 3
"""Names that a refusal suggests: a list of all of them hides the one that was meant."""

MAX_SHOWN_CHARACTERS = 100
"""The part of an unknown name that a refusal repeats and compares: it may be as long as a body."""

_DATE = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|latest)$")
_PUNCTUATION = re.compile(r"[^a-z0-9]+")

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
    shown = model if len(model) <= MAX_SHOWN_CHARACTERS else f"{model[:MAX_SHOWN_CHARACTERS]}…"
    text = f'model "{shown}" is not allowed, allowed: [{", ".join(find_nearest(shown, allowed))}]'
    if len(allowed) > NEAREST:
        text += f" (the nearest of {len(allowed)})"
    raise Refusal(400, text, param="model", code="model_not_found")


def find_nearest(model: str, allowed: Sequence[str]) -> list[str]:
    """Return up to :data:`NEAREST` names of ``allowed`` that are most like ``model``, the most similar first.

    By the pairs of characters that both have (Sørensen–Dice), which finds typing errors and other versions. Dates
    don't count: names in the wild have others than the list. 1 to 2 µs per name.
    """
    wanted = _list_pairs(model)

    def rate(name: str) -> float:
        pairs = _list_pairs(name)
        return -2 * len(wanted & pairs) / (len(wanted) + len(pairs) or 1)

    return sorted(allowed, key=rate)[:NEAREST]


@lru_cache(maxsize=1024)
def _list_pairs(name: str) -> frozenset[str]:
    # Without the provider, which all names of a route share.
    name = _PUNCTUATION.sub("-", _DATE.sub("", name.rpartition("/")[2].lower()))
    return frozenset(name[at : at + 2] for at in range(len(name) - 1))
