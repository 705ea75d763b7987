"""Lists of models, and the check whether an actor may use one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from cgw.errors import Refusal
from cgw.model import ANY_MODEL
from cgw.providers.model_patterns import MAX_NAME_CHARACTERS, SNAPSHOT, add_prefix, compile_allow_list

NEAREST = 3
"""Names that a refusal suggests: a list of all of them hides the one that was meant."""

MAX_SHOWN_CHARACTERS = 100
"""The part of an unknown name that a refusal repeats and compares: it may be as long as a body."""

_VERSION = re.compile(rf"-(?:{SNAPSHOT}|latest)$")
_PUNCTUATION = re.compile(r"[^a-z0-9]+")

BUILT_IN_MODELS = "the reference's list and today's models"
"""The default of a list of models, as the documentation shows it."""

MODELS_HELP = "names and patterns (claude-*), separated by commas; a name admits its own dated snapshots."
"""The notation of a list of models, for the help of settings."""


def add_prefixes(provider: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return a provider's own list with its prefix before each name that has not got it.

    Unlike :func:`add_prefix` also before names with a slash, which are paths at some providers.
    """
    prefix = f"{provider}/"
    return tuple(model if model.startswith(prefix) else prefix + model for model in models)


def evaluate_allowed_models(
    actor_models: Sequence[str], master: Sequence[str], provider: str | None = None
) -> tuple[str, ...]:
    """Return what an actor may use of ``master``, the gateway's own list of ``provider/model`` names and patterns.

    These are the entries of ``master`` that the actor's list admits, in their order, and then the actor's own entries
    that are not in ``master`` and that it admits. See :func:`compile_allow_list` for the actor's list.
    """
    own = compile_allow_list(tuple(actor_models), provider)
    if own.is_everything:
        return tuple(master)
    gateway = compile_allow_list(tuple(master))
    further = [add_prefix(provider or ANY_MODEL, entry) for entry in actor_models if entry != ANY_MODEL]
    listed = {entry.lower() for entry in master}
    return (
        *(entry for entry in master if own.admits(entry)),
        *(entry for entry in further if provider and entry.lower() not in listed and gateway.admits(entry)),
    )


class ServedModels(Protocol):
    """The models of a route, see :class:`cgw.providers.dialect.Dialect`."""

    @property
    def provider(self) -> str:
        """The provider's name."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """The gateway's own list."""
        ...

    @property
    def models_variable(self) -> str:
        """The setting of the list."""
        ...


def check_model(names: tuple[str, ...], actor_models: tuple[str, ...], served: ServedModels) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (400) unless the gateway's list and the actor's admit a model.

    ``names`` are those that the model has, as ``provider/model``, the one to tell the caller first; any of them will
    do. The refusal says which of the two lists it is about.
    """
    # Names that no list can have, as long as a body perhaps, are not remembered.
    judge = _judge if max(map(len, names)) <= MAX_NAME_CHARACTERS else _judge.__wrapped__
    is_served, is_admitted = judge(names, actor_models, served.models, served.provider)
    if is_served and is_admitted:
        return
    model, master, provider = names[0], served.models, served.provider
    allowed = evaluate_allowed_models(actor_models, master, provider)
    shown = model if len(model) <= MAX_SHOWN_CHARACTERS else f"{model[:MAX_SHOWN_CHARACTERS]}…"
    nearest = ", ".join(find_nearest(shown, allowed))
    count = f"the nearest of {len(allowed)}, " if len(allowed) > NEAREST else ""
    source = "by the caller's own list" if is_served else f"by the gateway's list, {served.models_variable}"
    text = f'model "{shown}" is not allowed, allowed: [{nearest}] ({count}{source})'
    raise Refusal(400, text, param="model", code="model_not_found")


# Bounded; an actor asks for the same few models again and again.
@lru_cache(maxsize=4096)
def _judge(
    names: tuple[str, ...], actor_models: tuple[str, ...], master: tuple[str, ...], provider: str
) -> tuple[bool, bool]:
    """Return whether any of ``names`` is in the gateway's list, and whether any is in the actor's."""
    served, admitted = compile_allow_list(master), compile_allow_list(actor_models, provider)
    return any(map(served.admits, names)), any(map(admitted.admits, names))


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
    name = _PUNCTUATION.sub("-", _VERSION.sub("", name.rpartition("/")[2].lower()))
    return frozenset(name[at : at + 2] for at in range(len(name) - 1))
