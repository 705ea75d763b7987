"""The interface of a provider's model list, which cgw answers itself from what the actor may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from cgw.model import Actor, Feature
from cgw.providers.dialect import Dialect
from cgw.providers.model_patterns import compile_allow_list
from cgw.providers.models import evaluate_allowed_models


class ModelList(Protocol):
    """The form that an API's list of models has. Names are without prefix."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The routes of the list below ``/<provider>``; a model is at ``<path>/<name>``."""
        ...

    def build_list(self, names: Sequence[str], provider: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer with the page of ``names`` that ``query`` asks for.

        Raises :exc:`~cgw.errors.Refusal` (400) for a query that is not valid.
        """
        ...

    def build_model(self, name: str, provider: str) -> dict[str, Any]:
        """Return the answer about one model."""
        ...


def list_models(actor: Actor, dialects: Iterable[Dialect], provider: str) -> list[str]:
    """Return the models of ``provider`` that the actor may use on one of its ``dialects``, without prefix, in order.

    Patterns stand for names that nobody knows, so what is listed are the names in either list that the other admits.
    Where both lists have nothing but patterns, the list is empty, although :func:`may_use` is true for many names.
    """
    found: dict[str, None] = {}
    for dialect, allowed in _list_pairs(actor, dialects):
        for name in evaluate_allowed_models(allowed, dialect.models, provider):
            if "*" not in name and name.startswith(f"{provider}/"):
                found[name.removeprefix(f"{provider}/")] = None
    return list(found)


def may_use(actor: Actor, dialects: Iterable[Dialect], provider: str, name: str) -> bool:
    """Return whether the actor may use a model of ``provider``, ``name`` without prefix: also by a pattern."""
    model = f"{provider}/{name}"
    return any(
        compile_allow_list(dialect.models).admits(model) and compile_allow_list(allowed, provider).admits(model)
        for dialect, allowed in _list_pairs(actor, dialects)
    )


def _list_pairs(actor: Actor, dialects: Iterable[Dialect]) -> Iterable[tuple[Dialect, tuple[str, ...]]]:
    """Yield each dialect with the actor's models for each feature that it is charged to."""
    for dialect in dialects:
        for feature, rate_limit in actor.rate_limits.items():
            if (feature is Feature.EMBEDDINGS) == (dialect.default_feature is Feature.EMBEDDINGS):
                yield dialect, rate_limit.allowed_models
