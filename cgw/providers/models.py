"""Names of models, lists of them with patterns, and the check whether an actor may use one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from attrs import frozen

from cgw.errors import Refusal
from cgw.model import ANY_MODEL

NEAREST = 3
"""Names that a refusal suggests: a list of all of them hides the one that was meant."""

MAX_SHOWN_CHARACTERS = 100
"""The part of an unknown name that a refusal repeats and compares: it may be as long as a body."""

MAX_NAME_CHARACTERS = 256
"""Longer names are not allowed by any list, so that no pattern is compared with a name as long as a body."""

# Anthropic's and OpenAI's dates, OpenAI's older ones (gpt-4-0613), Google's version numbers (gemini-1.5-pro-002).
_SNAPSHOT = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|(?:0[1-9]|1[0-2])[0-3]\d|0\d\d)$")
_VERSION = re.compile(_SNAPSHOT.pattern.replace(")$", "|latest)$"))
_PUNCTUATION = re.compile(r"[^a-z0-9]+")

BUILT_IN_MODELS = "the reference's list and today's models"
"""The default of a list of models, as the documentation shows it."""

MODELS_HELP = "names and patterns (claude-*), separated by commas; a name admits its own dated snapshots."
"""The notation of a list of models, for the help of settings."""


def add_prefix(provider: str, model: str) -> str:
    """Return ``provider/model``; a name with another slash is taken to have its prefix already."""
    return model if "/" in model else f"{provider}/{model}"


def add_prefixes(provider: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return a provider's own list with its prefix before each name that has not got it.

    Unlike :func:`add_prefix` also before names with a slash, which are paths at some providers.
    """
    prefix = f"{provider}/"
    return tuple(model if model.startswith(prefix) else prefix + model for model in models)


@frozen
class AllowList:
    """A list of models, ready to be asked: ``names`` in lower case, ``patterns`` as the texts between their stars."""

    is_everything: bool
    names: frozenset[str]
    patterns: tuple[tuple[str, ...], ...]

    def admits(self, model: str) -> bool:
        """Return whether ``model`` (``provider/model``) is in the list, ignoring case, as in the reference (§9.1).

        It is in the list by its name or a pattern, with or without the date at its end: a model admits its snapshots.
        """
        folded = model.lower() if len(model) <= MAX_NAME_CHARACTERS else ""
        if not folded or folded in self.names or self.is_everything:
            return bool(folded)
        undated = _SNAPSHOT.sub("", folded)
        return undated in self.names or any(
            _matches(name, parts) for parts in self.patterns for name in {folded, undated}
        )


def _matches(name: str, parts: tuple[str, ...]) -> bool:
    """Return whether ``name`` has ``parts`` in their order, the first at its start and the last at its end.

    Without backtracking, so that no pattern takes long: the leftmost place of each part leaves most for the others.
    """
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


# Bounded; each actor has a few lists at most, and hashing one takes less time than looking through it.
@lru_cache(maxsize=4096)
def compile_allow_list(entries: tuple[str, ...], provider: str | None = None) -> AllowList:
    """Return the list of ``entries``: ``provider/model`` names and patterns, in which ``*`` stands for any characters.

    An entry without a slash gets the prefix of ``provider``; without a ``provider``, it means that model of every
    provider (as in the reference, for actors from before model names were prefixed). Exactly ``("*",)`` means
    everything; a ``*`` beside other entries has no meaning (the reference's §1.2).
    """
    names, patterns = set(), set()
    for entry in entries:
        name = add_prefix(provider or ANY_MODEL, entry.lower())
        if entry == ANY_MODEL:
            continue
        if ANY_MODEL in name:
            patterns.add(tuple(name.split(ANY_MODEL)))
        else:
            names.add(name)
    return AllowList(entries == (ANY_MODEL,), frozenset(names), tuple(sorted(patterns)))


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


def check_model(
    names: Sequence[str], actor_models: Sequence[str], master: Sequence[str], provider: str, variable: str
) -> None:
    """Raise :exc:`~cgw.errors.Refusal` (400) unless the gateway's list, ``master``, and the actor's admit a model.

    ``names`` are those that the model has, as ``provider/model``, the one to tell the caller first; any of them will
    do. ``variable`` is the setting of ``master``: the refusal says which of the two lists it is about.
    """
    is_served = any(map(compile_allow_list(tuple(master)).admits, names))
    if is_served and any(map(compile_allow_list(tuple(actor_models), provider).admits, names)):
        return
    model = names[0]
    allowed = evaluate_allowed_models(actor_models, master, provider)
    shown = model if len(model) <= MAX_SHOWN_CHARACTERS else f"{model[:MAX_SHOWN_CHARACTERS]}…"
    nearest = ", ".join(find_nearest(shown, allowed))
    count = f"the nearest of {len(allowed)}, " if len(allowed) > NEAREST else ""
    source = "by the caller's own list" if is_served else f"by the gateway's list, {variable}"
    text = f'model "{shown}" is not allowed, allowed: [{nearest}] ({count}{source})'
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
    name = _PUNCTUATION.sub("-", _VERSION.sub("", name.rpartition("/")[2].lower()))
    return frozenset(name[at : at + 2] for at in range(len(name) - 1))
